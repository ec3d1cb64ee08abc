"""A pipeline's sweeps as the journal tells them: what each was asked, what every leg of its trials gave, which trial was best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ct.store.journal import Guard, Journal, New
from ct.training.ledger import Trial
from ct.training.search import Leg, Reached

CAUSE = "sweep"
"""The cause of a sweep's run, by which it is known among the others."""


@dataclass(frozen=True)
class Sweep:
    """One sweep. `asked` is what it was begun with: chooser, space, seed, first settings. `known` are its legs' results by key.

    `trials` are final once it has `ended`, before that what its legs so far say. `best` is the number of the best trial, 0 for none.
    """

    run: str
    asked: Mapping[str, Any]
    known: Mapping[str, Reached] = field(default_factory=dict)
    trials: tuple[Trial, ...] = ()
    best: int = 0
    ended: bool = False

    @property
    def winner(self) -> Trial | None:
        """The best trial."""
        return next((trial for trial in self.trials if trial.number == self.best), None)


def stream(pipeline: str) -> str:
    """The journal stream of a pipeline's sweeps."""
    return f"sweep/{pipeline}"


def all_sweeps(journal: Journal, pipeline: str) -> tuple[Sweep, ...]:
    """Every sweep, oldest first."""
    found: dict[str, Sweep] = {}
    for event in journal.read(stream(pipeline)):
        data = event.data
        seen = found.get(data["run"])
        if event.type == "SweepStarted" and seen is None:  # two that begin it at once begin one
            found[data["run"]] = Sweep(data["run"], data["asked"])
        elif seen and event.type == "TrialReached" and data["key"] not in seen.known:
            known = {**seen.known, data["key"]: Reached(data["trial"]["loss"], data["trial"]["error"])}
            trials = {trial.number: trial for trial in (*seen.trials, Trial.from_json(data["trial"]))}
            found[seen.run] = replace(
                seen, known=known, trials=tuple(trial for _, trial in sorted(trials.items())), best=data["best"]
            )
        elif seen and event.type == "SweepEnded":
            trials_ = tuple(Trial.from_json(trial) for trial in data["trials"])
            found[seen.run] = replace(seen, trials=trials_, best=data["best"], ended=True)
    return tuple(found.values())


def start(journal: Journal, pipeline: str, run: str, *, asked: Mapping[str, Any]) -> None:
    """Record that a sweep begins."""
    journal.append(stream(pipeline), [New("SweepStarted", {"run": run, "asked": dict(asked)})])


def reached(
    journal: Journal, pipeline: str, run: str, leg: Leg, seen: Reached, *, whole: bool, best: int, guard: Guard | None = None
) -> None:
    """Record how a leg of a trial ended, and which trial is the best so far (0: none). `whole`: it was trained to its end."""
    state = "failed" if seen.loss is None else "finished" if whole else "waiting"
    trial = Trial(leg.number, leg.params, leg.until, seen.loss, state, seen.error, leg.course)
    data = {"run": run, "key": leg.key, "trial": trial.to_json(), "best": best}
    journal.append(stream(pipeline), [New("TrialReached", data)], guard=guard)


def end(journal: Journal, pipeline: str, run: str, *, trials: tuple[Trial, ...], best: int, guard: Guard | None = None) -> None:
    """Record a sweep's trials and the best of them."""
    data = {"run": run, "trials": [trial.to_json() for trial in trials], "best": best}
    journal.append(stream(pipeline), [New("SweepEnded", data)], guard=guard)
