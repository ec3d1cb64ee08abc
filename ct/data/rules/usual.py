"""Numbers like those of earlier shards."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ct.data.checks import Example, share
from ct.data.columns import count, is_text
from ct.data.past import Before
from ct.errors import InvalidPipeline
from ct.roles import Columns, Past


@dataclass(frozen=True)
class Usual:
    """Numbers of `column` lie within `times` the interquartile range around the quartiles of all published shards, in all but a `share` of the rows.

    The fences are Tukey's (1977), out of the shards' profiles: robust, so that earlier outliers do not widen them. Where the middle half
    is one value, the range from the 1st to the 99th percentile stands for it; a column that never varied, and a first shard, are not judged.
    """

    column: str
    times: float = 3.0
    share: float = 0.01

    def __post_init__(self) -> None:
        if not self.times > 0:
            raise InvalidPipeline(f"Usual(times={self.times})", "more than 0", "for example 3")
        share(self.share)

    def columns(self) -> tuple[str, ...]:
        """The column."""
        return (self.column,)

    def violations(self, rows: Columns, past: Past) -> NDArray[np.bool_]:
        """True beyond the fences."""
        if is_text(rows, self.column):
            raise TypeError(f"{self.column} is a column of text")
        known = past.quantiles(self.column, 0.01, 0.25, 0.75, 0.99)
        if known is None:
            return np.zeros(count(rows), dtype=np.bool_)
        low, first, third, high = known
        spread = third - first if third > first else high - low
        if not spread > 0:
            return np.zeros(count(rows), dtype=np.bool_)
        values = rows[self.column]
        return np.asarray((values < first - self.times * spread) | (values > third + self.times * spread))

    def explain(self) -> str:
        """The rule."""
        return f"{self.column} as in earlier shards, within {self.times:g} interquartile ranges"

    def limit(self) -> float:
        """The allowed share."""
        return self.share

    @classmethod
    def example(cls) -> Example:
        """Rows that keep it and rows that break it."""
        usual = np.arange(100.0)
        return Example(cls("a"), {"a": usual}, {"a": usual * 1000}, Before(shards=({"a": usual},)))
