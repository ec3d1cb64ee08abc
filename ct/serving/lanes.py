"""Threads for what may hang: a few calls at once, each with a deadline. What never ends keeps its thread and nothing else."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from ct.errors import Unavailable

Made = TypeVar("Made")
_IDLE_SECONDS = 10.0
_Work = tuple[Callable[[], Any], float, asyncio.Future[Any]]


class Lane:
    """At most `threads` calls at once and `waiting` more that wait for a thread. Used from one event loop.

    Threads begin when they are needed and end when there is nothing to do; they are daemons, so that a call which hangs keeps no process.
    """

    def __init__(self, name: str, *, threads: int, waiting: int) -> None:
        self._name, self._threads, self._most = name, threads, threads + waiting
        self._queue: queue.SimpleQueue[_Work] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._alive = self._busy = 0

    @property
    def full(self) -> bool:
        """Would a call be refused?"""
        return self._busy >= self._most

    async def call(self, work: Callable[[], Made], seconds: float) -> Made:
        """What `work` gives, called in a thread. Raises what it raises; Unavailable when there is no room or the deadline has passed."""
        if self.full:
            raise Unavailable(f"{self._most} calls of {self._name} have not ended", "one that ends", "roll the version back")
        loop = asyncio.get_running_loop()
        found: asyncio.Future[Made] = loop.create_future()
        found.add_done_callback(_seen)
        self._busy += 1
        self._queue.put((work, time.monotonic() + seconds, found))
        with self._lock:
            begin = self._alive < min(self._threads, self._busy)
            self._alive += begin
        if begin:
            threading.Thread(target=self._run, args=(loop,), name=self._name, daemon=True).start()
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.shield(found)
        except TimeoutError:
            raise Unavailable(
                f"{self._name} took over {seconds:g} s", "an answer by then", "find out why it hangs; see its records"
            ) from None

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        while True:
            try:
                work, until, found = self._queue.get(timeout=_IDLE_SECONDS)
            except queue.Empty:
                with self._lock:
                    if self._queue.empty():
                        self._alive -= 1
                        return
                continue
            result: Any = None
            fault: BaseException | None = None
            try:
                if time.monotonic() < until:  # nobody waits for what is late
                    result = work()
                else:
                    fault = Unavailable(f"{self._name} had no thread free", "one in time", "find out why calls hang")
            except BaseException as error:
                fault = error
            with suppress(RuntimeError):  # the loop has been closed: nobody asks any more
                loop.call_soon_threadsafe(self._end, found, result, fault)

    def _end(self, found: asyncio.Future[Any], result: Any, fault: BaseException | None) -> None:
        self._busy -= 1
        if found.done():
            return
        if fault is None:
            found.set_result(result)
        else:
            found.set_exception(fault)


def _seen(found: asyncio.Future[Any]) -> None:
    if not found.cancelled():
        found.exception()  # it may come when nobody waits any more
