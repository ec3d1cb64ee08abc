"""Carries one started run to its verdict: features, split, encoding, training, export, evaluation, registration.

Every step is a function of the run's frozen inputs, and what is made is kept under its content hash: a run that was killed
anywhere and is carried out again ends in the same version.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ct.clock import duration
from ct.control import runs
from ct.data import catalog, personal, slices
from ct.data.columns import to_columns
from ct.data.hashing import row_hash
from ct.data.profile import Profiles
from ct.errors import NotFound
from ct.evaluation import gate, metrics, stats, windows
from ct.features import build
from ct.features.declare import own_features, to_spec
from ct.features.encode import Encoder
from ct.features.parts import Shards
from ct.ids import describe
from ct.pipeline import Pipeline
from ct.registry import files, routes, versions
from ct.registry.files import ModelSpec
from ct.roles import Columns, Offered
from ct.serving.runtime import Predictor
from ct.settings import Settings
from ct.store.artifacts import Artifacts
from ct.store.journal import Journal
from ct.training import export, trainer
from ct.training.data import TrainingSet

Step = Callable[[str], None]
GOLDEN_ROWS = 64
_PLACE = ("_key", "_time")


@dataclass(frozen=True)
class Place:
    """Where a run is carried out."""

    pipeline: Pipeline
    settings: Settings
    journal: Journal
    artifacts: Artifacts


@dataclass(frozen=True)
class Rows:
    """A run's rows: the features, which of them train and judge, and what the pipeline's selectors left of those that train."""

    columns: Columns
    label: NDArray[np.float64]
    segments: Mapping[str, NDArray[Any]]
    split: windows.Split
    digest: str
    built: int
    selection: Mapping[str, Any] = field(default_factory=dict)
    shards: Shards = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """A candidate against the champion on the same rows."""

    candidate: gate.Evaluation
    champion: gate.Evaluation | None
    difference: stats.Interval | None
    verdict: gate.Verdict
    window: str
    segments: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The report as plain data."""
        return {
            "window": self.window,
            "candidate": dict(self.candidate.metrics),
            "champion": dict(self.champion.metrics) if self.champion else None,
            "difference": describe(self.difference) if self.difference else None,
            "verdict": self.verdict.decision,
            "reasons": list(self.verdict.reasons),
            "segments": {name: {value: dict(m) for value, m in by.items()} for name, by in self.segments.items()},
        }


def inputs(place: Place) -> dict[str, Any]:
    """What a run started now would be frozen to. Raises NotFound when no shard of the predicted table is published."""
    line = place.pipeline
    shards = {table.name: catalog.published(place.journal, table.name) for table in line.all_tables}
    if not shards[line.table.name]:
        raise NotFound(
            f"no shard of {line.table.name!r} is published", "at least one", f"run `ct ingest {line.table.name} FILE`"
        )
    return {
        "shards": {name: [shard.sha256 for shard in found] for name, found in shards.items()},
        "snapshots": {name: found[-1].snapshot for name, found in shards.items() if found},
        "until": max(shard.time_max for shard in shards[line.table.name]),
        "params": describe(line.model),
        "seed": line.model.seed,
        "code": export.code_digest(line.model),
        "pipeline": line.fingerprint(),
    }


def rows(place: Place, run: runs.Run, *, on_step: Step) -> Rows:
    """Build or reuse the run's features and split them."""
    on_step("features")
    line, shards = place.pipeline, shards_of(place, run)
    made = build.build(line, shards, folder=place.settings.place("features"))
    table = build.read(made)
    times, known_at = table["_time"].to_numpy(), table["_known_at"].to_numpy()
    label = table["_label"].to_numpy()
    split = windows.split(times, known_at, label, holdout_us=int(duration(line.holdout).total_seconds() * 1e6))
    segments = {name: np.asarray(table[f"segment:{name}"].to_pylist(), dtype=object) for name in line.segments}
    columns = to_columns(table.select([column.name for column in line.outputs]))
    built = sum(bool(part.built) for part in made.parts)
    if not line.rows:
        return Rows(columns, label, segments, split, made.digest, built, shards=shards)
    keys = row_hash({name: table[name].combine_chunks() for name in _PLACE}, _PLACE)
    home = table["_shard"].combine_chunks()
    tags = {shard.shard: shard.tags for shard in shards[line.table.name]}
    train = split.train.copy()
    train[train] = slices.chosen(
        line.selectors,
        Offered(
            times=times[train],
            keys=keys[train],
            segments=take(segments, train),
            shards=home.indices.to_numpy()[train],
            tags=[tags[shard] for shard in home.dictionary.to_pylist()],
        ),
    )
    selection = {
        "rule": "; ".join(part.explain() for part in line.selectors),
        "of": int(split.train.sum()),
        "rows": int(train.sum()),
    }
    split = windows.Split(windows.enough(train, label, "to train on"), split.judge, split.window)
    return Rows(columns, label, segments, split, made.digest, built, selection, shards)


