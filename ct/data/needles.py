"""Looking for byte strings in what a file holds. As a script it does so in a process of its own, and imports nothing but Python's own.

A SQLite file must be read like that: whoever closes one that the same process has a connection to drops the connection's locks with it,
and the next to come takes the file's log for abandoned and removes it (https://sqlite.org/howtocorrupt.html, 2.2).
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Sequence

_PIECE = 1 << 22
_SQLITE = re.compile(r"\.(db|sqlite3?)(-wal|-shm|-journal)?$")


def is_sqlite(path: str) -> bool:
    """Does the file belong to a SQLite database, by its name?"""
    return _SQLITE.search(path) is not None


def holds(read: Callable[[int], bytes], needles: Sequence[bytes], piece: int = _PIECE) -> bool:
    """Is any of the needles in what `read` gives, a piece at a time?"""
    reach, tail = max(map(len, needles)) - 1, b""
    while part := read(piece):
        window = tail + part
        if any(needle in window for needle in needles):
            return True
        tail = window[-reach:] if reach else b""
    return False


def holds_apart(path: str, needles: Sequence[bytes]) -> bool:
    """As `holds`, of a local file and in a process of its own. A file that is gone holds nothing."""
    command = [sys.executable, "-I", "-S", __file__, path]
    said = subprocess.run(
        command, input=b"\n".join(needle.hex().encode() for needle in needles), capture_output=True, check=True
    )
    return said.stdout == b"yes"


def main(path: str) -> None:
    """Say yes or no of a file, for the needles that come as lines of hex."""
    needles = [bytes.fromhex(line.decode()) for line in sys.stdin.buffer.read().split()]
    try:
        with open(path, "rb", buffering=0) as file:
            sys.stdout.write("yes" if holds(file.read, needles) else "no")
    except FileNotFoundError:
        sys.stdout.write("no")


if __name__ == "__main__":
    main(sys.argv[1])
