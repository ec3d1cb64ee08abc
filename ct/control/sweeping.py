"""A sweep: the search space on the newest data, its trials in the journal, and the best one trained whole before the same gate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ct.control import retrain, runs
from ct.control.fitting import save
from ct.control.place import Step
from ct.control.rows import rows, take
from ct.errors import InvalidPipeline
from ct.features.encode import Encoder
from ct.ids import canonical, sha256
from ct.registry.versions import Version
from ct.store.journal import New
from ct.training import sweep as tuning
from ct.training.sweep import Trial

if TYPE_CHECKING:
    from ct.control.act import Actor


@dataclass(frozen=True)
class Swept:
    """What a sweep found."""

    trials: tuple[Trial, ...]
    best: Mapping[str, Any]
    version: Version

    def to_json(self) -> dict[str, Any]:
        """The result as plain data."""
        return {
            "trials": [asdict(trial) for trial in self.trials],
            "best": dict(self.best),
            "version": self.version.name,
            "verdict": self.version.verdict,
        }


def sweep(act: Actor, *, trials: int, parallel: int, on_step: Step) -> Swept:
    """Run the trials that the journal does not know yet for these inputs, then train the best setting. A killed sweep goes on."""
    line = act.pipeline
    if not line.model.searches():
        raise InvalidPipeline(
            "the model has nothing to search", "at least one ct.Search", "for example lr=ct.Search(1e-4, 1e-2, log=True)"
        )
    run = _open_run(act)
    data = rows(act.place, run, on_step=on_step)
    encoder = Encoder.fit(take(data.columns, data.split.train), line.outputs)
    train = save(act.place, data, encoder, data.split.train, f"{run.id}-train")
    judge = save(act.place, data, encoder, data.split.judge, f"{run.id}-judge")
    stream = f"sweep/{line.name}"
    done = {event.data["key"]: event.data["metric"] for event in act.journal.read(stream) if event.data["run"] == run.id}

    def note(trial: Trial) -> None:
        key = sha256(canonical(dict(trial.params)))
        if key not in done:
            data = {"run": run.id, "key": key, "params": dict(trial.params), "metric": trial.metric, "state": trial.state}
            act.journal.append(stream, [New("TrialFinished", data)])
        on_step(f"trial {len(done) + 1}: {dict(trial.params)} -> {trial.metric:.4f}")

    found = tuning.sweep(
        train,
        judge,
        line.model,
        objective=line.label.objective,
        trials=trials,
        seed=run.seed,
        parallel=parallel,
        on_trial=note,
        done=done,
    )
    best = min((trial for trial in found if trial.state == "finished"), key=lambda trial: trial.metric)
    version = retrain.carry_out(
        act.place,
        run,
        workers=act.settings.workers,
        gpu=False,
        on_step=on_step,
        data=data,
        model=line.model.resolved(best.params),
    )
    return Swept(found, best.params, version)


def _open_run(act: Actor) -> runs.Run:
    """The sweep that was killed before its end, if its inputs are still the newest; else a new one."""
    inputs = act.run_inputs()
    for run in runs.all_runs(act.journal, act.pipeline.name):
        if (
            not run.outcome
            and run.cause == "sweep"
            and run.snapshots == inputs["snapshots"]
            and run.pipeline == inputs["pipeline"]
        ):
            return run
    return act.start_run("sweep")
