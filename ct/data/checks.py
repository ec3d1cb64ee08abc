"""Quality checks: rules over the rows of one arriving shard, and running them. Pure; what follows from a breach is ingest's business."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ct.data.columns import NO_TIME
from ct.errors import InvalidPipeline
from ct.pipeline import Check, Columns

EXAMPLES = 3
_FEW = 30


@dataclass(frozen=True)
class Reason:
    """Why a shard was refused: the check, what was found, the number of rows, and a few of them."""

    check: str
    found: str
    rows: int
    examples: tuple[str, ...] = ()


def missing(values: NDArray[Any]) -> NDArray[np.bool_]:
    """True where a value is missing, shape [n]."""
    if values.dtype == object:
        return np.fromiter((value is None for value in values), dtype=np.bool_, count=len(values))
    if values.dtype.kind == "f":
        return np.isnan(values)
    return np.asarray(values == NO_TIME)


@dataclass(frozen=True)
class _NotNull:
    names: tuple[str, ...]
    share: float

    def columns(self) -> tuple[str, ...]:
        return self.names

    def violations(self, rows: Columns, past: Columns | None) -> NDArray[np.bool_]:
        return np.logical_or.reduce([missing(rows[name]) for name in self.names])

    def explain(self) -> str:
        return f"{', '.join(self.names)} not missing"

    def limit(self) -> float:
        return self.share


def NotNull(*columns: str, share: float = 0.0) -> Check:
    """No value of `columns` is missing, in all but a `share` of the rows."""
    if not columns:
        raise InvalidPipeline("NotNull() without a column", "at least one column", "name the columns")
    return _NotNull(columns, _share(share))


@dataclass(frozen=True)
class Within:
    """Numbers of `column` lie in [low, high], in all but a `share` of the rows. Missing values pass."""

    column: str
    low: float
    high: float
    share: float = 0.0

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise InvalidPipeline(f"Within({self.column!r}, {self.low}, {self.high})", "low <= high", "swap the bounds")
        _share(self.share)

    def columns(self) -> tuple[str, ...]:
        """The column."""
        return (self.column,)

    def violations(self, rows: Columns, past: Columns | None) -> NDArray[np.bool_]:
        """True outside the bounds."""
        values = rows[self.column]
        return np.asarray((values < self.low) | (values > self.high))

    def explain(self) -> str:
        """The rule."""
        return f"{self.column} in [{self.low:g}, {self.high:g}]"

    def limit(self) -> float:
        """The allowed share."""
        return self.share


@dataclass(frozen=True)
class OneOf:
    """Texts of `column` are among `values`. Missing values pass."""

    column: str
    values: Sequence[str]
    share: float = 0.0

    def columns(self) -> tuple[str, ...]:
        """The column."""
        return (self.column,)

    def violations(self, rows: Columns, past: Columns | None) -> NDArray[np.bool_]:
        """True for any other text."""
        known = {*self.values, None}
        return np.fromiter((value not in known for value in rows[self.column]), dtype=np.bool_, count=len(rows[self.column]))

    def explain(self) -> str:
        """The rule."""
        return f"{self.column} one of {list(self.values)}"

    def limit(self) -> float:
        """The allowed share."""
        return self.share


@dataclass(frozen=True)
class _Unique:
    names: tuple[str, ...]

    def columns(self) -> tuple[str, ...]:
        return self.names

    def violations(self, rows: Columns, past: Columns | None) -> NDArray[np.bool_]:
        keys = list(zip(*(rows[name] for name in self.names), strict=True))
        earlier = set(zip(*(past[name] for name in self.names), strict=True)) if past else set()
        often = Counter(keys)
        return np.fromiter((often[key] > 1 or key in earlier for key in keys), dtype=np.bool_, count=len(keys))

    def explain(self) -> str:
        return f"{', '.join(self.names)} unique"

    def limit(self) -> float:
        return 0.0


def Unique(*columns: str) -> Check:
    """No two rows of a shard, and no row of it and of the newest published shard, share the values of `columns`."""
    if not columns:
        raise InvalidPipeline("Unique() without a column", "at least one column", "name the key's columns")
    return _Unique(columns)


@dataclass(frozen=True)
class Steady:
    """Each group's median of `column` stays within a factor of 1 ± `within` of the newest published shard's.

    Catches a unit that changed for one source only. Groups with fewer than 30 rows on either side are not compared.
    """

    column: str
    by: str
    within: float = 0.25

    def __post_init__(self) -> None:
        if not self.within > 0:
            raise InvalidPipeline(f"Steady(within={self.within})", "more than 0", "for example 0.25")

    def columns(self) -> tuple[str, ...]:
        """The column and the group."""
        return (self.column, self.by)

    def violations(self, rows: Columns, past: Columns | None) -> NDArray[np.bool_]:
        """True for all rows of a group that moved."""
        broken = np.zeros(len(rows[self.by]), dtype=np.bool_)
        if past is None:
            return broken
        before, now = self._medians(past), self._medians(rows)
        for group, median in now.items():
            if group in before and abs(median - before[group]) > self.within * abs(before[group]):
                broken |= rows[self.by] == group
        return broken

    def explain(self) -> str:
        """The rule."""
        return f"median {self.column} of each {self.by} steady within {self.within:.0%}"

    def limit(self) -> float:
        """No row may break it."""
        return 0.0

    def _medians(self, rows: Columns) -> dict[str, float]:
        groups, values = rows[self.by], rows[self.column]
        present = ~missing(groups) & ~np.isnan(values)
        found = {}
        for group in sorted(set(groups[present])):
            chosen = values[present & (groups == group)]
            if len(chosen) >= _FEW:
                found[group] = float(np.median(chosen))
        return found


def _share(share: float) -> float:
    if not 0 <= share < 1:
        raise InvalidPipeline(f"share={share}", "a share in [0, 1)", "for example 0.01 for one row in a hundred")
    return share


def run(checks: Iterable[Check], rows: Columns, past: Columns | None) -> tuple[Reason, ...]:
    """The checks that the rows break beyond their limit."""
    reasons = []
    for check in checks:
        broken = np.asarray(check.violations(rows, past))
        count, total = int(broken.sum()), len(broken)
        if count > check.limit() * total:
            allowed = f" (allowed {check.limit():.2%})" if check.limit() else ""
            found = f"{check.explain()}: broken by {count:,} of {total:,} rows{allowed}{_where(check, rows, past, broken)}"
            reasons.append(Reason(check.explain(), found, count, _examples(check, rows, broken)))
    return tuple(reasons)


def _where(check: Check, rows: Columns, past: Columns | None, broken: NDArray[np.bool_]) -> str:
    """Where the broken rows sit: the groups of a Steady check with their medians, the days of the others."""
    if isinstance(check, Steady) and past is not None:
        before, now = check._medians(past), check._medians(rows)
        groups = sorted(set(rows[check.by][broken]))
        return ", " + "; ".join(f"{check.by} {group}: median {before[group]:g} -> {now[group]:g}" for group in groups)
    times = next((values for values in rows.values() if values.dtype == np.int64), None)
    if times is None:
        return ""
    days = sorted({_day(value) for value in times[broken & (times != NO_TIME)]})
    return f", on {days[0]}" if len(days) == 1 else f", between {days[0]} and {days[-1]}" if days else ""


def _day(value: int) -> str:
    return f"{datetime.fromtimestamp(value / 1e6, UTC):%Y-%m-%d}"


def _examples(check: Check, rows: Columns, broken: NDArray[np.bool_]) -> tuple[str, ...]:
    names = check.columns()
    return tuple(
        f"row {index}: " + ", ".join(f"{name}={rows[name][index]}" for name in names)
        for index in np.flatnonzero(broken)[:EXAMPLES]
    )
