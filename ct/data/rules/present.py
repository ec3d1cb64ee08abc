"""Classes that have not vanished."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ct.data.checks import Example
from ct.data.columns import codes, count, is_text, texts
from ct.data.past import Before
from ct.errors import InvalidPipeline
from ct.roles import Columns, Past


@dataclass(frozen=True)
class Present:
    """Each text of `column` that made up at least the share `least` of the newest published shard is there again.

    A shard of less than 10 / least rows is too small to be judged.
    """

    column: str
    least: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.least <= 1:
            raise InvalidPipeline(f"Present(least={self.least})", "a share in (0, 1]", "for example 0.05")

    def columns(self) -> tuple[str, ...]:
        """The column."""
        return (self.column,)

    def violations(self, rows: Columns, past: Past) -> NDArray[np.bool_]:
        """One truth value."""
        return np.asarray(bool(self._vanished(rows, past)))

    def found(self, rows: Columns, past: Past) -> str:
        """Which texts vanished."""
        return f"no row with {self.column} {', '.join(value[:40] for value in self._vanished(rows, past)[:5])}"

    def _vanished(self, rows: Columns, past: Past) -> list[str]:
        if not is_text(rows, self.column):
            raise TypeError(f"{self.column} is no column of text")
        known = past.newest(self.column)
        if known is None or count(rows) * self.least < 10:
            return []
        index, values = codes(texts(known, self.column))
        often = np.bincount(index[index >= 0], minlength=len(values))
        now, there = codes(texts(rows, self.column))
        left = {there[at] for at in np.unique(now[now >= 0])}
        usual = np.flatnonzero(often >= self.least * count(known))
        return sorted(values[at] for at in usual if often[at] and values[at] not in left)

    def explain(self) -> str:
        """The rule."""
        return f"no {self.column} vanishes that held {self.least:.0%} of the rows"

    def limit(self) -> float:
        """None may break it."""
        return 0.0

    @classmethod
    def example(cls) -> Example:
        """Rows that keep it and rows that break it."""
        both, one = np.array(["x", "y"] * 50, dtype=object), np.array(["x"] * 100, dtype=object)
        return Example(cls("a", least=0.2), {"a": both}, {"a": one}, Before(shards=({"a": both},)))
