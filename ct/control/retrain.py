"""Carries one started run to its verdict: rows, fitting, packing, judging, registration.

Every step is a function of the run's frozen inputs, and what is made is kept under its content hash: a run that was killed
anywhere and is carried out again ends in the same version.
"""

from __future__ import annotations

from time import monotonic
from typing import Any

from ct.control import labelled, runs
from ct.control.fitting import fit
from ct.control.judging import compare, predictor
from ct.control.packing import files_of
from ct.control.place import Place, Step
from ct.control.rows import Rows, rows, take
from ct.data import catalog
from ct.data.profile import Profiles
from ct.errors import NotFound
from ct.ids import describe
from ct.pipeline import Pipeline
from ct.registry import files, versions
from ct.training import export


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


def carry_out(
    place: Place, run: runs.Run, *, workers: int, gpu: bool, on_step: Step, data: Rows | None = None, model: Any = None
) -> versions.Version:
    """Train, evaluate, register. `data` and `model` replace what the run's inputs would give. Returns the registered version."""
    begun = monotonic()
    line = place.pipeline
    data = data or rows(place, run, on_step=on_step)
    counts = labelled.counted(place, data)
    if said := labelled.strange(counts):
        on_step(said)
    fitted = fit(place, run, data, model or line.model.resolved({}), workers=workers, gpu=gpu, on_step=on_step)
    on_step("export")
    version = versions.next_name(place.journal, line.name, run.id)
    made = files_of(place, run, version, data, fitted)
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
    trained = fitted.trained
    facts = {
        "weights": trained.digest,
        "contract": trained.contract,
        "history": list(trained.history),
        "features": data.digest,
        "features_built": data.built,
        "rows": int(data.split.train.sum()),
        "rows_held": int(data.split.calibrate.sum()),
        "rows_judged": int(data.split.judge.sum()),
        "selection": dict(data.selection),
        "calibration": fitted.calibration.to_json(),
        "calibrated": fitted.calibrated,
        "labels": counts,
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
