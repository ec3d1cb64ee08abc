"""Does evolving pay? Month by month on the demo's flights: a model from scratch on all earlier months against a warm start, a start on the newest
rows alone and with a replay of old ones, every weigher, and ensembles; all judged on the month that follows.

`<way>_auroc_gain` and `<way>_log_loss_gain` are means over the months, scratch being 0 and more being better; `<way>_auroc_low` and `_high` are the ends
of a 95 % t interval over the months. `<way>_time_fraction` is training time against scratch. `<way>_pays` is 1 when the AUROC is better
beyond the interval, or at most 0.002 worse beyond it in less than 0.7 of the time; -1 when it is worse beyond the interval; else 0.
`<way>_old_auroc_gain` is on held rows of the months before the newest one: what was forgotten. `--quick` takes fewer months and rows.
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
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parents[1]
sys.path[0] = str(ROOT / "examples")  # not this folder, whose profile.py would stand for the one of Python

Columns = Mapping[str, NDArray[Any]]
Floats = NDArray[np.float64]
NEWEST, REPLAY, SEEDS = "30d", 0.2, 3
WORSE, CHEAP = 0.002, 0.7


@dataclass
class World:
    """All labelled rows, and where sets are written."""

    line: Any
    columns: Columns
    label: Floats
    month: NDArray[np.int64]
    times: NDArray[np.int64]
    keys: NDArray[np.int64]
    home: Path
    number: int = 0


@dataclass
class Made:
    """A trained model with its scores: of the month that judges, and of held rows of older months."""

    encoder: Any
    trained: Any
    seconds: float
    judged: Floats
    old: Floats
    found: dict[str, float] = field(default_factory=dict)


@dataclass
class Masks:
    """The rows of one month's turn: which train, which calibrate, which judge, which are old and held."""

    train: NDArray[np.bool_]
    calibrate: NDArray[np.bool_]
    judge: NDArray[np.bool_]
    old: NDArray[np.bool_]


def main() -> None:
    """Measure and print; the last line is the result as JSON."""
    quick = "--quick" in sys.argv
    home = Path(tempfile.mkdtemp(prefix="cte", dir="/tmp"))
    try:
        print(json.dumps(_measure(home, quick)))
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _measure(home: Path, quick: bool) -> dict[str, Any]:
    import ray

    from ct.pipeline import load

    line = load(str(ROOT / "examples" / "flights.py"))
    ray.init(
        num_cpus=2, include_dashboard=False, object_store_memory=300_000_000, log_to_driver=False, _temp_dir=str(home / "ray")
    )
    world = _world(line, home, share=0.2 if quick else 1.0)
    months = range(9, 13) if quick else range(3, 13)
    rounds: list[dict[str, Made]] = []
    before: dict[str, Made] = {}
    for judged in months:
        made = _turn(world, judged, before)
        if before:  # the first month only gives a champion
            rounds.append(made)
            said = ", ".join(f"{name} {one.found['auroc']:.4f} in {one.seconds:.0f} s" for name, one in made.items())
            print(f"2013-{judged:02}: {said}", flush=True)
        before = made
    ray.shutdown()
    return {
        "bench": "evolution",
        "figures": {name: round(value, 4) for name, value in _figures(rounds).items()},
        "goals": {},
        "conditions": {
            "rows": len(world.label),
            "months": list(months)[1:],
            "newest": NEWEST,
            "replay": REPLAY,
            "cores": os.cpu_count(),
            "versions": {"python": platform.python_version()} | {name: version(name) for name in ("torch", "ray", "numpy")},
        },
    }


def _turn(world: World, judged: int, before: Mapping[str, Made]) -> dict[str, Made]:
    """Every way of training on the months before `judged`. Without a champion: from scratch only."""
    from ct.data.slices import newest
    from ct.evaluation import windows

    earlier = world.month < judged
    none = np.zeros(len(world.label), dtype=np.bool_)
    split = windows.Split(earlier, world.month == judged, windows.Window(0, 1), none, none)
    split = windows.held_back(split, world.keys, world.label, share=0.1, stopping=False)
    masks = Masks(split.train, split.calibrate, split.judge, split.calibrate & (world.month < judged - 1))
    model = replace(world.line.model.resolved({}), calibrate="temperature")
    made = {"scratch": _train(world, masks, model)}
    if not before:
        return made
    once = replace(model, epochs=1)
    made["warm"] = _train(world, masks, once, start=before.get("warm", before["scratch"]))
    for name, chooser in (("newest_only", newest(NEWEST)), ("replay", newest(NEWEST, older=REPLAY, by="carrier"))):
        train = split.train.copy()
        train[train] = chooser.chosen(_offered(world, train))
        start = before.get(name, before["scratch"])
        made[name] = _train(world, replace(masks, train=train), once, start=start)
    for name, weight in _weights(world, masks, before["scratch"], judged).items():
        made[name] = _train(world, masks, model, weight=weight)
    members = [made["scratch"]] + [_train(world, masks, replace(model, seed=model.seed + at)) for at in range(1, SEEDS)]
    for how in ("average", "stacked"):
        made[how] = _joined(world, masks, model, members, how)
    return made