def shards_of(place: Place, run: runs.Run) -> dict[str, list[Any]]:
    """The run's shards by table, as the catalogue knows them."""
    return {name: list(catalog.resolve(place.journal, name, digests)) for name, digests in run.shards.items()}


def carry_out(
    place: Place, run: runs.Run, *, workers: int, gpu: bool, on_step: Step, data: Rows | None = None, model: Any = None
) -> versions.Version:
    """Train, evaluate, register. `data` and `model` replace what the run's inputs would give. Returns the registered version."""
    begun = monotonic()
    line = place.pipeline
    data = data or rows(place, run, on_step=on_step)
    model = model or line.model.resolved({})
    encoder = Encoder.fit(take(data.columns, data.split.train), line.outputs)
    on_step("training")
    folder = save(place, data, encoder, data.split.train, f"{run.id}-train")
    trained = trainer.train(
        folder,
        model,
        workers=workers,
        gpu=gpu,
        run=run.id,
        storage=place.settings.home / "training",
        on_progress=_epochs(on_step),
    )
    on_step("export")
    version = versions.next_name(place.journal, line.name, run.id)
    made = _files(place, run, version, data, encoder, model, trained)
    on_step("evaluation")
    report = compare(place, predictor(place, made), data)
    manifest = files.store(place.artifacts, made)
    profile = Profiles.of(take(data.columns, data.split.train), profiled_by(line))
    registered = versions.register(
        place.journal,
        line.name,
        manifest=manifest,
        run=run.id,
        verdict=report.verdict.decision,
        metrics=report.candidate.metrics,
        reasons=report.verdict.reasons,
    )
    facts = {
        "weights": trained.digest,
        "contract": trained.contract,
        "history": list(trained.history),
        "features": data.digest,
        "features_built": data.built,
        "rows": int(data.split.train.sum()),
        "rows_judged": int(data.split.judge.sum()),
        "selection": dict(data.selection),
        "workers": workers,
        "seconds": round(monotonic() - begun, 2),
        "profile": place.artifacts.put(profile.to_bytes()),
        "report": report.to_json(),
    }
    runs.registered(place.journal, line.name, run.id, version=registered.name, facts=facts)
    return registered


def profiled_by(line: Pipeline) -> tuple[str, ...]:
    """The segments by which features are profiled too: those that are features of text."""
    texts = {column.name for column in line.outputs if column.kind == "category"}
    return tuple(name for name in line.segments if name in texts)


def save(place: Place, data: Rows, encoder: Encoder, mask: NDArray[np.bool_], name: str) -> Path:
    """Write the encoded rows under `mask` as a training set and return its folder."""
    part = take(data.columns, mask)
    folder = place.settings.home / "work" / name
    made = TrainingSet(
        numeric=encoder.numeric(part),
        category=encoder.category(part),
        label=data.label[mask].astype(np.float32),
        cardinalities=tuple(encoder.cardinalities),
    )
    made.save(folder)
    return folder


