"""Quality checks: rules over the rows of one arriving shard, and running them. Pure; what follows from a breach is ingest's business."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ct.data.columns import NO_TIME
from ct.errors import InvalidPipeline
from ct.roles import Check, Columns, Past

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
        return np.asarray(np.isnan(values), dtype=np.bool_)
    return np.asarray(values == NO_TIME, dtype=np.bool_)


@dataclass(frozen=True)
class _NotNull:
    names: tuple[str, ...]
    share: float

    def columns(self) -> tuple[str, ...]:
        return self.names

    def violations(self, rows: Columns, past: Past) -> NDArray[np.bool_]:
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

    def violations(self, rows: Columns, past: Past) -> NDArray[np.bool_]:
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

    def violations(self, rows: Columns, past: Past) -> NDArray[np.bool_]:
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

    def violations(self, rows: Columns, past: Past) -> NDArray[np.bool_]:
        keys = list(zip(*(rows[name] for name in self.names), strict=True))
        known = past.newest(*self.names)
        earlier = set(zip(*(known[name] for name in self.names), strict=True)) if known else set()
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

    def violations(self, rows: Columns, past: Past) -> NDArray[np.bool_]:
        """True for rows that are far from their group's earlier median."""
        known = past.newest(*self.columns())
        if known is None:
            return np.zeros(len(rows[self.column]), dtype=np.bool_)
        groups: dict[tuple[str, ...], list[float]] = {}
        for group, value in zip(zip(*(known[name] for name in self._by), strict=True), known[self.column], strict=True):
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


def run(checks: Iterable[Check], rows: Columns, past: Past, *, time: str = "") -> tuple[Reason, ...]:
    """The checks that the rows break beyond their limit, and where the broken rows sit; `time` names the event time's column.

    Raises InvalidPipeline when a check itself fails.
    """
    reasons = []
    for check in checks:
        broken = _broken(check, rows, past)
        count, total = int(broken.sum()), len(broken)
        if count > check.limit() * total:
            allowed = f" (allowed {check.limit():.2%})" if check.limit() else ""
            where = "".join(f", {part}" for part in _where(check, rows, broken, time))
            found = f"{check.explain()}: broken by {count:,} of {total:,} rows{allowed}{where}"
            reasons.append(Reason(check.explain(), found, count, _examples(check, rows, broken)))
    return tuple(reasons)


def _broken(check: Check, rows: Columns, past: Past) -> NDArray[np.bool_]:
    total = len(next(iter(rows.values()))) if rows else 0
    try:
        broken = np.asarray(check.violations(rows, past), dtype=np.bool_)
    except Exception as error:  # a user's check may raise anything
        found = f"check {check!r} fails: {type(error).__name__}: {error}"
        raise InvalidPipeline(found, "a check that fits the column's type", "mend the check") from error
    if broken.shape != (total,):
        raise InvalidPipeline(f"check {check!r} returns shape {broken.shape}", f"one truth value a row, ({total},)", "mend it")
    return broken


def _where(check: Check, rows: Columns, broken: NDArray[np.bool_], time: str) -> Iterator[str]:
    """Where the broken rows sit: what they lack, their days, and any text that nearly all of them and few others share."""
    count = int(broken.sum())
    for name in check.columns():
        if lacking := int(missing(rows[name][broken]).sum()):
            yield f"{name} missing in {lacking:,}"
    if time in rows and rows[time].dtype == np.int64:
        days = sorted({_day(value) for value in rows[time][broken] if value != NO_TIME})
        if days:
            yield f"on {days[0]}" if len(days) == 1 else f"from {days[0]} to {days[-1]}"
    for name, values in rows.items():
        if values.dtype == object:
            value, often = Counter(values[broken]).most_common(1)[0]
            if value is not None and often >= 0.9 * count and (values == value).mean() < 0.5:
                yield f"{often / count:.0%} of them with {name} {value[:40]}"


def _day(value: int) -> str:
    return _moment(value)[:10]


def _moment(value: int) -> str:
    # Not datetime.fromtimestamp: a broken time may lie in any year.
    return f"{np.datetime64(int(value), 'us').astype('datetime64[s]')}Z"


def _examples(check: Check, rows: Columns, broken: NDArray[np.bool_]) -> tuple[str, ...]:
    names = check.columns()
    return tuple(
        f"row {index}: " + ", ".join(f"{name}={_shown(rows[name][index])}" for name in names)
        for index in np.flatnonzero(broken)[:EXAMPLES]
    )


def _shown(value: Any) -> str:
    if isinstance(value, np.int64):
        return "missing" if value == NO_TIME else _moment(int(value))
    if isinstance(value, float):
        return "missing" if np.isnan(value) else f"{value:.6g}"
    return "missing" if value is None else repr(value[:40])