def _offered(world: World, mask: NDArray[np.bool_]) -> Any:
    from ct.roles import Offered

    nowhere = np.zeros(int(mask.sum()), dtype=np.int64)
    return Offered(world.times[mask], world.keys[mask], _take(world.columns, mask), nowhere, [{}])


def _weights(world: World, masks: Masks, champion: Made, judged: int) -> dict[str, Floats]:
    """What each weigher says of the training rows, with the champion's scores and the drift of the newest month."""
    import ct
    from ct.data.profile import Profiles
    from ct.evaluation import weighing
    from ct.monitoring import drift
    from ct.roles import Weighed

    columns = _take(world.columns, masks.train)
    newest = world.month[masks.train] == judged - 1
    reference = Profiles.of(_take(columns, ~newest), ("carrier", "origin"))
    found = drift.compare_slices(reference, Profiles.of(_take(columns, newest), ("carrier", "origin"), reference))
    moved: dict[str, dict[str, float]] = {}
    for (name, value), size in zip(found.slices, np.where(found.drifted, found.effect, 0).max(axis=1), strict=True):
        moved.setdefault(name, {})[value] = float(size)
    rows = Weighed(
        times=world.times[masks.train],
        keys=world.keys[masks.train],
        segments={name: columns[name] for name in ("carrier", "origin")},
        features=columns,
        label=world.label[masks.train],
        scores=_scores(world, champion, masks.train, masks.calibrate),
        drift=moved,
    )
    ways: dict[str, Any] = {
        "hard": ct.hard(),
        "unsure": ct.unsure(),
        "drifted": ct.drifted("carrier", "origin"),
        "recent": ct.recent("60d"),
    }
    return {name: weighing.combined([way], rows) for name, way in ways.items()}


def _train(world: World, masks: Masks, model: Any, *, weight: Floats | None = None, start: Made | None = None) -> Made:
    """Train as `ct train` does, and score."""
    from ct.features import continuing
    from ct.features.encode import Encoder
    from ct.training import start as starting
    from ct.training import trainer

    encoder = Encoder.fit(_take(world.columns, masks.train), world.line.outputs)
    weights = None
    if start is not None:
        for tried in (continuing.continued(start.encoder, encoder), start.encoder):
            sources = continuing.sources(start.encoder, tried)
            wanted = starting.shapes(model, tried.shape, world.line.label.objective)
            found = starting.carried(start.trained.weights, wanted, start.encoder.cardinalities, sources)
            if not found.fresh:
                break
        encoder, weights = tried, found.weights
    folder = _save(world, encoder, masks.train, weight)
    world.number += 1
    begun = time.monotonic()
    trained = trainer.train(
        folder,
        model,
        objective=world.line.label.objective,
        start=weights,
        run=f"evolution-{world.number}",
        storage=world.home / "training",
        checkpoints=False,
    )
    seconds = time.monotonic() - begun
    return _scored(world, masks, Made(encoder, trained, seconds, np.empty(0), np.empty(0)), model)


def _joined(world: World, masks: Masks, model: Any, members: list[Made], how: str) -> Made:
    """The members as one model; stacked on one half of the rows held back, calibrated on the other."""
    import ct
    from ct.evaluation import stacking
    from ct.evaluation.windows import halves
    from ct.training import joining, trainer

    objective, stack = world.line.label.objective, None
    declared = ct.Ensemble(model, of=SEEDS, how=how)
    begun = time.monotonic()
    if how == "stacked":
        half, rest = halves(masks.calibrate, world.keys)
        masks = replace(masks, calibrate=rest)
        folder = _save(world, members[0].encoder, half)
        parts = zip(declared.members, members, strict=True)
        raw = [trainer.raw(folder, part, objective, one.trained.weights) for part, one in parts]
        stack = stacking.fit(objective, np.stack(raw, axis=1), world.label[half])
    trained = joining.joined(declared, [one.trained for one in members], stack)
    seconds = sum(one.seconds for one in members) + time.monotonic() - begun
    return _scored(world, masks, Made(members[0].encoder, trained, seconds, np.empty(0), np.empty(0)), declared)


