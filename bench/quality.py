"""Is the model as good as a strong reference on the same features? For each month from April to December of the demo's flights: our pipeline's
model and LightGBM, both trained on all earlier months, both judged on that month. "Served" is the model as `ct train` would leave it: it keeps the
newest `holdout` back for the gate, and a share of the other rows for its calibration. The model's settings were chosen within January to March,
which no month is judged on; but its epochs were raised from two to three after April's figure had been seen. `--quick` takes three of the months.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parents[1]
sys.path[0] = str(ROOT / "examples")  # not this folder, whose profile.py would stand for the one of Python

Columns = Mapping[str, NDArray[Any]]


def main() -> None:
    """Measure and print; the last line is the result as JSON."""
    quick = "--quick" in sys.argv
    home = Path(tempfile.mkdtemp(prefix="ctq", dir="/tmp"))
    try:
        print(json.dumps(_measure(home, (4, 7, 10) if quick else range(4, 13))))
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _measure(home: Path, months: Any) -> dict[str, Any]:
    import ray

    from ct.clock import duration
    from ct.evaluation.metrics import metrics
    from ct.pipeline import load

    line = load(str(ROOT / "examples" / "flights.py"))
    ray.init(
        num_cpus=2, include_dashboard=False, object_store_memory=300_000_000, log_to_driver=False, _temp_dir=str(home / "ray")
    )
    columns, label, month, times = _features(line, home)
    held = int(duration(line.holdout).total_seconds() * 1e6)
    ours, served, theirs = [], [], []
    seconds = []
    for judged in months:
        train, judge = month < judged, month == judged
        early = train & (times < times[train].max() - held)
        begun = time.monotonic()
        ours.append(metrics(_ours(line, columns, label, train, judge, home / f"all-{judged}", 0.0), label[judge], 0.5))
        middle = time.monotonic()
        share = line.model.held
        served.append(metrics(_ours(line, columns, label, early, judge, home / f"served-{judged}", share), label[judge], 0.5))
        later = time.monotonic()
        seconds.append((middle - begun, train.sum()))
        theirs.append(metrics(_lightgbm(columns, label, train, judge), label[judge], 0.5))
        print(
            f"2013-{judged:02}: {train.sum():,} rows; ours {_said(ours)} in {middle - begun:.0f} s; served {_said(served)}; "
            f"LightGBM {_said(theirs)} in {time.monotonic() - later:.0f} s",
            flush=True,
        )
    ray.shutdown()
    figures = {
        "auroc_minus_lightgbm": _mean(ours, "auroc") - _mean(theirs, "auroc"),
        "auroc": _mean(ours, "auroc"),
        "auroc_lightgbm": _mean(theirs, "auroc"),
        "auroc_served": _mean(served, "auroc"),
        "auroc_served_lowest": min(found["auroc"] for found in served),
        "train_s_per_100k_rows": float(np.median([100_000 * took / rows for took, rows in seconds])),
        "ece": _mean(ours, "ece"),
        "ece_served": _mean(served, "ece"),
        "ece_served_highest": max(found["ece"] for found in served),
    }
    return {
        "bench": "quality",
        "figures": {name: round(value, 4) for name, value in figures.items()},
        "goals": {
            "auroc_minus_lightgbm": [">=", -0.003],
            "auroc_served": [">=", 0.70],
            "ece": ["<=", 0.05],
            "ece_served": ["<=", 0.05],
        },
        "conditions": {
            "rows": len(label),
            "months": list(months),
            "model": str(line.model.model),
            "cores": os.cpu_count(),
            "versions": {"python": platform.python_version()}
            | {name: version(name) for name in ("torch", "lightgbm", "ray", "numpy")},
        },
    }


def _said(found: list[dict[str, float]]) -> str:
    return f"AUROC {found[-1]['auroc']:.4f}, ECE {found[-1]['ece']:.4f}"


def _mean(found: list[dict[str, float]], name: str) -> float:
    return float(np.mean([metrics[name] for metrics in found]))


def _features(line: Any, home: Path) -> tuple[Columns, NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Every labelled row's features, label, month by New York's calendar, and time, through ingest and the feature build."""

    import shards
    from ct import settings
    from ct.data import catalog
    from ct.data.columns import to_columns
    from ct.data.ingest import ingest
    from ct.data.tables import Warehouse
    from ct.features import build
    from ct.store.artifacts import Artifacts
    from ct.store.journal import Journal

    place = settings.load(home, environ={})
    journal, artifacts, warehouse = Journal(place.database), Artifacts(place.place("artifacts")), Warehouse(place)
    begun = time.monotonic()
    for name, files in shards.write(home / "shards").items():
        table = next(table for table in line.all_tables if table.name == name)
        for path in files.values():
            outcome = ingest(path, table, settings=place, journal=journal, warehouse=warehouse, artifacts=artifacts)
            if outcome.kind != "published":
                raise SystemExit(f"{path.name} was not published: {outcome.reasons}")
    print(f"24 shards landed in {time.monotonic() - begun:.0f} s", flush=True)
    begun = time.monotonic()
    published = {table.name: list(catalog.published(journal, table.name)) for table in line.all_tables}
    made = build.build(line, published, folder=home / "features")
    whole = build.read(made)
    month = np.array([int(shard[-2:]) for shard in whole["_shard"].to_pylist()])
    print(f"{whole.num_rows:,} rows of {len(line.outputs)} features built in {time.monotonic() - begun:.0f} s", flush=True)
    label = whole["_label"].to_numpy()
    known = ~np.isnan(label)
    columns = to_columns(whole.select([column.name for column in line.outputs]))
    return _take(columns, known), label[known], month[known], whole["_time"].to_numpy()[known]


