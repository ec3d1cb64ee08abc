"""Times near the moment of arrival."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import numpy as np
from numpy.typing import NDArray

from ct.clock import duration
from ct.data.checks import Example, share
from ct.data.columns import NO_TIME
from ct.data.past import Before
from ct.roles import Columns, Past

_DAY = 86_400_000_000


@dataclass(frozen=True)
class Fresh:
    """Times of `column` are at most `within` before the shard's arrival and `ahead` after it, in all but a `share` of the rows.

    Missing values pass.
    """

    column: str
    within: str
    ahead: str = "1d"
    share: float = 0.0

    def __post_init__(self) -> None:
        _microseconds(self.within)
        _microseconds(self.ahead)
        share(self.share)

    def columns(self) -> tuple[str, ...]:
        """The column."""
        return (self.column,)

    def violations(self, rows: Columns, past: Past) -> NDArray[np.bool_]:
        """True for times too old, or too far in the future."""
        at = rows[self.column]
        low, high = past.now - _microseconds(self.within), past.now + _microseconds(self.ahead)
        return np.asarray(((at < low) | (at > high)) & (at != NO_TIME))

    def explain(self) -> str:
        """The rule."""
        return f"{self.column} from {self.within} before arrival to {self.ahead} after"

    def limit(self) -> float:
        """The allowed share."""
        return self.share

    @classmethod
    def example(cls) -> Example:
        """Rows that keep it and rows that break it."""
        now = 20_000 * _DAY
        keeps, breaks = np.array([now - _DAY, now, NO_TIME]), np.array([now, 0, 10**16, now])
        return Example(cls("t", within="7d"), {"t": keeps}, {"t": breaks}, Before(now))


def _microseconds(text: str) -> int:
    return duration(text) // timedelta(microseconds=1)
