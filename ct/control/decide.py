"""Observations → actions. Pure: no clock, no store, no Ray. What is decided here is carried out in act.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from ct.control.runs import Run
from ct.control.triggers import Observed
from ct.errors import CtError
from ct.pipeline import Pipeline
from ct.registry.routes import Route
from ct.registry.versions import Version
from ct.roles import Arrival as Item
from ct.rollout.state import Rollout


@dataclass(frozen=True)
class Arrival:
    """Something of a table's source that nobody has looked at yet, or the fault for which the source cannot be read on."""

    table: str
    path: Path
    item: Item | None = None
    fault: CtError | None = None


@dataclass(frozen=True)
class State:
    """All that a decision may look at."""

    arrivals: tuple[Arrival, ...] = ()
    undrifted: tuple[str, ...] = ()
    run: Run | None = None
    versions: tuple[Version, ...] = ()
    tried: frozenset[str] = frozenset()
    route: Route | None = None
    rollout: Rollout | None = None
    served_epoch: int | None = None
    observed: Observed = field(default_factory=Observed)


@dataclass(frozen=True)
class Reconcile:
    """Bring the replicas to the route that the journal says."""


@dataclass(frozen=True)
class Judge:
    """Look at the rollout's evidence and move it; a `paused` one is only taken back, when it does harm."""

    paused: bool = False


@dataclass(frozen=True)
class Ingest:
    """Check a file and publish or quarantine it."""

    arrival: Arrival


@dataclass(frozen=True)
class CheckDrift:
    """Compare a published shard with the champion's training data."""

    shard: str


@dataclass(frozen=True)
class StartRun:
    """Freeze the inputs of a new run."""

    cause: str


@dataclass(frozen=True)
class Train:
    """Carry a started run to its verdict."""

    run: Run


@dataclass(frozen=True)
class Deploy:
    """Serve the first version."""

    version: Version


@dataclass(frozen=True)
class StartRollout:
    """Give a cleared version its first traffic."""

    version: Version


Action: TypeAlias = Reconcile | Judge | Ingest | CheckDrift | StartRun | Train | Deploy | StartRollout


def decide(pipeline: Pipeline, state: State) -> tuple[Action, ...]:
    """What to do now, in order. Traffic comes before data, data before training; one rollout and one run at a time.

    A source that cannot be read is a fault to be told; it keeps nothing else from being done.
    """
    faults = tuple(Ingest(arrival) for arrival in state.arrivals if arrival.fault)
    return (*faults, *_work(pipeline, state))


def _work(pipeline: Pipeline, state: State) -> tuple[Action, ...]:
    actions: list[Action] = []
    if state.route is not None and state.served_epoch != state.route.epoch:
        actions.append(Reconcile())
    if state.rollout is not None:
        actions.append(Judge(paused=state.rollout.phase == "paused"))
    actions += [Ingest(arrival) for arrival in state.arrivals if not arrival.fault]
    actions += [CheckDrift(shard) for shard in state.undrifted]
    if actions:
        return tuple(actions)
    if state.run is not None:
        return (Train(state.run),)
    if state.rollout is None and (version := _waiting(state)):
        return (Deploy(version) if state.route is None else StartRollout(version),)
    if state.rollout is None and (cause := trigger(pipeline, state.observed)):
        return (StartRun(cause),)
    return ()


def trigger(pipeline: Pipeline, observed: Observed) -> str:
    """The first cause to retrain that the pipeline's triggers give, empty when none does."""
    for part in pipeline.retrain:
        if cause := part.decide(observed):
            return str(cause)
    return ""


def _waiting(state: State) -> Version | None:
    """The newest cleared version, unless it already had its traffic or a newer one did."""
    for version in reversed(state.versions):
        if version.name in state.tried:
            return None
        if version.cleared:
            return version
    return None
