"""What a group fixes stays what it was."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ct.data.checks import Example, share
from ct.data.columns import count
from ct.data.hashing import row_hash
from ct.data.past import Before
from ct.errors import InvalidPipeline
from ct.roles import Columns, Past


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
        groups, medians = _medians(row_hash(known, self._by), known[self.column])
        if not len(groups):
            return np.zeros(count(rows), dtype=np.bool_)
        asked = row_hash(rows, self._by)
        at = np.minimum(np.searchsorted(groups, asked), len(groups) - 1)
        expected = np.where(groups[at] == asked, medians[at], np.nan)
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


def _medians(groups: NDArray[np.int64], values: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Each group's hash, in order, and the median of its values that are not missing."""
    there = ~np.isnan(values)
    groups, values = groups[there], values[there]
    order = np.lexsort((values, groups))
    groups, values = groups[order], values[order]
    distinct, first, size = np.unique(groups, return_index=True, return_counts=True)
    return distinct, (values[first + (size - 1) // 2] + values[first + size // 2]) / 2
