"""A folder on this machine as a source: every finished file is a shard."""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import time
from dataclasses import dataclass
from pathlib import Path

from ct.errors import InvalidRequest, InvalidShard
from ct.roles import Arrival, Cursor

_UNREADY = (".part", ".tmp")


@dataclass(frozen=True)
class Folder:
    """The files that lie directly in a folder. A file is known by its bytes: a new name for known bytes is nothing new, new bytes are.

    Not taken are links, names with a dot in front or with .part or .tmp at the end, files that somebody has open for writing on this
    machine, and files whose size or time of change moves while `settle` seconds pass. Where a writer on another machine may pause
    for longer, let it rename its files into place.
    """

    path: str
    settle: float = 0.05

    @classmethod
    def example(cls) -> Folder:
        """One of its kind."""
        return cls("landing/orders")

    def explain(self) -> str:
        """The folder."""
        return f"folder {self.path}"

    def pending(self, cursor: Cursor) -> tuple[Arrival, ...]:
        """The finished files whose bytes ingest has not judged, by name. Raises InvalidShard for a file that cannot be read."""
        folder = cursor.root / self.path
        looks = {path: look for path in sorted(folder.iterdir()) if (look := _look(path))} if folder.is_dir() else {}
        fresh = {}
        for path in looks:
            if (digest := _digest(path, cursor)) and digest not in cursor.seen:
                fresh[path] = digest
        if fresh:
            time.sleep(self.settle)
        done = {path: digest for path, digest in fresh.items() if _look(path) == looks[path] and not _written_to(path)}
        return tuple(Arrival(path.name, digest, looks[path][0], path.name) for path, digest in done.items())

    def fetch(self, arrival: Arrival, cursor: Cursor, folder: Path) -> Path:
        """Where the file lies. Raises InvalidShard when it is gone or a link."""
        path = cursor.root / self.path / arrival.key
        if _look(path) is None:
            raise InvalidShard(
                f"{path} is gone", "the file that was just there", "let nobody remove files that are not taken yet"
            )
        return path

    def locate(self, text: str, cursor: Cursor) -> str:
        """Raises InvalidRequest: a folder has no order."""
        raise InvalidRequest(
            f"{self.explain()} has no position {text!r}", "a table with snapshots or versions", "move files away"
        )


def _look(path: Path) -> tuple[int, int, int] | None:
    """Size, time of change and place of a plain file that may be ready, else None. Times are compared, never with a clock."""
    if path.name.startswith(".") or path.name.endswith(_UNREADY):
        return None
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    return (found.st_size, found.st_mtime_ns, found.st_ino) if stat.S_ISREG(found.st_mode) else None


def _digest(path: Path, cursor: Cursor) -> str:
    """The file's SHA-256, empty when it has just gone. Raises InvalidShard."""
    try:
        return cursor.digest(path)
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise InvalidShard(f"{path} cannot be read: {error.strerror}", "a readable file", "check its permissions") from None


def _written_to(path: Path) -> bool:
    """Has somebody on this machine the file open for writing? False where the system cannot tell.

    A read lease is refused then. It is given back at once; a writer that comes between waits for that, and the signal that we
    would get is one that is ignored.
    """
    if not hasattr(fcntl, "F_SETLEASE"):
        return False
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.fcntl(handle, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        return False
    except BlockingIOError:
        return True
    except OSError:  # not our file, or a file system without leases
        return False
    finally:
        os.close(handle)