def _scored(world: World, masks: Masks, made: Made, model: Any) -> Made:
    from ct.evaluation.metrics import metrics

    made.trained = replace(made.trained, contract={**made.trained.contract, "declared": model})
    made.judged = _scores(world, made, masks.judge, masks.calibrate)
    made.old = _scores(world, made, masks.old, masks.calibrate)
    made.found = metrics(made.judged, world.label[masks.judge], 0.5)
    made.found["old"] = metrics(made.old, world.label[masks.old], 0.5)["auroc"] if masks.old.sum() > 200 else np.nan
    return made


def _scores(world: World, made: Made, mask: NDArray[np.bool_], calibrate: NDArray[np.bool_]) -> Floats:
    """Calibrated scores of the rows under `mask`."""
    from ct.evaluation import calibration
    from ct.training import trainer

    objective, model = world.line.label.objective, made.trained.contract["declared"]

    def raw(rows: NDArray[np.bool_]) -> Floats:
        return trainer.raw(_save(world, made.encoder, rows, name="ask"), model, objective, made.trained.weights)

    if not mask.any():
        return np.empty(0)
    return calibration.fit("temperature", objective, raw(calibrate), world.label[calibrate]).scores(objective, raw(mask))


def _save(world: World, encoder: Any, mask: NDArray[np.bool_], weight: Floats | None = None, name: str = "train") -> Path:
    from ct.training.data import TrainingSet

    part = _take(world.columns, mask)
    weights = None if weight is None else weight.astype(np.float32)
    label = world.label[mask].astype(np.float32)
    made = TrainingSet(encoder.numeric(part), encoder.category(part), label, encoder.shape, weights)
    return made.save(world.home / "sets" / name)


def _figures(rounds: list[dict[str, Made]]) -> dict[str, float]:
    from scipy.stats import t

    figures = {"scratch_auroc": float(np.mean([made["scratch"].found["auroc"] for made in rounds]))}
    for name in [way for way in rounds[0] if way != "scratch"]:
        pairs = [(made[name], made["scratch"]) for made in rounds]
        gain = np.array([ours.found["auroc"] - theirs.found["auroc"] for ours, theirs in pairs])
        cost = sum(ours.seconds for ours, _ in pairs) / sum(theirs.seconds for _, theirs in pairs)
        half = float(t.ppf(0.975, len(gain) - 1) * gain.std(ddof=1) / np.sqrt(len(gain)))
        low, high = gain.mean() - half, gain.mean() + half
        figures |= {
            f"{name}_auroc_gain": float(gain.mean()),
            f"{name}_auroc_low": float(low),
            f"{name}_auroc_high": float(high),
            f"{name}_log_loss_gain": float(np.mean([b.found["log_loss"] - a.found["log_loss"] for a, b in pairs])),
            f"{name}_old_auroc_gain": float(np.nanmean([a.found["old"] - b.found["old"] for a, b in pairs])),
            f"{name}_time_fraction": cost,
            f"{name}_pays": 1.0 if low > 0 or (cost < CHEAP and low > -WORSE) else -1.0 if high < 0 else 0.0,
        }
    return figures


def _world(line: Any, home: Path, share: float) -> World:
    """Every labelled row's features through ingest and the feature build; of the rows, a share by their hash."""
    import shards
    from ct import settings
    from ct.data import catalog
    from ct.data.columns import to_columns
    from ct.data.hashing import row_hash
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
    published = {table.name: list(catalog.published(journal, table.name)) for table in line.all_tables}
    whole = build.read(build.build(line, published, folder=home / "features"))
    keys = row_hash({name: whole[name].combine_chunks() for name in ("_key", "_time")}, ("_key", "_time"))
    label = whole["_label"].to_numpy()
    kept = ~np.isnan(label) & ((keys.view(np.uint64) >> np.uint64(11)).astype(np.float64) / 2.0**53 < share)
    month = np.array([int(shard[-2:]) for shard in whole["_shard"].to_pylist()])
    columns = _take(to_columns(whole.select([column.name for column in line.outputs])), kept)
    print(f"{kept.sum():,} rows ready in {time.monotonic() - begun:.0f} s", flush=True)
    times = whole["_time"].to_numpy()[kept]
    return World(line, columns, label[kept], month[kept], times, keys[kept], home)


def _take(columns: Columns, rows: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
    return {name: values[rows] for name, values in columns.items()}


if __name__ == "__main__":
    main()
