"""A time of the row as a place on a circle: the hour of the day, the day of the week, the month of the year."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache
from typing import cast
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
from numpy.typing import NDArray

from ct.errors import InvalidPipeline
from ct.features.kinds.naming import Made, Times, names_of
from ct.roles import Column, Columns, Feature, History, Lookup

_QUARTER = 900_000_000
_FIRST, _LAST = -62_000_000_000_000_000, 253_000_000_000_000_000  # years 5 to 9987: beyond, a time counts as missing
_CYCLES = {"hour": 24 * 60, "weekday": 7, "month": 12}


@dataclass(frozen=True)
class Cyclic:
    """A time as sine and cosine of its place in the day, week or year, by the wall clock of `tz`.

    Where the clock is set back, both passes of the repeated hour have the same place; the skipped hour does not occur.
    """

    column: str
    parts: tuple[str, ...]
    tz: str = "UTC"

    def __post_init__(self) -> None:
        for part in names_of(self.parts, "cyclic"):
            if part not in _CYCLES:
                raise InvalidPipeline(f"cyclic part {part!r}", f"one of {sorted(_CYCLES)}", "check the spelling")
        try:
            ZoneInfo(self.tz)
        except (ZoneInfoNotFoundError, ValueError):
            raise InvalidPipeline(
                f"there is no time zone {self.tz!r}", "a name such as America/New_York", "check the spelling"
            ) from None

    @classmethod
    def example(cls) -> Cyclic:
        """A departure in New York."""
        return cls("leaves", ("hour", "weekday", "month"), "America/New_York")

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
        known = np.where(absent, 0, stamps)
        wall = known + _offsets(self.tz, known // _QUARTER)
        made: Made = {}
        for part in self.parts:
            place = _place(wall, part)
            for wave, circle in zip(("sin", "cos"), _circle(_CYCLES[part]), strict=True):
                made[f"{self.column}_{part}_{wave}"] = np.where(absent, np.nan, circle[place])
        return made


def _offsets(tz: str, quarters: NDArray[np.int64]) -> NDArray[np.int64]:
    if len(quarters) == 1:
        return np.array([_offset(tz, int(quarters[0]))])
    different, place = np.unique(quarters, return_inverse=True)
    return np.array([_offset(tz, quarter) for quarter in different.tolist()], dtype=np.int64)[place]


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


def cyclic(column: str, *parts: str, tz: str = "UTC") -> Feature:
    """A time as place in the "hour" of day, "weekday" or "month" of year, by the wall clock of `tz`."""
    return Cyclic(column, names_of(parts, "cyclic"), tz)
