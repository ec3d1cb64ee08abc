"""One row's features as a replica makes them: the request's own and those of its entities, for examples/flights.py on an online store that holds a
month. Before every tenth request a landed flight is pushed, so that memory has to be kept true. `--quick` asks less often.

Counted: the store's look and the whole transformation, from the request's columns to every feature column. Not counted: parsing JSON, the
model, the log. The other side is one prepared SQL query a window over indexed tables of the same rows, with the request's own features in plain
Python; its numbers are compared with ours. Redis, where redis-server is installed, is a second figure over a socket on the same machine.
"""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

ROOT = Path(__file__).parents[1]
sys.path[0] = str(ROOT / "examples")  # not this folder, whose profile.py would stand for the one of Python
MONTHS = (6, 7)
PUSH_EVERY = 10
_WINDOWS = (
    ("tailnum", "1d", "last"),
    ("tailnum", "7d", "mean"),
    ("carrier_flight", "30d", "mean"),
    ("origin_carrier", "1d", "mean"),
    ("origin", "1h", "mean"),
    ("origin", "3h", "mean"),
    ("origin", "3h", "count"),
    ("dest", "3h", "mean"),
    ("dest", "1d", "mean"),
)
_SPANS = {"1h": 3600, "3h": 3 * 3600, "1d": 86_400, "7d": 7 * 86_400, "30d": 30 * 86_400}
_WEATHER = ("humid", "pressure", "wind_speed", "precip", "visib")
Row = Mapping[str, NDArray[Any]]
Ask = Callable[[Row], Mapping[str, Any]]


def main() -> None:
    """Measure and print; the last line is the result as JSON."""
    requests, rounds = (600, 3) if "--quick" in sys.argv else (4_000, 7)
    home = Path(tempfile.mkdtemp(prefix="ctl", dir="/tmp"))
    try:
        print(json.dumps(_measure(home, requests, rounds)))
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _measure(home: Path, requests: int, rounds: int) -> dict[str, Any]:
    from ct.data.columns import to_columns
    from ct.features.online import OnlineStore
    from ct.features.online.sqlite import SqliteShelf
    from ct.features.transform import lookups_of, transform
    from ct.pipeline import load

    line = load(str(ROOT / "examples" / "flights.py"))
    lookups = lookups_of(line.features)
    shards = _shards(line, home)
    asked = to_columns(pq.read_table(shards[line.table.name][-1].path))
    picked = np.random.default_rng(7).choice(len(asked["flight_id"]), requests, replace=False)
    rows: list[Row] = [{name: values[[at]] for name, values in asked.items()} for at in picked]

    def ours(store: OnlineStore) -> Ask:
        return lambda row: transform(line.features, row, row[line.table.time], store.history(row, lookups))

    def push(store: OnlineStore) -> Callable[[Row], None]:
        return lambda row: void(store.push(lookups, line.table.name, row))

    store = OnlineStore(SqliteShelf(home / "online.db"))
    begun = time.monotonic()
    stored = store.materialize(lookups, shards)
    print(f"{stored:,} entries filled in {time.monotonic() - begun:.1f} s", flush=True)
    plain = _Plain(home / "plain.db", shards)
    _compare(rows, ours(store), plain.ask)
    sides: dict[str, tuple[Ask, Callable[[Row], None]]] = {"sqlite": (ours(store), push(store)), "sql": (plain.ask, plain.push)}
    with _redis(home) as shelf:
        if shelf is not None:
            remote = OnlineStore(shelf)
            remote.materialize(lookups, shards)
            sides["redis"] = (ours(remote), push(remote))
        took: dict[str, list[NDArray[np.float64]]] = {name: [] for name in sides}
        for number in range(rounds):
            for name, (ask, told) in sides.items():
                took[name].append(_timed(rows, ask, told))
            print(
                ", ".join(f"{name} {np.median(took[name][-1]):.3f} ms" for name in sides) + f" in round {number + 1}",
                flush=True,
            )
    p50 = {name: statistics.median(float(np.median(some)) for some in found) for name, found in took.items()}
    p99 = statistics.median(float(np.quantile(some, 0.99)) for some in took["sqlite"])
    figures = {"p50_ms": p50["sqlite"], "p99_ms": p99, "vs_sql_a_window": p50["sql"] / p50["sqlite"]}
    if "redis" in p50:
        figures["p50_redis_ms"] = p50["redis"]
    conditions = {"rows": stored, "requests": requests, "rounds": rounds, "cores": os.cpu_count(), "versions": _versions()}
    return {"bench": "lookup", "figures": {name: round(v, 4) for name, v in figures.items()}, "goals": {"p50_ms": ["<=", 0.3]}, "conditions": conditions}  # fmt: skip


