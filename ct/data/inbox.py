"""The durable inbox of the prediction log: what a replica appends, framed and checked, in segments that the committer moves on.

What `submit` and `keep` have acknowledged survives the death of the process and of the machine; `soon` gives the fsync a few milliseconds.
"""

from __future__ import annotations

import fcntl
import os
import queue
import struct
import threading
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from ct.errors import Unavailable
from ct.store.files import sync_folder

FRAME = struct.Struct("<II")
"""Before each record: its length in bytes, and its CRC-32."""
SLOW_SECONDS = 0.001
"""A disk whose fsync takes longer, on a running mean, is waited for by the thread alone."""
SOON_SECONDS = 0.005
"""So long an fsync waits for company where nobody waits for it."""
_NEW = 1 / 16
"""The weight of the newest fsync in that mean: one hiccup of 15 ms is enough to be careful for a while."""
_SEGMENT_BYTES = 1 << 26
_CLOSED = Unavailable("the prediction log is closed", "a replica that runs", "ask another one")


@dataclass(eq=False, slots=True)
class _Lot:
    """Records that are kept together. `written`: the system has them, and only their fsync is awaited."""

    data: bytes
    done: Future[None]
    written: bool = False


class Inbox:
    """One replica's writer: a thread that writes what has gathered, calls fsync once, and then lets all the waiting ones go."""

    def __init__(self, folder: Path, replica: str, *, segment_bytes: int = _SEGMENT_BYTES) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._replica, self._limit = folder, replica, segment_bytes
        self._queue: queue.SimpleQueue[_Lot | None] = queue.SimpleQueue()
        self._number, self._handle = 0, -1
        self._size = self._pending = 0  # the segment's bytes on disk, and those after them that are only written
        self._writing, self._pace, self._torn, self._closed = threading.Lock(), 0.0, False, False
        self._thread = threading.Thread(target=self._run, name="inbox", daemon=True)
        self._thread.start()

    def submit(self, records: Sequence[Mapping[str, Any]]) -> Future[None]:
        """Log records, all or none. The future is done once they are durable; it holds Unavailable when they could not be written."""
        return self._queued(_lot(records))

    def keep(self, records: Sequence[Mapping[str, Any]]) -> Future[None]:
        """`submit`, but written by the caller itself while nobody else writes and the disk is quick: that saves two changes of thread."""
        lot = _lot(records)
        quick = self._pace <= SLOW_SECONDS and not self._pending and self._queue.empty()
        if not (quick and self._open and self._writing.acquire(blocking=False)):
            return self._queued(lot)
        try:
            self._write([lot])
        finally:
            self._writing.release()
        return lot.done

    def soon(self, records: Sequence[Mapping[str, Any]]) -> Future[None]:
        """`submit`, but its fsync waits SOON_SECONDS for company.

        Unless the thread writes just now, the system has the records when this returns: the end of this process then loses none of them,
        that of the machine the last milliseconds.
        """
        lot = _lot(records)
        if not (self._open and self._writing.acquire(blocking=False)):
            return self._queued(lot)
        try:
            self._put(lot.data)
            self._pending, lot.written = self._pending + len(lot.data), True
        except OSError:
            self._cut(self._size + self._pending)
        finally:
            self._queued(lot)  # before anybody else writes: what is written and not synced is always in the queue
            self._writing.release()
        return lot.done

    def close(self) -> None:
        """Write what is waiting and give the segment up. What comes later is refused."""
        self._queue.put(None)
        self._thread.join(10)

    @property
    def closed(self) -> bool:
        """Has the writer ended?"""
        return self._closed

    @property
    def _open(self) -> bool:
        return self._handle >= 0 and self._size + self._pending < self._limit and not self._torn

    def _queued(self, lot: _Lot) -> Future[None]:
        if self._closed:
            _tell([lot], _CLOSED)
        else:
            self._queue.put(lot)
        return lot.done

    def _run(self) -> None:
        last = False
        while not last and (first := self._queue.get()) is not None:
            if first.written:
                time.sleep(SOON_SECONDS)
            with self._writing:
                lots = [first]
                while not self._queue.empty() and not last:
                    following = self._queue.get()
                    if following is None:
                        last = True
                    else:
                        lots.append(following)
                self._write(lots)
        with self._writing:
            self._closed = True
            self._seal()
        while not self._queue.empty():
            if (late := self._queue.get()) is not None:
                _tell([late], _CLOSED)

    def _write(self, lots: Sequence[_Lot]) -> None:
        begun = self._handle >= 0
        error = self._tried([lot for lot in lots if not lot.written])
        if error is not None and begun:  # the fault may be of one file: once more, in a segment of its own
            error = self._tried(lots)
        if error is None:
            _tell(lots, None)
        else:
            found = f"the prediction log cannot be written: {error}"
            _tell(lots, Unavailable(found, "a writable disk with room", "free space"))

    def _tried(self, lots: Sequence[_Lot]) -> OSError | None:
        """Write these and make all durable. A segment where that failed is given up, as its sync proves nothing any more, and loses what was not
        durable.
        """
        try:
            if self._torn:
                raise OSError("half a record stands in the segment")
            if not self._open:
                self._sync()
                self._roll()
            data = b"".join(lot.data for lot in lots)
            self._put(data)
            self._pending += len(data)
            self._sync()
            return None
        except OSError as error:
            self._cut(self._size)  # it may end in half a record, or be in the way of the same rows elsewhere
            self._seal()
            return error

    def _put(self, data: bytes) -> None:
        written = 0
        while written < len(data):
            written += os.write(self._handle, data[written:])

    def _sync(self) -> None:
        if self._handle < 0:
            return
        begun = time.monotonic()
        os.fsync(self._handle)
        self._pace += (time.monotonic() - begun - self._pace) * _NEW
        self._size, self._pending = self._size + self._pending, 0

    def _cut(self, size: int) -> None:
        self._torn = True
        with suppress(OSError):
            os.ftruncate(self._handle, size)
            self._torn = False

    def _roll(self) -> None:
        self._seal()
        path = self._folder / f"{self._replica}-{self._number:06d}.log"
        self._number += 1  # first of all: what a failure leaves behind is never in the way of the next segment
        part = path.with_suffix(".part")
        self._handle = os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o644)
        # The lock is held as long as more may follow: so the committer sees which segments are done, even of killed replicas.
        # It is taken before the segment has its name, so that no segment is ever seen unlocked and unfinished.
        fcntl.flock(self._handle, fcntl.LOCK_EX)
        os.rename(part, path)
        sync_folder(self._folder)

    def _seal(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
        self._handle, self._size, self._pending, self._torn = -1, 0, 0, False


def _lot(records: Iterable[Mapping[str, Any]]) -> _Lot:
    return _Lot(b"".join(map(frame, records)), Future())


def _tell(lots: Iterable[_Lot], error: Unavailable | None) -> None:
    for lot in lots:
        if not lot.done.set_running_or_notify_cancel():
            continue  # who asked has gone; the row is kept nevertheless
        if error is None:
            lot.done.set_result(None)
        else:
            lot.done.set_exception(error)


def frame(record: Mapping[str, Any], length: int = 0) -> bytes:
    """A record as it stands in a segment, its body padded with spaces to `length` bytes."""
    body = orjson.dumps(record).ljust(length)
    return FRAME.pack(len(body), zlib.crc32(body)) + body
