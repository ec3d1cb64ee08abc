"""What a group fixes stays what it was."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ct.data.checks import Example, share
from ct.data.columns import codes, count, is_text, missing, texts
from ct.data.past import Before
from ct.errors import InvalidPipeline
from ct.roles import Columns, Past

Places: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class Steady:
    """A row's `column` lies within a factor of 1 ± `within` of its group's median in the newest published shard.

    For what a group fixes, such as a route's distance: catches a unit that changed for some rows only. New groups are not compared.
    """

    column: str
    by: str | tuple[str, ...]
    within: float = 0.1
    share: float = 0.0

    def __post_init__(self) -> None:
        if not self.within > 0:
            raise InvalidPipeline(f"Steady(within={self.within})", "more than 0", "for example 0.1")
        share(self.share)

    def columns(self) -> tuple[str, ...]:
        """The column and the group."""
        return (self.column, *self._by)

    @property
    def _by(self) -> tuple[str, ...]:
        return (self.by,) if isinstance(self.by, str) else tuple(self.by)

    def violations(self, rows: Columns, past: Past) -> NDArray[np.bool_]:
        """True for rows that are far from their group's earlier median."""
        known = past.newest(*self.columns())
        if known is None:
            return np.zeros(count(rows), dtype=np.bool_)
        size, theirs, ours = _groups(known, rows, self._by)
        medians = np.append(_medians(size, theirs, known[self.column]), np.nan)  # a new group has none
        expected = medians[ours]
        return np.asarray(np.abs(rows[self.column] - expected) > self.within * np.abs(expected))

    def explain(self) -> str:
        """The rule."""
        return f"{self.column} of each {' and '.join(self._by)} steady within {self.within:.0%}"

    def limit(self) -> float:
        """The allowed share."""
        return self.share

    @classmethod
    def example(cls) -> Example:
        """Rows that keep it and rows that break it."""
        before = {"a": np.array([1.0, 5.0]), "g": np.array(["x", "y"], dtype=object)}
        return Example(cls("a", by="g"), before, {**before, "a": np.array([1.0, 8.0])}, Before(shards=(before,)))


def _groups(known: Columns, rows: Columns, names: tuple[str, ...]) -> tuple[int, Places, Places]:
    """The number of groups in `known`, each of its rows' group, and the same group for each of `rows`: the number itself where it is new."""
    size, theirs, ours = 1, np.zeros(count(known), dtype=np.int64), np.zeros(count(rows), dtype=np.int64)
    fresh = np.zeros(count(rows), dtype=np.bool_)
    for name in names:
        before, now = _coded(known, name), _coded(rows, name)
        place = {value: at for at, value in enumerate(before[1])}
        same = np.array([place.get(value, -1) for value in now[1]], dtype=np.int64)[now[0]]
        fresh |= same < 0
        theirs, ours, size = theirs * len(place) + before[0], ours * len(place) + same, size * len(place)
        if size > 1 << 22:
            held, theirs = np.unique(theirs, return_inverse=True)
            at = np.minimum(np.searchsorted(held, ours), len(held) - 1)
            fresh |= held[at] != ours
            ours, size = at, len(held)
    return size, theirs, np.where(fresh, size, ours)


def _coded(rows: Columns, name: str) -> tuple[Places, list[Any]]:
    """A column as places in the list of its distinct values, of which the last is that of missing ones."""
    if is_text(rows, name):
        index, distinct = codes(texts(rows, name))
        return np.where(index < 0, len(distinct), index), [*distinct, None]
    held, at = np.unique(np.where(missing(rows, name), np.nan, rows[name]), return_inverse=True)
    return at, [None if value != value else value for value in held]


def _medians(size: int, groups: Places, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The median of each group's values that are not missing, NaN without any, shape [size]."""
    there = ~np.isnan(values)
    groups, values = groups[there], values[there]
    low, high = np.full(size, np.inf), np.full(size, -np.inf)
    np.minimum.at(low, groups, values)
    np.maximum.at(high, groups, values)
    medians = np.where(low == high, low, np.nan)
    open_ = (low < high)[groups]  # the others hold one value alone
    groups, values = groups[open_], values[open_]
    order = np.lexsort((values, groups))
    distinct, first, often = np.unique(groups[order], return_index=True, return_counts=True)
    values = values[order]
    medians[distinct] = (values[first + (often - 1) // 2] + values[first + often // 2]) / 2
    return medians
