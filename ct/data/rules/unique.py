"""Keys that come once: within the shard, and against those that are published."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ct.data.checks import Example, only
from ct.data.hashing import row_hash
from ct.errors import InvalidPipeline
from ct.roles import Columns, Past

Hashes: TypeAlias = NDArray[np.int64]
_BITS = 25


@dataclass(frozen=True, init=False)
class Unique:
    """No two rows of a shard, and no row of it and of a published shard, share the values of `columns`.

    `shards` limits the comparison to that many of the newest published shards; without it all of them are read, in these columns alone.
    """

    names: tuple[str, ...]
    shards: int | None

    def __init__(self, *columns: str, shards: int | None = None) -> None:
        if not columns:
            raise InvalidPipeline("Unique() without a column", "at least one column", "name the key's columns")
        if shards is not None and shards < 0:
            raise InvalidPipeline(f"Unique(shards={shards})", "0 or more", "leave it out to compare with all shards")
        object.__setattr__(self, "names", columns)
        object.__setattr__(self, "shards", shards)

    def columns(self) -> tuple[str, ...]:
        """The columns."""
        return self.names

    def violations(self, rows: Columns, past: Past) -> NDArray[np.bool_]:
        """True for every row whose values another one has."""
        hashes = row_hash(rows, self.names)
        ordered = np.sort(hashes)
        again = published(rows, self.names, hashes, ordered, past, self.shards)
        return again | repeated(rows, self.names, hashes, ordered)

    def explain(self) -> str:
        """The rule."""
        return f"{', '.join(self.names)} unique"

    def limit(self) -> float:
        """None may break it."""
        return 0.0

    @classmethod
    def example(cls) -> Example:
        """Rows that keep it and rows that break it."""
        keeps, breaks = np.array(["x", "y"], dtype=object), np.array(["x", "x", "y"], dtype=object)
        return Example(cls("a"), {"a": keeps}, {"a": breaks})


def repeated(rows: Columns, names: tuple[str, ...], hashes: Hashes, ordered: Hashes) -> NDArray[np.bool_]:
    """True for rows of which there are several in the shard, shape [n]. `ordered` are their hashes, sorted."""
    candidate = among(hashes, ordered[1:][ordered[1:] == ordered[:-1]])
    if candidate.any():  # equal hashes are looked at once more, by value
        keys = _keys(only(rows, candidate), names)
        often = Counter(keys)
        candidate[candidate] = [often[key] > 1 for key in keys]
    return candidate


def published(
    rows: Columns, names: tuple[str, ...], hashes: Hashes, ordered: Hashes, past: Past, shards: int | None = None
) -> NDArray[np.bool_]:
    """True for rows whose values a published row has, shape [n]. `ordered` are their hashes, sorted."""
    marked = np.zeros(1 << _BITS, dtype=np.bool_)
    marked[_places(hashes)] = True
    earlier: set[tuple[object, ...]] = set()
    for part in past.each(*names, shards=shards) if len(hashes) else ():
        theirs = row_hash(part, names)
        met = marked[_places(theirs)]
        met[met] = among(theirs[met], ordered)
        if met.any():
            earlier |= set(_keys(only(part, met), names))
    if not earlier:
        return np.zeros(len(hashes), dtype=np.bool_)
    values = {name: np.array([key[at] for key in earlier], dtype=rows[name].dtype) for at, name in enumerate(names)}
    candidate = among(hashes, np.sort(row_hash(values, names)))
    candidate[candidate] = [key in earlier for key in _keys(only(rows, candidate), names)]
    return candidate


def among(hashes: Hashes, ordered: Hashes) -> NDArray[np.bool_]:
    """True for hashes that stand in a sorted array, shape [n]."""
    if not len(ordered):
        return np.zeros(len(hashes), dtype=np.bool_)
    at = np.minimum(np.searchsorted(ordered, hashes), len(ordered) - 1)
    return np.asarray(ordered[at] == hashes, dtype=np.bool_)


def _places(hashes: Hashes) -> Hashes:
    """Where a hash is marked: most published rows are told apart by this alone."""
    places: Hashes = (hashes >> (64 - _BITS)) & ((1 << _BITS) - 1)
    return places


def _keys(rows: Columns, names: tuple[str, ...]) -> list[tuple[object, ...]]:
    """The rows' values, in which one missing number is like another."""
    columns = ((None if value != value else value for value in rows[name]) for name in names)
    return list(zip(*columns, strict=True))
