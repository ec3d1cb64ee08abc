"""Carries one started run to its verdict: rows, fitting, packing, judging, registration.

Every step is a function of the run's frozen inputs, and what is made is kept under its content hash: a run that was killed
anywhere and is carried out again ends in the same version.
"""

from __future__ import annotations

from collections.abc import Mapping
from time import monotonic
from typing import Any

from ct.control import evolving, labelled, runs, tracking
from ct.control.fitting import Fitted, fit
from ct.control.judging import judge
from ct.control.packing import files_of
from ct.control.place import Place, Step
from ct.control.repeating import spread
from ct.control.rows import Rows, profiled_by, rows, take
from ct.data import catalog
from ct.data.profile import Profiles
from ct.errors import Corrupt, NotFound, TrainingFailed
from ct.ids import describe, sha256
from ct.registry import versions
from ct.registry.code import Code
from ct.registry.files import CODE, SPEC, ModelSpec
from ct.registry.publishing import publish
from ct.serving.runtime import features_of
from ct.settings import Workers
from ct.store import leases
from ct.training.code import code_of, home_of, own_digest
from ct.training.data import TrainingSet


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
        "code": sha256(code(place).to_bytes()),
        "pipeline": line.fingerprint(),
        "start": evolving.frozen(place),
    }


def code(place: Place) -> Code:
    """The pipeline's code as it is in the working copy now: from the file of the settings, else from the module that has the pipeline."""
    path, _, variable = place.settings.pipeline.partition(":")
    file = place.settings.root / path
    found = (file, variable) if file.is_file() else home_of(place.pipeline) or (None, "")
    return code_of(place.pipeline.model, *found)


def start(place: Place, *, cause: str, more: Mapping[str, Any] | None = None) -> runs.Run:
    """Record a new run with its frozen inputs, `more` among them, after its code is kept."""
    kept = place.artifacts.put(code(place).to_bytes())  # what was kept is what is named, though a file be saved meanwhile
    return runs.start(place.journal, place.pipeline.name, cause=cause, inputs=inputs(place) | {"code": kept} | dict(more or {}))


def carry_out(
    place: Place, run: runs.Run, *, workers: Workers, gpu: bool, on_step: Step, data: Rows | None = None, model: Any = None
) -> versions.Version:
    """Train, evaluate, register, under the run's lease. `data` and `model` replace what the run's inputs would give.

    Returns the registered version; a run that another process has ended meanwhile is not begun again. A run that cannot give a model is
    recorded as failed, then TrainingFailed is raised. Raises Held when another process carries it out, Conflict when one has taken it
    over: then nothing was written.
    """
    line = place.pipeline
    with leases.held(place.journal, runs.lease(line.name, run.id)) as lease:
        now = next((known for known in runs.all_runs(place.journal, line.name) if known.id == run.id), run)
        if now.outcome == "registered":
            return versions.get(place.journal, line.name, now.version)
        if now.outcome:
            raise TrainingFailed(now.error, "a run that is not over", "start a new one", state=now.state)
        try:
            _same_code(place, run)
            place.artifacts.keys.ready()
            registered, facts = _carried(place, run, lease, workers, gpu, on_step, data, model)
        except TrainingFailed as error:
            runs.failed(place.journal, line.name, run.id, error=str(error), state=error.state, guard=lease)
            raise
    tracking.tell(place, run, registered, facts)
    return registered


def _same_code(place: Place, run: runs.Run) -> None:
    found = {"pipeline": place.pipeline.fingerprint(), "code": sha256(code(place).to_bytes())}
    for name, frozen in (("pipeline", run.pipeline), ("code", run.code)):
        if found[name] != frozen:
            raise TrainingFailed(f"the {name} has changed since {run.id} began", f"its hash {frozen[:12]}", "begin a new run")


def _carried(
    place: Place, run: runs.Run, lease: leases.Lease, workers: Workers, gpu: bool, on_step: Step, data: Rows | None, model: Any
) -> tuple[versions.Version, dict[str, Any]]:
    begun, line = monotonic(), place.pipeline
    data = data or rows(place, run, on_step=on_step)
    counts = labelled.counted(place, data)
    if said := labelled.strange(counts):
        on_step(said)
    model = model or line.model.resolved({})
    fitted = fit(place, run, data, model, workers=workers, gpu=gpu, on_step=on_step)
    lease.check()
    seeds = spread(place, run, data, fitted, workers=workers, gpu=gpu, on_step=on_step)
    on_step("export")
    made = files_of(place, run, versions.next_name(place.journal, line.name, run.id), data, fitted)
    _servable(made, on_step)
    on_step("evaluation")
    report = judge(place, made, data)
    profile = Profiles.of(take(data.columns, data.split.train), profiled_by(line))
    facts = {
        **_facts(place, run, data, fitted, model),
        "labels": counts,
        "seeds": seeds,
        "workers": workers,
        "epoch": lease.epoch,
        "profile": place.artifacts.put(profile.to_bytes()),
        "report": report.to_json(),
    }
    registered = publish(
        place.journal,
        place.artifacts,
        line.name,
        made,
        run=run.id,
        verdict=report.verdict.decision,
        metrics=report.candidate.metrics,
        reasons=report.verdict.reasons,
        guard=lease,
    )
    facts["seconds"] = round(monotonic() - begun, 2)
    runs.registered(place.journal, line.name, run.id, version=registered.name, facts=facts, guard=lease)
    return registered, facts


def _servable(made: Mapping[str, bytes], on_step: Step) -> None:
    """Can a replica load the functions of these features out of the archive alone?"""
    spec = ModelSpec.from_bytes(made[SPEC])
    try:
        features_of(spec, made[CODE])
    except Corrupt as error:
        if Code.from_bytes(made[CODE]).main:
            raise TrainingFailed(error.found, error.expected, error.remedy) from error
        on_step("this pipeline came from no file: its features' functions are not in the archive, and no replica can serve it")


def _facts(place: Place, run: runs.Run, data: Rows, fitted: Fitted, model: Any) -> dict[str, Any]:
    """What was measured, and what `ct reproduce` compares: every digest between the shards and the weights."""
    trained = fitted.trained
    return {
        "weights": trained.digest,
        "contract": trained.contract,
        "ct": own_digest(),
        "history": list(trained.history),
        "features": data.digest,
        "features_built": data.built,
        "training_set": training_set(place, run),
        "settings": settings_of(place.pipeline.model, model),
        "rows": int(data.split.train.sum()),
        "rows_held": int(data.split.calibrate.sum()),
        "rows_judged": int(data.split.judge.sum()),
        "selection": dict(data.selection),
        "calibration": fitted.calibration.to_json(),
        "calibrated": fitted.calibrated,
        "weighed": [part.explain() for part in place.pipeline.weights],
        "label_rates": evolving.label_rates(place.pipeline.label.objective, data.label[data.split.train]),
        "trained_until": data.split.window.start,
        "start": dict(fitted.start),
    }


def settings_of(declared: Any, used: Any) -> dict[str, Any]:
    """The values that searched settings had in a training, and its course where it had one."""
    values = {
        name: used.options[name.removeprefix("options.")] if name.startswith("options.") else getattr(used, name)
        for name in declared.searches()
    }
    course = [[at, dict(changed)] for at, changed in getattr(used, "course", ())]
    return values | ({"course": course} if course else {})


def training_set(place: Place, run: runs.Run) -> str:
    """The digest of the rows that a run trained on, as they were encoded."""
    return TrainingSet.open(place.settings.home / "work" / f"{run.id}-train")[1]