def void(_: object) -> None:
    """Nothing, whatever it is given."""


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        **{name: version(name) for name in ("numpy", "pyarrow")},
    }


def _timed(rows: Sequence[Row], ask: Ask, push: Callable[[Row], None]) -> NDArray[np.float64]:
    """Milliseconds of each request."""
    took = np.empty(len(rows))
    for at, row in enumerate(rows):
        if at % PUSH_EVERY == 0:
            push(rows[at * 7 % len(rows)])
        begun = time.perf_counter()
        ask(row)
        took[at] = (time.perf_counter() - begun) * 1000
    return took


def _compare(rows: Sequence[Row], ours: Ask, theirs: Ask) -> None:
    for row in rows[:300]:
        mine, other = ours(row), theirs(row)
        assert set(mine) == set(other), set(mine) ^ set(other)
        for name, values in mine.items():
            found, expected = values[0], other[name]
            same = found == expected or (expected is None and (found is None or math.isnan(found)))
            assert same or math.isclose(found, expected, rel_tol=1e-9, abs_tol=1e-9), (name, found, expected)


def _shards(line: Any, home: Path) -> dict[str, list[Any]]:
    """Two months as published shards: what the second asks for lies in the first."""
    import shards
    from ct.data.columns import NO_TIME, to_columns
    from ct.data.tables import ShardFile

    made: dict[str, list[Any]] = {}
    paths = shards.write(home / "shards")
    for table in line.all_tables:
        for month in MONTHS:
            path = paths[table.name][month]
            times = {name: values for name, values in to_columns(pq.read_table(path)).items() if values.dtype == np.int64}
            spans = {name: [int(v[v != NO_TIME].min()), int(v.max())] for name, v in times.items()}
            first, last = spans[table.time]
            rows = pq.read_metadata(path).num_rows
            shard = ShardFile(table.name, path.stem, path.stem, str(path), rows, 1, first, last, {"spans": spans})
            made.setdefault(table.name, []).append(shard)
    return made


