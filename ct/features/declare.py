"""What a user declares as features: numeric, category, cyclic, latest, window. Each is a frozen value that computes whole columns.

A feature computes from the row's own columns and from what was known strictly before the row's time. The same code serves one row
or a million, so that training and serving cannot differ. `to_spec` and `from_spec` carry features as data, never as code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from functools import cache, cached_property, lru_cache
from typing import Any, cast
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
from numpy.typing import NDArray

from ct.clock import duration
from ct.errors import Corrupt, InvalidPipeline
from ct.features import spans
from ct.features.transform import numbers, texts
from ct.pipeline import Table
from ct.roles import Column, Columns, Feature, History, Lookup

Made = dict[str, NDArray[Any]]
Times = NDArray[np.int64]


@dataclass(frozen=True)
class Numeric:
    """The row's own numbers; with `log`, log(1 + x) of values above -1 and missing otherwise."""

    names: tuple[str, ...]
    log: bool = False

    def outputs(self) -> tuple[Column, ...]:
        """One number for each column."""
        return tuple(Column(name, "numeric") for name in self.names)

    def inputs(self) -> tuple[str, ...]:
        """The columns themselves."""
        return self.names

    def lookups(self) -> tuple[Lookup, ...]:
        """None."""
        return ()

    def compute(self, rows: Columns, times: Times, history: History) -> Made:
        """The columns, or their logarithms."""
        made: Made = {name: numbers(rows, name) for name in self.names}
        return {name: _log1p(values) for name, values in made.items()} if self.log else made


def _log1p(values: NDArray[np.float64]) -> NDArray[np.float64]:
    # One number at a time: numpy's own loop may round otherwise for one value than for eight.
    return np.array([math.log1p(value) if value > -1 else math.nan for value in values.tolist()], dtype=np.float64)


@dataclass(frozen=True)
class Category:
    """The row's own texts; numbers become text, whole ones without a point."""

    names: tuple[str, ...]

    def outputs(self) -> tuple[Column, ...]:
        """One category for each column."""
        return tuple(Column(name, "category") for name in self.names)

    def inputs(self) -> tuple[str, ...]:
        """The columns themselves."""
        return self.names

    def lookups(self) -> tuple[Lookup, ...]:
        """None."""
        return ()

    def compute(self, rows: Columns, times: Times, history: History) -> Made:
        """The columns."""
        return {name: texts(rows, name) for name in self.names}


_QUARTER = 900_000_000
_FIRST, _LAST = -62_000_000_000_000_000, 253_000_000_000_000_000  # years 5 to 9987: beyond, a time counts as missing
_CYCLES = {"hour": 24 * 60, "weekday": 7, "month": 12}


@dataclass(frozen=True)
class Cyclic:
    """A time as sine and cosine of its place in the day, week or year, by the wall clock of `tz`."""

    column: str
    parts: tuple[str, ...]
    tz: str = "UTC"

    def outputs(self) -> tuple[Column, ...]:
        """Two numbers for each part."""
        return tuple(Column(f"{self.column}_{part}_{wave}", "numeric") for part in self.parts for wave in ("sin", "cos"))

    def inputs(self) -> tuple[str, ...]:
        """The time."""
        return (self.column,)

    def lookups(self) -> tuple[Lookup, ...]:
        """None."""
        return ()

    def compute(self, rows: Columns, times: Times, history: History) -> Made:
        """Sines and cosines; missing where the time is. Raises InvalidPipeline when the column holds no times."""
        stamps = rows[self.column]
        if stamps.dtype != np.int64:
            raise InvalidPipeline(
                f"cyclic column {self.column!r} holds no times", "a column of timestamps", "name another column"
            )
        absent = (stamps < _FIRST) | (stamps >= _LAST)
        quarters = np.where(absent, 0, stamps) // _QUARTER
        offsets = [_offset(self.tz, quarter) for quarter in quarters.tolist()]
        wall = np.where(absent, 0, stamps) + np.array(offsets, dtype=np.int64)
        made: Made = {}
        for part in self.parts:
            place = _place(wall, part)
            for wave, circle in zip(("sin", "cos"), _circle(_CYCLES[part]), strict=True):
                made[f"{self.column}_{part}_{wave}"] = np.where(absent, np.nan, circle[place])
        return made


@lru_cache(maxsize=1 << 17)
def _offset(tz: str, quarter: int) -> int:
    """What a zone's clocks are ahead of UTC, in microseconds, in a quarter of an hour since 1970. Clocks change between quarters."""
    moment = datetime.fromtimestamp(quarter * 900, UTC).astimezone(ZoneInfo(tz))
    return round(cast(timedelta, moment.utcoffset()).total_seconds() * 1e6)


