"""Numbers between two bounds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ct.data.checks import Example, share
from ct.errors import InvalidPipeline
from ct.roles import Columns, Past


@dataclass(frozen=True)
class Within:
    """Numbers of `column` lie in [low, high], in all but a `share` of the rows. Missing values pass, infinite ones do not."""

    column: str
    low: float
    high: float
    share: float = 0.0

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise InvalidPipeline(f"Within({self.column!r}, {self.low}, {self.high})", "low <= high", "swap the bounds")
        share(self.share)

    def columns(self) -> tuple[str, ...]:
        """The column."""
        return (self.column,)

    def violations(self, rows: Columns, past: Past) -> NDArray[np.bool_]:
        """True outside the bounds."""
        values = rows[self.column]
        return np.asarray((values < self.low) | (values > self.high) | np.isinf(values))

    def explain(self) -> str:
        """The rule."""
        return f"{self.column} in [{self.low:g}, {self.high:g}]"

    def limit(self) -> float:
        """The allowed share."""
        return self.share

    @classmethod
    def example(cls) -> Example:
        """Rows that keep it and rows that break it."""
        return Example(cls("a", 0, 1), {"a": np.array([0.0, 1.0, np.nan])}, {"a": np.array([0.5, 1.1, np.inf])})
