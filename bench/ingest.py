"""What does trust cost? Ingest (read in a child, check, profile, publish) of the demo's flights, against merely reading and rewriting the
same Parquet with pyarrow. The flights are repeated with dates and entity names shifted, three years a file; `--rows` says how many in all,
`--quick` takes one million in two files. A file costs ingest about half a second whatever its size, so small files do worse.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

ROOT = Path(__file__).parents[1]
sys.path[0] = str(ROOT / "examples")  # not this folder, whose profile.py would stand for the one of Python

YEAR_US = 365 * 86_400_000_000
TIMES = ("scheduled_departure", "arrival_time")
ENTITIES = ("flight_id", "tailnum")


def main() -> None:
    """Measure and print; the last line is the result as JSON."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--rows", type=int, default=3_000_000)
    asked.add_argument("--rounds", type=int, default=3)
    asked.add_argument("--quick", action="store_true")
    given = asked.parse_args()
    rows, rounds, years = (1_000_000, 2, 2) if given.quick else (given.rows, given.rounds, 3)
    home = Path(tempfile.mkdtemp(prefix="cti"))
    try:
        files = _files(home, rows, years)
        total = sum(pq.read_metadata(file).num_rows for file in files)
        print(f"{total:,} rows in {len(files)} files of {sum(file.stat().st_size for file in files) / 1e6:.0f} MB together")
        print(json.dumps(_measure(home, files, total, rounds)))
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _files(home: Path, rows: int, years: int) -> list[Path]:
    import shards

    frame = shards.flights()
    base = shards.table(frame, shards.FLIGHTS)
    made = []
    for first in range(0, -(-rows // base.num_rows), years):
        copies = [_shifted(base, year) for year in range(first, min(first + years, -(-rows // base.num_rows)))]
        path = home / f"flights-{first:04}.parquet"
        pq.write_table(pa.concat_tables(copies), path, compression="zstd")
        made.append(path)
    return made


def _shifted(base: pa.Table, year: int) -> pa.Table:
    """The same flights `year` years later, by other aircraft."""
    for name in TIMES:
        moved = pc.add(base[name].cast(pa.int64()), year * YEAR_US).cast(base.schema.field(name).type)
        base = base.set_column(base.column_names.index(name), name, moved)
    for name in ENTITIES:
        base = base.set_column(base.column_names.index(name), name, pc.binary_join_element_wise(base[name], str(year), "-"))
    return base


def _measure(home: Path, files: list[Path], total: int, rounds: int) -> dict[str, object]:
    found = []
    for number in range(rounds):
        found.append(_round(home / str(number), files))
        (ours, plain), (our_cpu, plain_cpu) = found[-1]
        print(
            f"round {number + 1}: ct {ours:.2f} s ({our_cpu:.2f} s of CPU), plain {plain:.2f} s ({plain_cpu:.2f} s of CPU)",
            flush=True,
        )
        shutil.rmtree(home / str(number), ignore_errors=True)
    ratio, cpu = (statistics.median(plain / ours for ours, plain in kind) for kind in zip(*found, strict=True))
    ours, plain = (statistics.median(side) for side in zip(*(wall for wall, _ in found), strict=True))
    return {
        "bench": "ingest",
        "figures": {
            "vs_plain_rewrite": round(ratio, 3),
            "vs_plain_rewrite_cpu": round(cpu, 3),
            "ct_mrows_per_s": round(total / ours / 1e6, 3),
            "plain_mrows_per_s": round(total / plain / 1e6, 3),
        },
        "goals": {"vs_plain_rewrite": [">=", 0.5]},
        "conditions": {
            "rows": total,
            "files": len(files),
            "rounds": rounds,
            "cores": os.cpu_count(),
            "machine": platform.machine(),
            "versions": {name: version(name) for name in ("pyarrow", "numpy", "pyiceberg")},
        },
    }


def _round(folder: Path, files: list[Path]) -> tuple[tuple[float, float], tuple[float, float]]:
    """Seconds of all files together, ours and plain, file by file in turn; and the same of CPU, the reading process included."""
    from ct.control.act import Actor
    from ct.pipeline import load
    from ct.settings import load as settings

    folder.mkdir()
    act = Actor(load(str(ROOT / "examples" / "flights.py")), settings(folder, {}))
    ours = plain = plain_cpu = 0.0
    begun_cpu = _cpu()
    for file in files:
        begun, cpu = time.perf_counter(), time.process_time()
        pq.write_table(pq.read_table(file), folder / file.name, compression="zstd")
        middle, plain_cpu = time.perf_counter(), plain_cpu + time.process_time() - cpu
        outcome = act.ingest("flights", file)
        ours, plain = ours + time.perf_counter() - middle, plain + middle - begun
        assert outcome.kind == "published", outcome
    act.close()  # what the reading process used is known once it has ended
    return (ours, plain), (_cpu() - begun_cpu - plain_cpu, plain_cpu)


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


if __name__ == "__main__":
    main()