@contextmanager
def _redis(home: Path) -> Iterator[Any]:
    """An online store's shelf on a Redis server of its own, None where none is installed."""
    program = shutil.which("redis-server")
    if program is None:
        print("redis-server is not on this machine: no figure for it", flush=True)
        yield None
        return
    from ct.errors import CtError
    from ct.features.online.redis import RedisShelf

    socket = home / "redis"
    command = [program, "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(home)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for left in reversed(range(200)):
            try:
                shelf = RedisShelf(f"unix://{socket}")
                break
            except CtError:
                if not left:
                    raise
                time.sleep(0.05)
        yield shelf
    finally:
        server.terminate()
        server.wait()


class _Plain:
    """The same features by hand: one table and one query a window."""

    def __init__(self, path: Path, shards: Mapping[str, Sequence[Any]]) -> None:
        self._database = sqlite3.connect(path, isolation_level=None)
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "cache_size=-65536", "mmap_size=268435456"):
            self._database.execute(f"PRAGMA {pragma}")
        for by in dict.fromkeys(by for by, _, _ in _WINDOWS):
            self._database.execute(
                f"CREATE TABLE by_{by} (entity TEXT, known_at INTEGER, flight TEXT, delay REAL, PRIMARY KEY (entity, known_at, flight)) "
                "WITHOUT ROWID"
            )
        self._database.execute(
            f"CREATE TABLE weather (origin TEXT, known_at INTEGER, {', '.join(_WEATHER)}, PRIMARY KEY (origin, known_at)) WITHOUT ROWID"
        )
        for shard in shards["flights"]:
            self._insert(pq.read_table(shard.path).to_pylist())
        for shard in shards["weather"]:
            for row in pq.read_table(shard.path).to_pylist():
                values = (row["origin"], _us(row["observed_at"]), *(row[name] for name in _WEATHER))
                self._database.execute(f"INSERT OR IGNORE INTO weather VALUES (?, ?{', ?' * len(_WEATHER)})", values)

    def _insert(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._database.execute("BEGIN")
        for by in dict.fromkeys(by for by, _, _ in _WINDOWS):
            found = [
                (_entity(row, by), _us(row["arrival_time"]), row["flight_id"], row["arr_delay"])
                for row in rows
                if row["arrival_time"] is not None and _entity(row, by) is not None
            ]
            self._database.executemany(f"INSERT OR IGNORE INTO by_{by} VALUES (?, ?, ?, ?)", found)
        self._database.execute("COMMIT")

    def push(self, row: Row) -> None:
        """Store one flight."""
        from ct.data.columns import NO_TIME

        plain = {name: values[0] for name, values in row.items()}
        plain["arrival_time"] = None if plain["arrival_time"] == NO_TIME else int(plain["arrival_time"])
        self._insert([plain | {"arr_delay": None if math.isnan(plain["arr_delay"]) else float(plain["arr_delay"])}])

    def ask(self, row: Row) -> dict[str, Any]:
        """Every feature column of one row."""
        plain = {name: values[0] for name, values in row.items()}
        now = int(plain["scheduled_departure"])
        made: dict[str, Any] = {name: float(plain[name]) for name in ("distance", "scheduled_minutes")}
        made |= {name: plain[name] for name in ("carrier", "origin", "dest")}
        local = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=now)).astimezone(ZoneInfo("America/New_York"))
        seconds = local.hour * 3600 + local.minute * 60 + local.second
        for name, share in (("hour", seconds / 86_400), ("weekday", local.weekday() / 7)):
            made[f"scheduled_departure_{name}_sin"] = math.sin(2 * math.pi * share)
            made[f"scheduled_departure_{name}_cos"] = math.cos(2 * math.pi * share)
        query = f"SELECT {', '.join(_WEATHER)} FROM weather WHERE origin = ? AND known_at >= ? AND known_at < ? ORDER BY known_at DESC LIMIT 1"
        report = self._database.execute(query, (plain["origin"], now - 3 * 3600 * 1_000_000, now)).fetchone()
        made |= {f"weather_{name}": None if report is None else report[at] for at, name in enumerate(_WEATHER)}
        for by, span, agg in _WINDOWS:
            what = {"mean": "avg(delay)", "count": "count(delay)"}.get(agg, "delay")
            tail = "AND delay IS NOT NULL ORDER BY known_at DESC, flight DESC LIMIT 1" if agg == "last" else ""
            query = f"SELECT {what} FROM by_{by} WHERE entity = ? AND known_at >= ? AND known_at < ? {tail}"
            given = (_entity(plain, by), now - _SPANS[span] * 1_000_000, now)
            found = self._database.execute(query, given).fetchone()
            made[f"arr_delay_{agg}_by_{by}_{span}"] = None if found is None else found[0]
        return made


def _entity(row: Mapping[str, Any], by: str) -> str | None:
    parts = [row[name] for name in by.split("_")]
    return None if None in parts else "|".join(parts)


def _us(moment: Any) -> int:
    return moment if isinstance(moment, int) else (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


if __name__ == "__main__":
    main()
