"""The endpoint's control side in a process of its own, so that the control API outlives any cluster. Run as a module it is that process.

Ray ends a process whose cluster has been gone for a minute, and one that leaves such a cluster waits half a minute for it. A child can be
ended at once and started anew.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from ct.errors import CtError, Unavailable
from ct.serving import local
from ct.settings import Settings

if TYPE_CHECKING:
    from ct.control.act import Actor

START_SECONDS = 60.0
LOOK_SECONDS, REACH_SECONDS = 1.0, 2.0
"""While it works it is looked so often whether its cluster is still there."""
MOST_SECONDS = 300.0
"""The longest that one thing may take: an application apart that is started."""


@dataclass
class Child:
    """A process that is connected, how it is spoken to, and the head that it knows; empty for a cluster of the settings."""

    process: subprocess.Popen[bytes]
    line: Connection
    head: str


class Hands:
    """In the place of an actor's `Serving`: has the child do it. Raises Unavailable where no cluster runs, or ends meanwhile.

    What a verb journals before that is journaled at once, and replicas that have lost their cluster follow the journal.
    """

    def __init__(self, settings: Settings, endpoint: str) -> None:
        self._settings, self._endpoint = settings, endpoint
        self._asked = threading.Lock()
        self._child: Child | None = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return partial(self._ask, name)

    @contextmanager
    def joined(self, act: Actor) -> Iterator[None]:
        """The actor reaches the endpoint in the block."""
        with self._asked:
            vars(act)["serving"] = self
            yield

    def close(self) -> None:
        """End the child."""
        if (child := self._child) is not None:
            self._child = None
            child.process.kill()
            child.process.wait()
            child.line.close()

    def _ask(self, name: str, *args: Any, **named: Any) -> Any:
        if self._child is not None and (self._child.process.poll() is not None or self._gone(self._child.head)):
            self.close()
        child = self._child = self._child or self._started()
        try:
            child.line.send((name, args, named))
            until = time.monotonic() + MOST_SECONDS
            while not child.line.poll(LOOK_SECONDS):
                if self._gone(child.head) or time.monotonic() > until:
                    raise EOFError
            answer = child.line.recv()
        except (EOFError, OSError):
            self.close()
            raise _away(f"the cluster went away during {name}") from None
        if isinstance(answer, CtError):
            raise answer
        return answer

    def _started(self) -> Child:
        ours, theirs = socket.socketpair()
        line = [sys.executable, "-m", "ct.api.hands", str(theirs.fileno())]
        # A session of its own: what a terminal tells the parent is not for it. It ends when the parent's end of the line closes.
        process = subprocess.Popen(line, pass_fds=[theirs.fileno()], start_new_session=True, stdin=subprocess.DEVNULL)
        theirs.close()
        child = self._child = Child(process, Connection(ours.detach()), "")
        try:
            child.line.send((self._settings, self._endpoint))
            said = child.line.recv() if child.line.poll(START_SECONDS) else None
        except (EOFError, OSError):
            said = None
        if not isinstance(said, str):
            self.close()
            raise said if isinstance(said, CtError) else _away("no Ray cluster could be joined")
        child.head = said
        return child

    def _gone(self, head: str) -> bool:
        """Is the cluster no more, or does another head run in its place?"""
        target = _target(self._settings)
        if not target:
            return local.address(self._settings) != head
        host, _, port = target.rpartition(":")
        if not port.isdecimal() or "/" in host:  # such as "auto": nobody can say
            return False
        try:
            socket.create_connection((host.strip("[]"), int(port)), REACH_SECONDS).close()
        except OSError:
            return True
        return False


def _target(settings: Settings) -> str:
    return settings.ray_address or os.environ.get("RAY_ADDRESS", "")


def _away(found: str) -> Unavailable:
    return Unavailable(found, "a cluster that runs the endpoint", "run `ct deploy`; what was decided is journaled")


def main(line: Connection) -> None:
    """Connect, then do what is asked until nobody asks any more."""
    from ct.serving.client import Serving

    try:
        settings, endpoint = line.recv()
        try:
            local.connect(settings)
        except CtError as error:
            line.send(_away(error.found))
            return
        line.send("" if _target(settings) else local.address(settings))
        serving = Serving(settings, endpoint)
        while True:
            name, args, named = line.recv()
            try:
                answer = getattr(serving, name)(*args, **named)
            except CtError as error:
                answer = error
            except Exception as error:  # Ray raises many kinds; none may end the hands
                answer = _away(f"the endpoint did not {name}: {type(error).__name__}")
            line.send(answer)
    except (EOFError, BrokenPipeError):  # the parent has ended
        os._exit(0)


if __name__ == "__main__":
    main(Connection(int(sys.argv[1])))
