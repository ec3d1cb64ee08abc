"""Keys that come once: within the shard, and against those that are published."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ct.data.checks import Example, only
from ct.data.columns import count
from ct.data.hashing import row_hash
from ct.errors import InvalidPipeline
from ct.roles import Columns, Past


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
        return repeated(rows, self.names) | published(rows, self.names, past, self.shards)

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


def repeated(rows: Columns, names: tuple[str, ...]) -> NDArray[np.bool_]:
    """True for rows of which there are several in the shard, shape [n]."""
    hashes = row_hash(rows, names)
    candidate = np.isin(hashes, _twice(np.sort(hashes))) if count(rows) else np.zeros(0, dtype=np.bool_)
    if candidate.any():  # equal hashes are looked at once more, by value
        keys = _keys(only(rows, candidate), names)
        often = Counter(keys)
        candidate[candidate] = [often[key] > 1 for key in keys]
    return candidate


def published(rows: Columns, names: tuple[str, ...], past: Past, shards: int | None = None) -> NDArray[np.bool_]:
    """True for rows whose values a published row has, shape [n]."""
    ours = np.empty(0, dtype=np.int64)
    earlier: set[tuple[object, ...]] = set()
    for part in past.each(*names, shards=shards) if count(rows) else ():
        ours = ours if len(ours) else row_hash(rows, names)
        theirs = row_hash(part, names)
        met = _twice(np.sort(np.concatenate([np.unique(ours), np.unique(theirs)])))
        if len(met):
            earlier |= set(_keys(only(part, np.isin(theirs, met)), names))
    if not earlier:
        return np.zeros(count(rows), dtype=np.bool_)
    values = {name: np.array([key[at] for key in earlier], dtype=rows[name].dtype) for at, name in enumerate(names)}
    candidate = np.isin(ours, row_hash(values, names))
    candidate[candidate] = [key in earlier for key in _keys(only(rows, candidate), names)]
    return candidate


def _twice(ordered: NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers that stand there more than once."""
    found: NDArray[np.int64] = ordered[1:][ordered[1:] == ordered[:-1]]
    return found


def _keys(rows: Columns, names: tuple[str, ...]) -> list[tuple[object, ...]]:
    """The rows' values, in which one missing number is like another."""
    columns = ((None if value != value else value for value in rows[name]) for name in names)
    return list(zip(*columns, strict=True))
