"""A folder on this machine as a source: every finished file is a shard."""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import time
from dataclasses import dataclass
from pathlib import Path

from ct.errors import InvalidRequest, InvalidShard, Unavailable
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
        """The finished files whose bytes ingest has not judged, by name. One that cannot be read is refused until it can.

        Raises Unavailable when the folder cannot be listed.
        """
        folder = cursor.root / self.path
        try:
            looks = {path: look for path in sorted(folder.iterdir()) if (look := _look(path))} if folder.is_dir() else {}
        except OSError as error:
            raise Unavailable(f"{folder} cannot be listed: {error.strerror}", "a folder that ct may read", "check it") from None
        fresh = [arrival for path, look in looks.items() if (arrival := _arrival(path, look, cursor))]
        if fresh:
            time.sleep(self.settle)
        return tuple(
            one for one in fresh if _look(folder / one.key) == looks[folder / one.key] and not _written_to(folder / one.key)
        )

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


def _arrival(path: Path, look: tuple[int, int, int], cursor: Cursor) -> Arrival | None:
    """The file as an arrival, None when it is known or has just gone."""
    try:
        digest = cursor.digest(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        mark = f"unreadable, changed {look[1]}"
        refused = f"it cannot be read: {error.strerror}"
        return None if cursor.taken.get(path.name) == mark else Arrival(path.name, mark, look[0], path.name, refused=refused)
    return None if digest in cursor.seen else Arrival(path.name, digest, look[0], path.name)


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
