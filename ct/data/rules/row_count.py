"""How many rows a shard has."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ct.data.checks import Example
from ct.data.columns import count
from ct.errors import InvalidPipeline
from ct.roles import Columns, Past


@dataclass(frozen=True)
class RowCount:
    """A shard has `low` to `high` rows; with `factor`, between 1 / factor and factor times the median of the earlier shards.

    A first shard is held to `low` and `high` alone.
    """

    low: int = 1
    high: int | None = None
    factor: float | None = None

    def __post_init__(self) -> None:
        if self.low < 0 or (self.high is not None and self.high < self.low):
            raise InvalidPipeline(f"RowCount({self.low}, {self.high})", "0 <= low <= high", "mend the bounds")
        if self.factor is not None and not self.factor > 1:
            raise InvalidPipeline(f"RowCount(factor={self.factor})", "more than 1", "for example 3")

    def columns(self) -> tuple[str, ...]:
        """None."""
        return ()

    def violations(self, rows: Columns, past: Past) -> NDArray[np.bool_]:
        """One truth value."""
        low, high = self._band(past)
        return np.asarray(not low <= count(rows) <= high)

    def found(self, rows: Columns, past: Past) -> str:
        """What was found."""
        low, high = self._band(past)
        return f"{count(rows):,} rows; expected {low:,.0f} to {high:,.0f}"

    def _band(self, past: Past) -> tuple[float, float]:
        low, high = float(self.low), float("inf") if self.high is None else float(self.high)
        sizes = past.sizes()
        if self.factor is None or not sizes:
            return low, high
        usual = float(np.median(sizes))
        return max(low, usual / self.factor), min(high, usual * self.factor)

    def explain(self) -> str:
        """The rule."""
        if self.factor is not None:
            return f"as many rows as usual, within a factor of {self.factor:g}"
        return f"{self.low:,} to {self.high:,} rows" if self.high is not None else f"at least {self.low:,} rows"

    def limit(self) -> float:
        """None may break it."""
        return 0.0

    @classmethod
    def example(cls) -> Example:
        """Rows that keep it and rows that break it."""
        return Example(cls(2, 3), {"a": np.zeros(2)}, {"a": np.zeros(4)})