def _take(columns: Columns, rows: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
    return {name: values[rows] for name, values in columns.items()}


def _ours(
    line: Any,
    columns: Columns,
    label: NDArray[np.float64],
    train: NDArray[np.bool_],
    judge: NDArray[np.bool_],
    home: Path,
    held: float,
) -> NDArray[np.float64]:
    """Scores of the pipeline's own model, trained by Ray Train as `ct train` does it, calibrated on the share `held` of the rows."""
    from ct.evaluation import calibration
    from ct.features.encode import Encoder
    from ct.objectives import PLAIN
    from ct.training import trainer
    from ct.training.data import TrainingSet

    kept = train & (np.random.default_rng(7).random(len(train)) < held)
    encoder = Encoder.fit(_take(columns, train & ~kept), line.outputs)
    sets: dict[str, Path] = {}
    for name, rows in (("train", train & ~kept), ("held", kept), ("judge", judge)):
        if not rows.any():
            continue
        part = _take(columns, rows)
        made = TrainingSet(encoder.numeric(part), encoder.category(part), label[rows].astype(np.float32), encoder.shape)
        sets[name] = made.save(home / name)
    objective, model = line.label.objective, line.model.resolved({})
    trained = trainer.train(sets["train"], model, objective=objective, run="quality", storage=home, checkpoints=False)
    raw = {name: trainer.raw(folder, model, objective, trained.weights) for name, folder in sets.items() if name != "train"}
    fitted = calibration.fit(model.calibrate, objective, raw["held"], label[kept]) if "held" in raw else PLAIN
    return fitted.scores(objective, raw["judge"])


def _lightgbm(
    columns: Columns, label: NDArray[np.float64], train: NDArray[np.bool_], judge: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Scores of gradient boosted trees with settings that a competent engineer would start from."""
    import lightgbm as lgb

    texts = [name for name, values in columns.items() if values.dtype == object]
    made = [
        np.unique(values.astype(str), return_inverse=True)[1].astype(np.float64) if name in texts else values
        for name, values in columns.items()
    ]
    matrix = np.column_stack(made)
    data = lgb.Dataset(matrix[train], label[train], categorical_feature=[list(columns).index(name) for name in texts])
    settings = {
        "objective": "binary",
        "num_leaves": 63,
        "learning_rate": 0.05,
        "min_child_samples": 100,
        "feature_fraction": 0.7,
        "bagging_fraction": 0.8,
        "bagging_freq": 1,
        "num_threads": 2,
        "seed": 7,
        "verbose": -1,
    }
    return np.asarray(lgb.train(settings, data, num_boost_round=200).predict(matrix[judge]), np.float64)


if __name__ == "__main__":
    main()
