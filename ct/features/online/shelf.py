"""The role of what keeps an online store's rows: a file or a server. One writer's change is seen whole or not at all by every reader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ct.features.online.rows import Entry, Freshness, Key, Source

LOG_ROWS = 10_000
"""How many fresh rows are told one by one; a reader that is further behind forgets what it holds."""


@dataclass(frozen=True)
class Batch:
    """Rows for one source. `shard` and `since` say what has been filled with them: all of the shard known from `since` on."""

    source: Source
    entries: Sequence[Entry]
    shard: str = ""
    since: int = 0


@dataclass(frozen=True)
class Look:
    """What a reader is told: the rows since the position it came with, None when it has to forget what it holds; rows of keys, in any
    order; and the freshness of all sources, None when nothing has changed."""

    position: int
    fresh: Sequence[tuple[Key, bytes]] | None
    found: Mapping[Key, Sequence[bytes]]
    freshness: Sequence[Freshness] | None = None


@dataclass(frozen=True)
class Size:
    """Rows and entities of a source."""

    rows: int
    entities: int


class Shelf(Protocol):
    """Rows by source and entity: a set, so that putting one twice changes nothing. For several threads and processes at once."""

    @property
    def near(self) -> bool:
        """Does it answer within microseconds?"""
        ...

    def put(self, batches: Sequence[Batch], *, now: int, tell: bool) -> int:
        """Store all batches or none, stamped with `now` (microseconds). With `tell` readers get each row, otherwise they forget what they
        hold. Returns the number of new rows."""
        ...

    def look(self, position: int, missing: Sequence[Key], keys: Sequence[Key]) -> Look:
        """What came since `position` (-1 for never looked), and the rows of `missing`. When all is to be forgotten, those of all `keys`."""
        ...

    def filled(self, source: Source) -> Mapping[str, int]:
        """From which known-at on each shard has been filled in."""
        ...

    def rows(self, key: Key, *, until: int) -> Sequence[bytes]:
        """An entity's rows as they were at the moment `until`, in any order."""
        ...

    def discard(self, name: str, *, before: int | None = None, ties: frozenset[bytes] = frozenset()) -> int:
        """Forget a source's rows known before `before`, or with one of `ties`. Returns their number."""
        ...

    def freshness(self) -> tuple[Freshness, ...]:
        """Of every source."""
        ...

    def size(self, name: str) -> Size:
        """Of a source."""
        ...

    def close(self) -> None:
        """Give it back."""
        ...
