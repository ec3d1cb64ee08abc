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


def within(
    data: bytes, needles: Sequence[bytes], others: Sequence[bytes] = (), start: int = 0, stop: int | None = None
) -> bool:
    """Does any of the needles begin in data[start:stop], other than as a part of one of `others`?"""
    shapes: dict[tuple[int, int], set[bytes]] = {}
    for needle in needles:
        at = data.find(needle, start)
        if at >= 0 and not shapes:
            shapes = _shapes(needles, others)
        while 0 <= at < (len(data) if stop is None else stop):
            if not any(
                at >= before and data[at - before : at - before + size] in held for (before, size), held in shapes.items()
            ):
                return True
            at = data.find(needle, at + 1)
    return False


def _shapes(needles: Sequence[bytes], others: Sequence[bytes]) -> dict[tuple[int, int], set[bytes]]:
    """The others by where a needle lies in them, and how long they are."""
    found: dict[tuple[int, int], set[bytes]] = {}
    for other in others:
        for needle in needles:
            at = other.find(needle)
            while at >= 0:
                found.setdefault((at, len(other)), set()).add(other)
                at = other.find(needle, at + 1)
    return found


def holds(read: Callable[[int], bytes], needles: Sequence[bytes], others: Sequence[bytes] = (), piece: int = _PIECE) -> bool:
    """Is any of the needles in what `read` gives, a piece at a time, other than as a part of one of `others`?"""
    reach, window, judged = max(map(len, [*needles, *others])), b"", 0
    while part := read(piece):
        window += part
        stop = max(judged, len(window) - reach)  # what begins later may go on in the next piece
        if within(window, needles, others, judged, stop):
            return True
        cut = max(0, stop - reach)
        window, judged = window[cut:], stop - cut
    return within(window, needles, others, judged)


def holds_apart(path: str, needles: Sequence[bytes], others: Sequence[bytes] = ()) -> bool:
    """As `holds`, of a local file and in a process of its own. A file that is gone holds nothing."""
    command = [sys.executable, "-I", "-S", __file__, path]
    lines = b"\n".join(b" ".join(text.hex().encode() for text in texts) for texts in (needles, others))
    return subprocess.run(command, input=lines, capture_output=True, check=True).stdout == b"yes"


def main(path: str) -> None:
    """Say yes or no of a file, for the needles and the others that come as two lines of hex."""
    lines = sys.stdin.buffer.read().split(b"\n")
    needles, others = ([bytes.fromhex(text.decode()) for text in line.split()] for line in lines)
    try:
        with open(path, "rb", buffering=0) as file:
            sys.stdout.write("yes" if holds(file.read, needles, others) else "no")
    except FileNotFoundError:
        sys.stdout.write("no")


if __name__ == "__main__":
    main(sys.argv[1])
