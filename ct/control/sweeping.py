"""A sweep carried out: the search space on the newest data, its trials in the journal, and the best one trained whole before the same gate."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ct.control import evolving, fitting, runs, sweeps
from ct.control.place import Step
from ct.control.rows import Rows, rows, take
from ct.control.sweeps import Sweep
from ct.errors import InvalidPipeline, NotFound, TrainingFailed
from ct.evaluation.tuning import tuning
from ct.features.encode import Encoder
from ct.ids import describe
from ct.pipeline import Pipeline
from ct.registry import versions
from ct.registry.versions import Version
from ct.store import leases
from ct.training import sweep as running
from ct.training.ledger import Ledger
from ct.training.search import CHOOSERS, Leg, Random, Reached, Space
from ct.training.sweep import Task

if TYPE_CHECKING:
    from ct.control.act import Actor

Told = Callable[[Ledger], None]


def _silent(_: Any) -> None: ...


@dataclass(frozen=True)
class Swept:
    """A sweep with the version that came of it; None while there is none."""

    sweep: Sweep
    version: Version | None

    def to_json(self) -> dict[str, Any]:
        """The result as plain data. `best` are the settings that the best trial ended with."""
        winner = self.sweep.winner
        return {
            "run": self.sweep.run,
            "asked": dict(self.sweep.asked),
            "trials": [trial.to_json() for trial in self.sweep.trials],
            "best": winner.to_json() if winner else None,
            "ended": self.sweep.ended,
            "version": self.version.name if self.version else None,
            "verdict": self.version.verdict if self.version else None,
        }


def chooser(line: Pipeline, *, name: str = "", trials: int = 0) -> Any:
    """Who chooses the trials: the pipeline's own, or the one of that `name` with its defaults; `trials` replaces how many.

    Raises InvalidPipeline for a model without searches, an unknown name or a number that is not allowed.
    """
    if not line.model.searches():
        raise InvalidPipeline(
            "the model has nothing to search", "at least one ct.Search", "for example lr=ct.Search(1e-4, 1e-2, log=True)"
        )
    if name and name not in CHOOSERS:
        raise InvalidPipeline(f"the search {name!r}", f"one of {sorted(CHOOSERS)}", "check the spelling")
    found = line.sweep or Random()
    if name and getattr(found, "name", "") != name:
        found = CHOOSERS[name]()
    if trials:
        found = type(found)(**{**vars(found), "trials": trials})
    if faults := found.validate():
        raise InvalidPipeline("; ".join(faults), "", "mend the sweep's declaration")
    return found


def plan(line: Pipeline, chosen: Any, first: Mapping[str, Any]) -> Ledger:
    """The sweep before any trial has run. Raises InvalidPipeline when `chosen` cannot search this space."""
    model = line.model
    epochs = 0 if "epochs" in model.searches() else model.epochs
    return Ledger(chosen, Space(model.searches(), epochs, model.seed, first), {})


def first(act: Actor) -> Mapping[str, Any]:
    """With what a sweep begun now would begin: what the best trial of the last one ended with, empty for none."""
    ended = [found for found in sweeps.all_sweeps(act.journal, act.pipeline.name) if found.ended and found.winner]
    return ended[-1].winner.now if ended and ended[-1].winner else {}


def last(act: Actor) -> Swept:
    """The newest sweep as the journal tells it, ended or not. Raises NotFound when there was none."""
    found = sweeps.all_sweeps(act.journal, act.pipeline.name)
    if not found:
        raise NotFound(f"{act.pipeline.name!r} was never swept", "a sweep", "run `ct sweep`")
    made = [known for known in versions.all_versions(act.journal, act.pipeline.name) if known.run == found[-1].run]
    return Swept(found[-1], made[-1] if made else None)


def sweep(act: Actor, chosen: Any, *, parallel: int, on_step: Step = _silent, on_trials: Told = _silent) -> Swept:
    """Run the trials that the journal does not know yet for these inputs, then train the best setting whole. A killed sweep goes on.

    `on_trials` is told of the ledger when it is opened and whenever a leg of a trial has ended.
    Raises InvalidPipeline; TrainingFailed when every trial failed; Held when another process carries the same sweep out.
    """
    line = act.pipeline
    plan(line, chosen, {})
    run, known = _open(act, chosen)
    home = act.settings.home / "sweeps" / run.id
    home.mkdir(parents=True, exist_ok=True)
    with leases.held(act.journal, runs.lease(line.name, run.id)) as lease:
        # Who held it until now may have gone on with it since it was read.
        known = next(found for found in sweeps.all_sweeps(act.journal, line.name) if found.run == run.id)
        try:
            data = rows(act.place, run, on_step=on_step)
            task = _task(act, run, data)
            ledger = _tried(act, run, known, chosen, task, lease, parallel=parallel, on_step=on_step, on_trials=on_trials)
            winner = ledger.winner()
        except TrainingFailed as error:
            runs.failed(act.journal, line.name, run.id, error=str(error), state=error.state, guard=lease)
            _clear(act, run)
            raise
        if not known.ended:
            sweeps.end(act.journal, line.name, run.id, trials=ledger.trials(), best=winner.number, guard=lease)
    on_step(f"trial {winner.number} is trained whole")
    act.train(run, on_step=on_step, data=data, model=running.settled(line.model, winner.params, winner.course))
    _clear(act, run)
    return last(act)


def _clear(act: Actor, run: runs.Run) -> None:
    """Remove the checkpoints of trials; the picture stays."""
    for part in ("legs", "tune"):
        shutil.rmtree(act.settings.home / "sweeps" / run.id / part, ignore_errors=True)


def _tried(
    act: Actor,
    run: runs.Run,
    known: Sweep,
    chosen: Any,
    task: Task,
    lease: leases.Lease,
    *,
    parallel: int,
    on_step: Step,
    on_trials: Told,
) -> Ledger:
    """The ledger with every trial in it."""

    def note(leg: Leg, seen: Reached, ledger: Ledger) -> None:
        best = ledger.best()
        whole = leg.until >= ledger.space.whole(leg.params)
        number = best.number if best else 0
        sweeps.reached(act.journal, act.pipeline.name, run.id, leg, seen, whole=whole, best=number, guard=lease)
        on_trials(ledger)

    begun = known.asked["first"]
    on_step("trials")
    on_trials(Ledger(chosen, task.space(run.seed, begun), known.known))
    return running.sweep(
        task,
        chosen,
        seed=run.seed,
        first=begun,
        parallel=parallel,
        folder=act.settings.home / "sweeps" / run.id,
        known=known.known,
        on_leg=note,
    )


def _task(act: Actor, run: runs.Run, data: Rows) -> Task:
    """The rows that trials share, encoded and weighed once by what is known from those that train them.

    Trials begin with the champion's weights only where it knows none of the rows that judge them: else whoever learns least would win.
    """
    line, place = act.pipeline, act.place
    evolving.check_labels(place, run, data)
    known = runs.trained_until(act.journal, line.name, str(run.start.get("run", ""))) if line.model.start == "champion" else 0
    chosen = tuning(data.split, data.times, data.known_at, data.label, objective=line.label.objective, after=known)
    part = replace(data, split=replace(data.split, train=chosen.train, judge=chosen.judge, stop=chosen.stop))
    middle = line.model.resolved({})
    begun = evolving.begin(place, run, middle, Encoder.fit(take(data.columns, chosen.train), line.outputs))
    # Another width could not begin with the champion's weights.
    alike = not any(name.startswith("options.") for name in line.model.searches())
    unseen = bool(data.times[chosen.judge].min() >= known)

    def save(mask: Any, name: str, weight: Any = None) -> Path:
        return fitting.save(place, part, begun.encoder, mask, f"{run.id}-sweep-{name}", weight=weight)

    return Task(
        train=save(chosen.train, "train", fitting.row_weights(place, run, part)),
        judge=save(chosen.judge, "judge"),
        stop=save(chosen.stop, "stop") if chosen.stop.any() else None,
        model=line.model,
        objective=line.label.objective,
        start=(begun.weights[0] or {}) if alike and unseen else {},
        gpu=act.gpu(),
    )


def _leave(act: Actor, run: runs.Run) -> None:
    """Record that a killed sweep will not be gone on with. One that another process carries out is left to it."""
    name = act.pipeline.name
    try:
        with leases.held(act.journal, runs.lease(name, run.id)) as lease:
            error = "left for a sweep of other data or of another declaration"
            runs.failed(act.journal, name, run.id, error=error, guard=lease)
            _clear(act, run)
    except leases.Held:
        pass


def _open(act: Actor, chosen: Any) -> tuple[runs.Run, Sweep]:
    """The sweep that was killed before its end, if it was asked the same of the same inputs; else a new one."""
    line, inputs = act.pipeline, act.run_inputs()
    asked = {
        "chooser": {"name": getattr(chosen, "name", type(chosen).__name__), **describe(chosen)},
        "space": {name: describe(search) for name, search in line.model.searches().items()},
        "seed": line.model.seed,
    }
    known = {found.run: found for found in sweeps.all_sweeps(act.journal, line.name)}
    begun = [run for run in runs.all_runs(act.journal, line.name) if run.cause == sweeps.CAUSE and not run.outcome]
    for run in begun:
        found = known.get(run.id)
        same = all(getattr(run, name) == inputs[name] for name in ("snapshots", "pipeline", "code", "seed"))
        if same and found and {key: found.asked[key] for key in asked} == asked:
            return run, found
        if found or not same:
            _leave(act, run)
    # One that was killed before it said what it was asked is used.
    kept = [run for run in runs.all_runs(act.journal, line.name) if run in begun and run.id not in known]
    run = kept[0] if kept else act.start_run(sweeps.CAUSE)
    asked["first"] = dict(first(act))
    sweeps.start(act.journal, line.name, run.id, asked=asked)
    return run, Sweep(run.id, asked)
