"""How fast are profiles? Flights are profiled on one core, whole and by carrier; two stored profiles of 1,000 columns by 100 slices are compared;
the same frame goes through Evidently and whylogs. `--rows N` sets the frame's size, `--quick` takes a small one.

All figures are CPU seconds of one thread over frames in memory: Arrow for us, pandas for the others, whose times are numbers already. The
opponents do not run beside numpy 2 and pandas 3, so they live in an environment of their own, build/bench-venv, made on the first run.
Same work: whylogs profiles the frame, as `Profile.of` does. Evidently describes each column of two halves and tests each for drift, as
`Profile.of` of both and `drift.compare` do. Row ids are left out of these two, for nobody looks for drift in them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
OPPONENTS = ROOT / "build" / "bench-venv"
PINS = ("evidently==0.7.23", "whylogs==1.6.4", "numpy<2", "pandas<2.3", "pyarrow<20", "setuptools<81")
GOALS = {
    "mcells_per_s_per_core": [">=", 10],
    "compare_seconds": ["<=", 2],
    "vs_evidently": [">=", 50],
    "vs_whylogs": [">=", 10],
}
ONE = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "ARROW_NUM_THREADS"), "1")


def main() -> None:
    """Measure and print; the last line is the result as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--opponent", nargs=2, metavar=("NAME", "PARQUET"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.opponent:
        _serve(*chosen.opponent)
        return
    os.environ.update(ONE)
    home = Path(tempfile.mkdtemp(prefix="ctp", dir="/tmp"))
    try:
        print(json.dumps(_measure(home, 300_000 if chosen.quick else chosen.rows, chosen.quick)))
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _measure(home: Path, rows: int, quick: bool) -> dict[str, Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pa.set_cpu_count(1)
    sys.path.insert(0, str(ROOT / "examples"))
    import scaled

    files = scaled.write(home, rows)["flights"]
    table = pa.concat_tables([pq.read_table(path) for path in files])
    rounds = 3 if quick else 5
    figures = _own(table, rounds)
    figures["compare_seconds"] = _comparison(20_000 if quick else 100_000, rounds)
    plain = _plain(table)
    for name, most, work in (("whylogs", 1_000_000, _profiled), ("evidently", 200_000, _compared)):
        one = plain.slice(0, 100_000 if quick else min(most, len(plain))).combine_chunks()
        ratio = _against(name, one, home / f"{name}.parquet", work, 1 if quick else 3)
        if ratio is not None:
            figures[f"vs_{name}"] = ratio
    conditions = {
        "rows": len(table),
        "columns": table.num_columns,
        "cores": 1,
        "quick": quick,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("numpy", "pyarrow", "scipy")} | {"opponents": list(PINS)},
    }
    return {"bench": "profile", "figures": figures, "goals": GOALS, "conditions": conditions}


def _seconds(work: Callable[[], Any], rounds: int) -> float:
    """The median CPU time of some rounds."""
    found = []
    for _ in range(rounds):
        begun = time.process_time()
        work()
        found.append(time.process_time() - begun)
    return statistics.median(found)


def _own(table: Any, rounds: int) -> dict[str, float]:
    """Cells a second: the first profile of a table, a later one like it, one by slices too. A cell is a value of the frame."""
    from ct.data.profile import Profiles

    first, sliced = Profiles.of(table), Profiles.of(table, ["carrier"])
    ways: dict[str, Callable[[], Any]] = {
        "mcells_per_s_per_core": lambda: Profiles.of(table),
        "mcells_like_an_earlier_one": lambda: Profiles.of(table, like=first),
        "mcells_by_carrier": lambda: Profiles.of(table, ["carrier"], like=sliced),
    }
    found = {}
    for name, work in ways.items():
        found[name] = round(len(table) * table.num_columns / _seconds(work, rounds) / 1e6, 1)
        print(
            f"{name}: {found[name]} ({len(table):,} rows of {table.num_columns} columns, {len(sliced.slices())} carriers)",
            flush=True,
        )
    return found


def _comparison(rows: int, rounds: int) -> float:
    """Seconds from the bytes of two profiles of 1,000 columns by 100 slices to every p-value and the worst finds."""
    import numpy as np
    import pyarrow as pa

    from ct.data.profile import Profiles
    from ct.monitoring.drift import compare_slices

    def frame(seed: int, moved: float) -> Any:
        rng = np.random.default_rng(seed)
        names = pa.array([f"v{i:02}" for i in range(100)])
        columns = {f"number {i}": pa.array(rng.normal(moved if i == 0 else 0, 1, rows)) for i in range(800)}
        columns |= {f"text {i}": names.take(pa.array(rng.integers(0, 100, rows))) for i in range(199)}
        return pa.table(columns | {"slice": names.take(pa.array(rng.integers(0, 100, rows)))})

    reference = Profiles.of(frame(1, 0.0), ["slice"])
    current = Profiles.of(frame(2, 1.0), ["slice"], like=reference)
    for _ in range(6):  # as of many millions of rows, whose tests take longer
        reference, current = reference.merge(reference), current.merge(current)
    stored = reference.to_bytes(), current.to_bytes()
    slices, size = len(reference.slices()), len(reference.names)

    def work() -> Any:
        found = compare_slices(*map(Profiles.from_bytes, stored))
        worst = {row.feature.column for row in found.worst()}
        assert found.compared.shape == (slices, size), "every slice and column is compared"
        assert worst == {"number 0"}, f"the column that moved is found, and no other: {worst}"

    taken = _seconds(work, rounds)
    print(
        f"compare: {taken:.3f} s for 2 x {size:,} columns x {slices} slices out of {len(stored[0]) / 1e6:.1f} MB each",
        flush=True,
    )
    return round(taken, 3)


