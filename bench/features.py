"""The feature set of examples/flights.py, from Parquet to a training matrix on disk: `ct` on two Ray workers against a program in polars that was
written for exactly these features, and against a plain Ray Data groupby().map_groups(). `--rows N` flights (10 million), `--quick` takes one million.

Both sides read the same files, compute the same columns and write them as Arrow with LZ4; the columns are compared. Ray is running before the clock
starts, as in a project; polars is imported before. Each side runs in a process of its own, so that its memory can be measured. The
polars program holds whole columns; it works on codes instead of texts and takes windows as differences of running sums.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[0] = str(ROOT / "examples")  # not this folder, whose profile.py would stand for the one of Python
GROUPS = {
    ("tailnum",): [("1d", "last"), ("7d", "mean")],
    ("carrier", "flight"): [("30d", "mean")],
    ("origin", "carrier"): [("1d", "mean")],
    ("origin",): [("1h", "mean"), ("3h", "mean"), ("3h", "count")],
    ("dest",): [("3h", "mean"), ("1d", "mean")],
}
WEATHER = ["humid", "pressure", "wind_speed", "precip", "visib"]
SPANS = {"1h": 3600, "3h": 3 * 3600, "1d": 86_400, "7d": 7 * 86_400, "30d": 30 * 86_400}
COLUMNS = ["flight_id", "scheduled_departure", "carrier", "flight", "tailnum", "origin", "dest", "distance", "scheduled_minutes",
           "arr_delay", "arrival_time"]  # fmt: skip


def name_of(by: tuple[str, ...], over: str, agg: str) -> str:
    """The column's name in `ct`."""
    return f"arr_delay_{agg}_by_{'_'.join(by)}_{over}"


def main() -> None:
    """Measure and print; the last line is the result as JSON."""
    if "--side" in sys.argv:
        return SIDES[sys.argv[2]](json.loads(sys.argv[3]))
    quick = "--quick" in sys.argv
    rows = int(sys.argv[sys.argv.index("--rows") + 1]) if "--rows" in sys.argv else 1_000_000 if quick else 10_000_000
    data = ROOT / "build" / "bench-data"
    home = Path(tempfile.mkdtemp(prefix="ctf", dir="/tmp"))
    try:
        print(json.dumps(measure(data, home, rows, quick)))
    finally:
        shutil.rmtree(home, ignore_errors=True)


def measure(data: Path, home: Path, rows: int, quick: bool) -> dict[str, Any]:
    """All figures."""
    import scaled

    scaled.write(data, rows)
    ours: list[dict[str, float]] = []
    theirs: list[float] = []
    peaks: list[float] = []
    for at in range(1 if quick else 3):
        found = side("ct", {"data": str(data), "home": str(home), "rows": rows})
        other = side("polars", {"data": str(data), "home": str(home), "rows": rows})
        ours, theirs, peaks = [*ours, found], [*theirs, other["seconds"]], [*peaks, found["peak"]]
        print(f"round {at + 1}: ct {found['seconds']:.1f} s, {found['peak']:.2f} GiB; new month {found['month']:.2f} s; "
              f"polars {other['seconds']:.1f} s, {other['peak']:.2f} GiB", flush=True)  # fmt: skip
    print(f"columns that agree: {compare(home):.6f}", flush=True)
    figures = {
        "build_vs_best_single_process": statistics.median(theirs) / statistics.median(found["seconds"] for found in ours),
        "new_month_fraction": statistics.median(found["month"] / found["seconds"] for found in ours),
        "peak_rss_gib": max(peaks),
        "agreed_fraction": compare(home),
    }
    if not quick and rows == 10_000_000:
        scaled.write(data, 3 * rows)
        big = side("ct", {"data": str(data), "home": str(home), "rows": 3 * rows})
        print(f"{3 * rows:,} rows: ct {big['seconds']:.1f} s, {big['peak']:.2f} GiB", flush=True)
        figures["peak_rss_growth_30m"] = big["peak"] / statistics.median(peaks)
    few = 250_000 if quick else 1_000_000
    scaled.write(data, few)
    task = {"data": str(data), "home": str(home), "rows": few}
    plain, small = side("groupby", task), side("ct", task)
    print(f"{few:,} rows: ct {small['seconds']:.1f} s, Ray Data groupby {plain['seconds']:.1f} s", flush=True)
    figures["build_vs_ray_groupby"] = plain["seconds"] / small["seconds"]
    goals = {
        "build_vs_best_single_process": [">=", 1.0],
        "build_vs_ray_groupby": [">=", 5],
        "new_month_fraction": ["<=", 0.20],
        "peak_rss_gib": ["<=", 2.0],
        "peak_rss_growth_30m": ["<=", 1.1],
    }
    packages = ("ray", "polars", "pyarrow", "numpy")
    conditions = {
        "rows": rows,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "versions": {package: version(package) for package in packages},
        "seconds": {"ct": [round(found["seconds"], 2) for found in ours], "polars": [round(item, 2) for item in theirs]},
    }
    return {
        "bench": "features",
        "figures": {key: round(value, 4) for key, value in figures.items()},
        "goals": {key: goal for key, goal in goals.items() if key in figures},
        "conditions": conditions,
    }