def take(columns: Columns, rows: NDArray[np.bool_] | NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """The rows under a mask, or at places."""
    return {name: values[rows] for name, values in columns.items()}


def predictor(place: Place, made: Mapping[str, bytes]) -> Predictor:
    """A version's predictor; functions of its features come from the pipeline file."""
    return Predictor.load(made, lambda: own_features(place.pipeline.features))


def compare(place: Place, candidate: Predictor, data: Rows) -> Report:
    """Candidate and champion on the judging window, the interval on their difference, and the gate's verdict."""
    line = place.pipeline
    label = data.label[data.split.judge]
    scores = candidate.score_features(_seen_by(place, candidate, data))
    ours = gate.Evaluation(metrics.metrics(scores, label, candidate.threshold), len(label))
    route = routes.current(place.journal, line.name)
    theirs, difference = None, None
    if route is not None:
        champion = predictor(place, files.fetch(place.artifacts, route.stable.manifest))
        other = champion.score_features(_seen_by(place, champion, data))
        theirs = gate.Evaluation(metrics.metrics(other, label, champion.threshold), len(label))
        difference = stats.delong(scores, other, label)
    segments = {
        name: metrics.by_segment(scores, label, values[data.split.judge], candidate.threshold)
        for name, values in data.segments.items()
    }
    return Report(ours, theirs, difference, gate.decide(line.gate, ours, theirs, difference), str(data.split.window), segments)


def _seen_by(place: Place, version: Predictor, data: Rows) -> Columns:
    """The judging rows' features as a version defines them: a column of the same name may mean something else in the pipeline now."""
    line = place.pipeline
    if version.spec.features == tuple(to_spec(feature) for feature in line.features):
        return take(data.columns, data.split.judge)
    made = build.build(line.replace(features=version.features), data.shards, folder=place.settings.place("features"))
    table = build.read(made, columns=version.encoder.names)
    return take(to_columns(table.select(list(version.encoder.names))), data.split.judge)


def _epochs(on_step: Step) -> Callable[[Mapping[str, Any]], None]:
    return lambda seen: on_step(f"training, epoch {seen['epoch'] + 1}, loss {seen['loss']:.4f}")


def _files(
    place: Place, run: runs.Run, version: str, data: Rows, encoder: Encoder, model: Any, trained: trainer.Trained
) -> dict[str, bytes]:
    line = place.pipeline
    golden = take(data.columns, np.flatnonzero(data.split.judge).astype(np.int64)[:GOLDEN_ROWS])
    spec = ModelSpec(
        endpoint=line.name,
        version=version,
        key=line.table.keys,
        time=line.table.time,
        request=request_kinds(place),
        segments=tuple(line.segments),
        features=tuple(to_spec(feature) for feature in line.features),
        label={"column": line.label.column, "above": line.label.above, "known_at": line.label.known_at},
        threshold=0.5,
        observe={table.name: catalog.kinds(place.journal, table.name) for table in line.all_tables},
        table=line.table.name,
        personal={
            table.name: {part.column: personal.kind(part) for part in table.personal}
            for table in line.all_tables
            if table.personal
        },
        lineage={"run": run.id, "features": data.digest, "code": run.code, "weights": trained.digest, "seed": run.seed},
    )
    made = export.files(trained, model, spec=spec.to_bytes(), encoder=encoder.to_json(), golden=golden_rows(encoder, golden))
    newest = np.flatnonzero(data.split.train).astype(np.int64)[-20_000:]
    scores = predictor(place, made).score_features(take(data.columns, newest))
    threshold = metrics.best_threshold(scores, data.label[newest])
    fields = {**spec.__dict__, "threshold": threshold}
    return {**made, files.SPEC: ModelSpec(**fields).to_bytes()}


def golden_rows(encoder: Encoder, columns: Columns) -> dict[str, Any]:
    """Feature values of a few rows and their encoded form; export adds the scores."""
    return {
        "features": {name: [_plain(value) for value in values] for name, values in columns.items()},
        "numeric": encoder.numeric(columns),
        "category": encoder.category(columns),
        "cardinalities": encoder.cardinalities,
    }


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str):
        return value
    return None if np.isnan(value) else float(value)


def request_kinds(place: Place) -> dict[str, str]:
    """Each request column's kind, as the table's contract knows it."""
    known = catalog.kinds(place.journal, place.pipeline.table.name)
    return {name: known[name] for name in place.pipeline.request_columns}
