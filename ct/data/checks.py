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
        return np.asarray(np.logical_or.reduce([missing(rows[name]) for name in self.names]), dtype=np.bool_)

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
        _share(self.share)

    def columns(self) -> tuple[str, ...]:
        """The column and the group."""
        return (self.column, *self._by)

    @property
    def _by(self) -> tuple[str, ...]:
        return (self.by,) if isinstance(self.by, str) else tuple(self.by)

    def violations(self, rows: Columns, past: Columns | None) -> NDArray[np.bool_]:
        """True for rows that are far from their group's earlier median."""
        if past is None:
            return np.zeros(len(rows[self.column]), dtype=np.bool_)
        groups: dict[tuple[str, ...], list[float]] = {}
        for group, value in zip(zip(*(past[name] for name in self._by), strict=True), past[self.column], strict=True):
            if not np.isnan(value):
                groups.setdefault(group, []).append(value)
        usual = {group: float(np.median(values)) for group, values in groups.items()}
        expected = np.array([usual.get(group, np.nan) for group in zip(*(rows[name] for name in self._by), strict=True)])
        return np.asarray(np.abs(rows[self.column] - expected) > self.within * np.abs(expected))

    def explain(self) -> str:
        """The rule."""
        return f"{self.column} of each {' and '.join(self._by)} steady within {self.within:.0%}"

    def limit(self) -> float:
        """The allowed share."""
        return self.share


def _share(share: float) -> float:
    if not 0 <= share < 1:
        raise InvalidPipeline(f"share={share}", "a share in [0, 1)", "for example 0.01 for one row in a hundred")
    return share


def run(checks: Iterable[Check], rows: Columns, past: Columns | None) -> tuple[Reason, ...]:
    """The checks that the rows break beyond their limit. Columns that no check reads help to say where the broken rows sit."""
    reasons = []
    for check in checks:
        broken = np.asarray(check.violations(rows, past))
        count, total = int(broken.sum()), len(broken)
        if count > check.limit() * total:
            allowed = f" (allowed {check.limit():.2%})" if check.limit() else ""
            found = f"{check.explain()}: broken by {count:,} of {total:,} rows{allowed}{_where(rows, broken)}"
            reasons.append(Reason(check.explain(), found, count, _examples(check, rows, broken)))
    return tuple(reasons)


def _where(rows: Columns, broken: NDArray[np.bool_]) -> str:
    """Where the broken rows sit: their days, and any text that nearly all of them and few others share."""
    parts = []
    times = next((values for values in rows.values() if values.dtype == np.int64), None)
    if times is not None and (days := sorted({_day(value) for value in times[broken & (times != NO_TIME)]})):
        parts.append(f"on {days[0]}" if len(days) == 1 else f"from {days[0]} to {days[-1]}")
    for name, values in rows.items():
        if values.dtype == object:
            value, count = Counter(values[broken]).most_common(1)[0]
            if value is not None and count >= 0.9 * broken.sum() and (values == value).mean() < 0.5:
                parts.append(f"{count / broken.sum():.0%} of them with {name} {value}")
    return ", " + ", ".join(parts) if parts else ""


def _day(value: int) -> str:
    return f"{datetime.fromtimestamp(value / 1e6, UTC):%Y-%m-%d}"


def _examples(check: Check, rows: Columns, broken: NDArray[np.bool_]) -> tuple[str, ...]:
    names = check.columns()
    return tuple(
        f"row {index}: " + ", ".join(f"{name}={rows[name][index]}" for name in names)
        for index in np.flatnonzero(broken)[:EXAMPLES]
    )
