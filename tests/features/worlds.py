"""Small random worlds for the tests of features: a table of trips with several time ties, and a slow, obvious way to compute windows."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from ct import category, cyclic, latest, numeric, window
from ct.data.columns import NO_TIME
from ct.data.hashing import row_hash
from ct.data.tables import ShardFile
from ct.ids import sha256_file
from ct.pipeline import Label, Pipeline, Table

HOUR = 3_600_000_000
START = 1_356_998_400_000_000  # 1 January 2013
TRIPS = Table("trips", key="trip", time="leaves")
SKY = Table("sky", key="town", time="seen_at")

numbers = st.one_of(st.sampled_from([math.nan, 0.0, -0.0, 1.5, -7.25, 1e16, 3.0]), st.floats(-1e6, 1e6))
hours = st.integers(0, 40).map(lambda hour: START + hour * HOUR)
towns = st.sampled_from(["A", "B", "A|", "é", None])


@dataclass(frozen=True)
class Part:
    """Stands for a model, a gate or a plan."""

    def validate(self) -> list[str]:
        return []


def text(values: list[Any]) -> np.ndarray:
    made = np.empty(len(values), dtype=object)
    made[:] = values
    return made


@st.composite
def trips(draw: st.DrawFn, low: int = 0, high: int = 14) -> dict[str, np.ndarray]:
    """Trips as columns; some twice, some with no arrival, several arriving at the same moment."""
    row = st.tuples(st.sampled_from("pqrst"), hours, towns, towns, numbers, st.one_of(st.just(None), st.integers(0, 30)))
    rows = draw(st.lists(row, min_size=low, max_size=high))
    if rows and draw(st.booleans()):
        rows += draw(st.lists(st.sampled_from(rows), max_size=3))
    return {
        "trip": text([row[0] for row in rows]),
        "leaves": np.array([row[1] for row in rows], dtype=np.int64),
        "town": text([row[2] for row in rows]),
        "line": text([row[3] for row in rows]),
        "late": np.array([row[4] for row in rows], dtype=np.float64),
        "arrives": np.array([NO_TIME if row[5] is None else row[1] + row[5] * HOUR // 2 for row in rows], dtype=np.int64),
    }


@st.composite
def sky(draw: st.DrawFn) -> dict[str, np.ndarray]:
    """Hourly reports, some twice with other values."""
    rows = draw(st.lists(st.tuples(towns, hours, numbers, numbers), max_size=10))
    return {
        "town": text([row[0] for row in rows]),
        "seen_at": np.array([row[1] for row in rows], dtype=np.int64),
        "wind": np.array([row[2] for row in rows], dtype=np.float64),
        "rain": np.array([row[3] for row in rows], dtype=np.float64),
    }


FEATURES = (
    numeric("leg"),
    numeric("leg2", log=True),
    category("town"),
    cyclic("leaves", "hour", "weekday", "month", tz="America/New_York"),
    latest(SKY, "wind", "rain", within="3h"),
    *(
        window(TRIPS, "late", by="town", over="6h", agg=agg, known_at="arrives")
        for agg in ("mean", "std", "sum", "count", "min", "max", "last")
    ),
    window(TRIPS, "late", by=("town", "line"), over="1d", known_at="arrives"),
    window(TRIPS, "late", by="line", over="1d", known_at="arrives"),
)


def with_legs(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The rows with numbers of their own."""
    leg = np.nan_to_num(rows["late"], nan=0.5) / 3.0
    return {**rows, "leg": leg, "leg2": leg}


def pipeline(**changes: Any) -> Pipeline:
    """A pipeline over trips and sky."""
    fields = dict(
        name="late-trips",
        table=TRIPS,
        tables=[SKY],
        label=Label("late", above=1.0, known_at="arrives"),
        features=FEATURES,
        segments=["town"],
        model=Part(),
        gate=Part(),
        rollout=Part(),
    )
    return Pipeline(**(fields | changes))


def shard(table: Table, columns: dict[str, np.ndarray], path: Path) -> ShardFile:
    """Write columns as a published shard."""
    arrow = {}
    for name, values in columns.items():
        if values.dtype == np.int64:
            arrow[name] = pa.array(values, pa.timestamp("us", tz="UTC"), mask=values == NO_TIME)
        else:
            arrow[name] = pa.array(values, pa.string() if values.dtype == object else pa.float64())
    pq.write_table(pa.table(arrow), path)
    spans = {}
    for name, values in columns.items():
        known = values[values != NO_TIME] if values.dtype == np.int64 else ()
        if len(known):
            spans[name] = [int(known.min()), int(known.max())]
    first, last = spans[table.time]
    return ShardFile(
        table.name, path.stem, sha256_file(path), str(path), len(columns[table.time]), 1, first, last, {"spans": spans}
    )


def bits(values: np.ndarray) -> list[Any]:
    """Values that are equal only when every bit is; any NaN equals any other."""
    if values.dtype != np.float64:
        return values.tolist()
    return ["nan" if value != value else struct.pack("<d", value) for value in values.tolist()]


def known_before(table: dict[str, np.ndarray], by: tuple[str, ...], row: dict[str, Any], time: int, over: int, known_at: str,
                 key: str, columns: tuple[str, ...]) -> list[tuple[float, ...]]:  # fmt: skip
    """The history of one row, by looking at every row of the table: sorted, and each once."""
    found = set()
    hashes = row_hash(table, [key]).tolist()
    for at in range(len(table[known_at])):
        moment = int(table[known_at][at])
        same = all(table[name][at] is not None and table[name][at] == row[name] for name in by)
        if same and moment != NO_TIME and time - over <= moment < time:
            raw = struct.pack(f"<{len(columns)}d", *(math.nan if (v := table[n][at]) != v else v for n in columns))
            found.add((moment, hashes[at], raw))
    return [struct.unpack(f"<{len(columns)}d", raw) for _, _, raw in sorted(found)]


def aggregate(agg: str, values: list[float]) -> float:
    """The aggregate by definition."""
    values = [value for value in values if value == value]
    if agg == "count":
        return float(len(values))
    if not values:
        return math.nan
    mean = math.fsum(values) / len(values)
    return {
        "sum": math.fsum(values),
        "mean": mean,
        "std": math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values)),
        "min": min(values),
        "max": max(values),
        "last": values[-1],
    }[agg]