def _plain(table: Any) -> Any:
    """The frame without row ids, times as seconds."""
    import pyarrow as pa
    import pyarrow.compute as pc

    table = table.drop_columns(["flight_id"])
    for at, field in enumerate(table.schema):
        if pa.types.is_timestamp(field.type):
            table = table.set_column(at, field.name, pc.divide(table[field.name].cast(pa.int64()).cast(pa.float64()), 1e6))
    return table


def _profiled(table: Any) -> Any:
    from ct.data.profile import Profile

    return Profile.of(table)


def _compared(table: Any) -> Any:
    from ct.data.profile import Profile
    from ct.monitoring.drift import compare

    half = len(table) // 2
    reference = Profile.of(table.slice(0, half))
    current = Profile.of(table.slice(half), like=reference)
    compare(reference, current)
    return current


def _against(name: str, table: Any, path: Path, work: Callable[[Any], Any], rounds: int) -> float | None:
    """How many times as long the opponent takes; None where it cannot be had. Both sides' counts and means must be equal."""
    import pyarrow.parquet as pq

    from ct.data.profile import Numbers

    if not _installed():
        return None
    pq.write_table(table, path)
    ours, theirs = [], []
    profile, said = work(table), {}
    with _opponent(name, path) as ask:
        for _ in range(rounds):
            ours.append(_seconds(lambda: work(table), 5))
            answer = ask()
            theirs.append(answer["seconds"])
            said = answer["columns"]
    for column, (missing, mean) in said.items():
        found = profile.columns[column]
        assert found.missing == missing, f"{name} counts {missing} missing values in {column}, we {found.missing}"
        if isinstance(found, Numbers):
            assert abs(found.mean - mean) <= 1e-6 * max(1.0, abs(mean)), (
                f"{name}'s mean of {column} is {mean}, ours {found.mean}"
            )
    ratio: float = statistics.median(theirs) / statistics.median(ours)
    cells = len(table) * table.num_columns
    print(
        f"{name}: {statistics.median(theirs):.2f} s against {statistics.median(ours):.3f} s for {cells / 1e6:.1f} M cells,"
        f" {ratio:.0f} times; the same counts and means of {len(said)} columns",
        flush=True,
    )
    return round(ratio, 1)


def _installed() -> bool:
    """Are the opponents there, or can be made so?"""
    wanted = OPPONENTS / "pins"
    if wanted.is_file() and wanted.read_text() == "\n".join(PINS):
        return True
    print(f"installing {', '.join(PINS)} below {OPPONENTS.relative_to(ROOT)}", flush=True)
    shutil.rmtree(OPPONENTS, ignore_errors=True)
    python = str(OPPONENTS / "bin" / "python")
    for command in ([sys.executable, "-m", "venv", str(OPPONENTS)], [python, "-m", "pip", "install", "-q", *PINS]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"the opponents cannot be installed, their figures are left out: {done.stderr[-300:]}", flush=True)
            return False
    wanted.write_text("\n".join(PINS))
    return True


@contextmanager
def _opponent(name: str, path: Path) -> Iterator[Callable[[], Any]]:
    """A process that does the opponent's work once each time it is asked."""
    command = [str(OPPONENTS / "bin" / "python"), __file__, "--opponent", name, str(path)]
    environ = os.environ | ONE | {"WHYLOGS_NO_ANALYTICS": "True", "DO_NOT_TRACK": "1"}
    errors = path.with_suffix(".stderr")
    with (
        errors.open("w") as stderr,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environ
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def ask() -> Any:
            stdin.write("go\n")
            stdin.flush()
            line = stdout.readline()
            if not line:
                raise RuntimeError(f"{name} gave no answer: {errors.read_text()[-500:]}")
            return json.loads(line)

        yield ask
        stdin.close()


def _serve(name: str, path: str) -> None:
    """The opponent's process: one answer {seconds, columns} a line of input. Runs without ct."""
    import pandas as pd

    frame = pd.read_parquet(path)
    work = {"whylogs": _whylogs, "evidently": _evidently}[name]
    for _ in sys.stdin:
        begun = time.process_time()
        columns, taken = work(frame), time.process_time() - begun
        print(json.dumps({"seconds": taken, "columns": columns()}), flush=True)


def _whylogs(frame: Any) -> Callable[[], dict[str, Any]]:
    import whylogs

    view = whylogs.log(pandas=frame).view()

    def columns() -> dict[str, Any]:
        found = view.to_pandas()
        missing = found["counts/null"] + found["counts/nan"] * (found["types/fractional"] == 0)
        return {name: [int(missing[name]), float(found["distribution/mean"][name])] for name in found.index}

    return columns


def _evidently(frame: Any) -> Callable[[], dict[str, Any]]:
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset, ValueStats

    numbers = [name for name in frame.columns if frame[name].dtype.kind == "f"]
    texts = [name for name in frame.columns if name not in numbers]
    definition = DataDefinition(numerical_columns=numbers, categorical_columns=texts)
    half = len(frame) // 2
    reference, current = frame.iloc[:half], frame.iloc[half:]
    report = Report([*(ValueStats(column=name) for name in frame.columns), DataDriftPreset()])
    run = report.run(
        Dataset.from_pandas(current, data_definition=definition), Dataset.from_pandas(reference, data_definition=definition)
    )

    def columns() -> dict[str, Any]:
        found = {item["metric_name"]: item["value"] for item in run.dict()["metrics"]}
        made = {}
        for name in frame.columns:
            missing = found[f"MissingValueCount(column={name})"]["count"]
            made[name] = [int(missing), float(found.get(f"MeanValue(column={name})", 0.0))]
        return made

    return columns


if __name__ == "__main__":
    main()