def side(name: str, task: Mapping[str, Any]) -> dict[str, float]:
    """Run one side in a process of its own. `peak` is the most memory that any process of it held, in GiB."""
    peaks: dict[int, int] = {}
    command = [sys.executable, __file__, "--side", name, json.dumps(dict(task))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as child:
        stop = threading.Event()
        watcher = threading.Thread(target=_watch, args=(child.pid, peaks, stop))
        watcher.start()
        lines = [line for line in child.stdout or () if line.strip()]
        stop.set()
        watcher.join()
    if child.returncode:
        sys.exit(f"{name} ended with {child.returncode}")
    return {**json.loads(lines[-1]), "peak": max(peaks.values()) / (1 << 20)}


def _watch(root: int, peaks: dict[int, int], stop: threading.Event) -> None:
    """Note the high-water mark (KiB) of a process and of all below it, several times a second."""
    while not stop.wait(0.2):
        parents = {}
        for path in Path("/proc").glob("[0-9]*/status"):
            try:
                fields = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
            except OSError:
                continue
            parents[int(path.parent.name)] = (int(fields["PPid"]), int(fields.get("VmHWM", "0 kB").split()[0]))
        for pid in parents:
            above = pid
            while above in parents and above != root:
                above = parents[above][0]
            if above == root:
                peaks[pid] = max(peaks.get(pid, 0), parents[pid][1])


def run_ct(task: Mapping[str, Any]) -> None:
    """Eleven months, then the twelfth; then all twelve from nothing."""
    import ray
    import scaled

    from ct.features.build import build
    from ct.pipeline import load

    line = load(str(ROOT / "examples" / "flights.py"))
    shards = {
        table: [shard_of(table, path) for path in paths]
        for table, paths in scaled.write(Path(task["data"]), task["rows"]).items()
    }
    home = Path(task["home"])
    ray.init(num_cpus=os.cpu_count(), include_dashboard=False, object_store_memory=300_000_000, log_to_driver=False,
             _temp_dir=str(home / "ray"))  # fmt: skip
    early = {"flights": shards["flights"][:2], "weather": shards["weather"][:2]}
    build(line, early, folder=home / "warm")  # the workers have imported what they need, as in a project that runs
    shutil.rmtree(home / "warm")
    folder = home / "ct"
    shutil.rmtree(folder, ignore_errors=True)
    begun = time.monotonic()
    build(line, {**shards, "flights": shards["flights"][:11]}, folder=folder)
    middle = time.monotonic()
    build(line, shards, folder=folder)
    month = time.monotonic() - middle
    eleven = middle - begun
    shutil.rmtree(folder)
    begun = time.monotonic()
    made = build(line, shards, folder=folder)
    seconds = time.monotonic() - begun
    (home / "parts.json").write_text(json.dumps([list(part.files) for part in made.parts]))
    print(json.dumps({"seconds": seconds, "month": month, "eleven": eleven}))


def shard_of(table: str, path: Path) -> Any:
    """A file as the catalogue would know it."""
    import pyarrow.parquet as pq

    from ct.data.tables import ShardFile

    data = pq.read_metadata(path)
    names = [data.schema.column(at).path for at in range(data.num_columns)]
    spans = {}
    for name in ("scheduled_departure", "arrival_time") if table == "flights" else ("observed_at",):
        said = [data.row_group(at).column(names.index(name)).statistics for at in range(data.num_row_groups)]
        spans[name] = [min(part.min_raw for part in said), max(part.max_raw for part in said)]
    first, last = next(iter(spans.values()))
    return ShardFile(table, path.stem, path.stem, str(path), data.num_rows, 1, first, last, {"spans": spans})


def run_polars(task: Mapping[str, Any]) -> None:
    """The same features by polars: joins as of the row's time on running sums, on codes instead of texts."""
    import warnings

    import polars as pl
    import scaled

    warnings.filterwarnings("ignore")
    files = scaled.write(Path(task["data"]), task["rows"])
    departs, lands = "scheduled_departure", "arrival_time"
    begun = time.monotonic()
    flights = pl.read_parquet(files["flights"], columns=COLUMNS).sort(departs, "flight_id")
    weather = pl.read_parquet(files["weather"], columns=["origin", "observed_at", *WEATHER]).sort("observed_at")
    local = flights[departs].dt.convert_time_zone("America/New_York")
    minute = local.dt.hour().cast(pl.Int32) * 60 + local.dt.minute()
    day = local.dt.weekday() - 1
    late = flights["arr_delay"]
    made = flights.select(
        pl.col("flight_id").alias("_key"),
        pl.col(departs).alias("_time"),
        (pl.col("arr_delay") > 15).cast(pl.Float64).alias("_label"),
        pl.when(late.is_not_null()).then(pl.col(lands)).alias("_known_at"),
        *(pl.col(name).cast(pl.Categorical) for name in ("carrier", "origin", "dest")),
        "distance",
        "scheduled_minutes",
    ).with_columns(
        **{
            f"{departs}_{part}_{wave}": getattr(at * (2 * np.pi / places), wave)()
            for part, at, places in (("hour", minute, 1440), ("weekday", day, 7))
            for wave in ("sin", "cos")
        }
    )
    airports = pl.Enum(pl.concat([flights["origin"], weather["origin"]]).unique().drop_nulls().sort())
    origin = pl.col("origin").cast(airports).to_physical().cast(pl.UInt32)
    weather = weather.with_columns(origin)
    codes = [pl.col(name).cast(pl.Categorical).to_physical() for name in ("carrier", "flight", "tailnum", "dest")]
    flights = flights.select(departs, lands, "arr_delay", origin, *codes)
    asof: Any = {"strategy": "backward", "allow_exact_matches": False}
    seen = flights.select("origin", departs).join_asof(
        weather, left_on=departs, right_on="observed_at", by="origin", tolerance="3h", **asof
    )
    made = made.with_columns(seen.select(*(pl.col(name).alias(f"weather_{name}") for name in WEATHER)))
    known = flights.drop_nulls([lands, "arr_delay"]).sort(lands)
    for by, wanted in GROUPS.items():
        sums = known.select(
            *by, lands, "arr_delay", s=pl.col("arr_delay").cum_sum().over(by), c=pl.col("arr_delay").cum_count().over(by)
        )
        asked = flights.select(*by, departs)
        now = asked.join_asof(sums, left_on=departs, right_on=lands, by=list(by), **asof)
        done: dict[str, Any] = {}
        for over, agg in wanted:
            span = pl.duration(seconds=SPANS[over])
            if agg == "last":
                fresh = pl.col(lands) >= pl.col(departs) - span
                made = made.with_columns(now.select(pl.when(fresh).then("arr_delay").alias(name_of(by, over, agg))))
                continue
            if over not in done:
                past = asked.with_columns(pl.col(departs) - span).join_asof(
                    sums, left_on=departs, right_on=lands, by=list(by), **asof
                )
                done[over] = pl.DataFrame({"s": now["s"], "c": now["c"], "s0": past["s"], "c0": past["c"]}).select(
                    s=pl.col("s").fill_null(0) - pl.col("s0").fill_null(0),
                    c=pl.col("c").fill_null(0).cast(pl.Int64) - pl.col("c0").fill_null(0).cast(pl.Int64),
                )
            value = pl.col("c").cast(pl.Float64) if agg == "count" else pl.when(pl.col("c") > 0).then(pl.col("s") / pl.col("c"))
            made = made.with_columns(done[over].select(value.alias(name_of(by, over, agg))))
    made.write_ipc(Path(task["home"]) / "polars.arrow", compression="lz4")
    print(json.dumps({"seconds": time.monotonic() - begun}))


def run_groupby(task: Mapping[str, Any]) -> None:
    """The same windows by Ray Data alone: flights grouped by each key, each group's windows by numpy, the results joined by row."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq
    import ray
    import scaled

    files = scaled.write(Path(task["data"]), task["rows"])
    home = Path(task["home"])
    ray.init(num_cpus=os.cpu_count(), include_dashboard=False, object_store_memory=2_000_000_000, log_to_driver=False,
             _temp_dir=str(home / "ray"))  # fmt: skip
    context = ray.data.DataContext.get_current()
    context.use_datasource_v2, context.enable_progress_bars = False, False
    ray.data.range(10).map(lambda row: row).take_all()
    begun = time.monotonic()
    paths = [str(path) for path in files["flights"]]
    flights = ray.data.read_parquet(paths, columns=COLUMNS)
    made = flights.to_pandas().set_index("flight_id")
    for by, wanted in GROUPS.items():
        columns = ["flight_id", "scheduled_departure", "arrival_time", "arr_delay", *by]
        grouped = flights.select_columns(columns).groupby(list(by), num_partitions=8)
        found = grouped.map_groups(_windows(by, wanted), batch_format="pandas").to_pandas().set_index("flight_id")
        made = made.join(found)
    weather = pd.concat([pd.read_parquet(path) for path in files["weather"]])[["origin", "observed_at", *WEATHER]]
    made = made.reset_index().astype({"origin": object, "scheduled_departure": "datetime64[us, UTC]"})
    weather = weather.astype({"origin": object, "observed_at": "datetime64[us, UTC]"}).sort_values("observed_at")
    made = pd.merge_asof(
        made.sort_values("scheduled_departure"), weather, left_on="scheduled_departure", right_on="observed_at",
        by="origin", tolerance=pd.Timedelta("3h"), allow_exact_matches=False,
    )  # fmt: skip
    pq.write_table(pa.Table.from_pandas(made), home / "groupby.parquet")
    print(json.dumps({"seconds": time.monotonic() - begun}))


def _windows(by: tuple[str, ...], wanted: list[tuple[str, str]]) -> Callable[[Any], Any]:
    """One group's windows."""
    import pandas as pd

    def windows(rows: Any) -> Any:
        asked = rows["scheduled_departure"].astype("datetime64[us, UTC]").astype("int64").to_numpy()
        known = rows[rows["arrival_time"].notna() & rows["arr_delay"].notna()]
        moments = known["arrival_time"].astype("datetime64[us, UTC]").astype("int64").to_numpy()
        order = np.argsort(moments)
        moments, values = moments[order], known["arr_delay"].to_numpy(dtype=float)[order]
        sums = np.concatenate([[0.0], np.cumsum(values)])
        stop = np.searchsorted(moments, asked)
        made = {"flight_id": rows["flight_id"]}
        for over, agg in wanted:
            start = np.searchsorted(moments, asked - SPANS[over] * 1_000_000)
            count = stop - start
            with np.errstate(invalid="ignore", divide="ignore"):
                mean = (sums[stop] - sums[start]) / count
            last = np.append(values, np.nan)[np.maximum(stop - 1, 0)] if len(values) else np.full(len(asked), np.nan)
            value = {"count": count.astype(float), "mean": mean, "last": np.where(count > 0, last, np.nan)}[agg]
            made[name_of(by, over, agg)] = value
        return pd.DataFrame(made)

    return windows


def compare(home: Path) -> float:
    """The share of cells in which ct and polars agree, to nine digits. Of flights that landed in the same minute either may be the last."""
    import pyarrow as pa
    import pyarrow.ipc as ipc

    theirs = ipc.open_file(pa.memory_map(str(home / "polars.arrow"))).read_all()
    same = total = at = 0
    for files in json.loads((home / "parts.json").read_text()):
        tables = [ipc.open_file(pa.memory_map(file)).read_all() for file in files]
        ours = {name: table[name] for table in tables for name in table.column_names}
        rows = len(ours["_key"])
        part = theirs.slice(at, rows)
        at += rows
        for name in theirs.column_names:
            left, right = ours[name], part[name]
            if not pa.types.is_floating(left.type):
                continue
            a, b = left.to_numpy(), right.to_numpy().astype(float)
            same += int((np.isclose(a, b, rtol=1e-9, atol=1e-9) | (np.isnan(a) & np.isnan(b))).sum())
            total += rows
        assert ours["_key"].equals(part["_key"].cast(pa.string())), "rows stand in another order"
    return same / total


SIDES: Mapping[str, Callable[[Mapping[str, Any]], None]] = {"ct": run_ct, "polars": run_polars, "groupby": run_groupby}

if __name__ == "__main__":
    main()