def _place(wall: NDArray[np.int64], part: str) -> NDArray[np.int64]:
    """Minute of the day, day of the week from Monday, or month of the year, from zero."""
    if part == "month":
        return wall.view("datetime64[us]").astype("datetime64[M]").astype(np.int64) % 12
    minutes = wall // 60_000_000
    return minutes % 1440 if part == "hour" else (minutes // 1440 + 3) % 7  # 1 January 1970 was a Thursday


@cache
def _circle(places: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sine and cosine of each place on a circle."""
    angles = [2.0 * math.pi * place / places for place in range(places)]
    return np.array([math.sin(angle) for angle in angles]), np.array([math.cos(angle) for angle in angles])


@dataclass(frozen=True)
class Latest:
    """The newest numbers of another table's row with the same key, known strictly before and at most `within` ago; missing otherwise."""

    table: str
    by: tuple[str, ...]
    names: tuple[str, ...]
    known_at: str
    within: str

    def outputs(self) -> tuple[Column, ...]:
        """One number for each column."""
        return tuple(Column(f"{self.table}_{name}", "numeric") for name in self.names)

    def inputs(self) -> tuple[str, ...]:
        """Nothing beyond the key."""
        return ()

    def lookups(self) -> tuple[Lookup, ...]:
        """The other table's rows of the last `within`."""
        return (self._lookup,)

    @cached_property
    def _lookup(self) -> Lookup:
        return Lookup(self.table, self.by, self.names, self.known_at, duration(self.within), self.by)

    def compute(self, rows: Columns, times: Times, history: History) -> Made:
        """The newest row's values, missing ones included: a newer unknown is not replaced by an older known."""
        known, start, stop = history.spans(rows, times, self._lookup)
        return {f"{self.table}_{name}": spans.last(known[name], start, stop) for name in self.names}


@dataclass(frozen=True)
class Window:
    """One number of the earlier rows with the same `by` values that became known in the span before: mean, sum, count, min, max, std, last."""

    table: str
    column: str
    by: tuple[str, ...]
    over: str
    agg: str
    known_at: str
    key: tuple[str, ...]

    def outputs(self) -> tuple[Column, ...]:
        """One number."""
        return (Column(f"{self.column}_{self.agg}_by_{'_'.join(self.by)}_{self.over}", "numeric"),)

    def inputs(self) -> tuple[str, ...]:
        """Nothing beyond `by`."""
        return ()

    def lookups(self) -> tuple[Lookup, ...]:
        """The table's rows of the span."""
        return (self._lookup,)

    @cached_property
    def _lookup(self) -> Lookup:
        return Lookup(self.table, self.by, (self.column,), self.known_at, duration(self.over), self.key)

    def compute(self, rows: Columns, times: Times, history: History) -> Made:
        """The number over the values that are not missing; missing when there are none (a count is then 0)."""
        known, start, stop = history.spans(rows, times, self._lookup)
        return {self.outputs()[0].name: spans.AGGREGATES[self.agg](known[self.column], start, stop)}


def numeric(*columns: str, log: bool = False) -> Feature:
    """The row's own numbers, with `log` as log(1 + x)."""
    return Numeric(_names(columns, "numeric"), log)


def category(*columns: str) -> Feature:
    """The row's own texts."""
    return Category(_names(columns, "category"))


def cyclic(column: str, *parts: str, tz: str = "UTC") -> Feature:
    """A time as place in the "hour" of day, "weekday" or "month" of year, by the wall clock of `tz`."""
    for part in _names(parts, "cyclic"):
        if part not in _CYCLES:
            raise InvalidPipeline(f"cyclic part {part!r}", f"one of {sorted(_CYCLES)}", "check the spelling")
    try:
        ZoneInfo(tz)
    except (ZoneInfoNotFoundError, ValueError):
        raise InvalidPipeline(
            f"there is no time zone {tz!r}", "a name such as America/New_York", "check the spelling"
        ) from None
    return Cyclic(column, tuple(parts), tz)


def latest(table: Table, *columns: str, within: str = "3h") -> Feature:
    """The newest numbers of `table`'s row with the same key, observed strictly before and at most `within` ago."""
    duration(within)
    return Latest(table.name, table.keys, _names(columns, "latest"), table.time, within)


def window(
    table: Table, column: str, *, by: str | tuple[str, ...], over: str, agg: str = "mean", known_at: str = ""
) -> Feature:
    """`agg` of `column` over earlier rows of `table` with the same `by`, which became known in the last `over`.

    `known_at` names the time from which a row's value is known; the table's event time by default.
    """
    duration(over)
    if agg not in spans.AGGREGATES:
        raise InvalidPipeline(f"window agg {agg!r}", f"one of {sorted(spans.AGGREGATES)}", "check the spelling")
    by = (by,) if isinstance(by, str) else tuple(by)
    return Window(table.name, column, _names(by, "window"), over, agg, known_at or table.time, table.keys)


def _names(names: tuple[str, ...], what: str) -> tuple[str, ...]:
    if not names or not all(isinstance(name, str) and name for name in names):
        raise InvalidPipeline(f"{what}{names!r}", "names of columns", "name at least one column")
    return tuple(names)


_KINDS: Mapping[str, type[Any]] = {kind.__name__.lower(): kind for kind in (Numeric, Category, Cyclic, Latest, Window)}


def to_spec(feature: Feature) -> dict[str, Any]:
    """A feature as plain data. Raises InvalidPipeline for a kind that serving could not rebuild from data."""
    kind = type(feature).__name__.lower()
    if type(feature) is not _KINDS.get(kind):
        raise InvalidPipeline(f"feature {feature!r} cannot be written as data", f"one of {sorted(_KINDS)}", "use a ready kind")
    values = {field.name: getattr(feature, field.name) for field in fields(feature)}  # type: ignore[arg-type]
    return {"kind": kind, **{key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}}


def from_spec(spec: Mapping[str, Any]) -> Feature:
    """The feature that `to_spec` described. Raises Corrupt for an unknown kind, field or value; nothing is ever imported by name."""
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in spec.items() if key != "kind"}
    kind = _KINDS.get(str(spec.get("kind")))
    if kind is None or set(values) != {field.name for field in fields(kind)}:
        raise Corrupt(f"a feature of kind {spec.get('kind')!r} with {sorted(values)}", f"one of {sorted(_KINDS)}", _UPGRADE)
    if not set(values.get("parts", ())) <= set(_CYCLES) or values.get("agg", "mean") not in spans.AGGREGATES:
        raise Corrupt(f"the feature {dict(spec)!r}", "parts and aggregates that this ct knows", _UPGRADE)
    feature: Feature = kind(**values)
    return feature


_UPGRADE = "upgrade ct, or retrain"
