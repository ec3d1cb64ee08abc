"""A training run as the journal tells it: what it was started with, and how it ended. A run's inputs are frozen when it starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from ct.ids import canonical, sha256
from ct.store.journal import Event, Guard, Journal, New


@dataclass(frozen=True)
class Run:
    """One run. `shards` are the SHA-256 of the shards of each table it reads; `until` is the newest event time among them (microseconds).

    `start` is the champion when it began ({} for none): "version", "manifest", "weights" (digest), "run", and "warm", how many runs in a
    row began with their champion's weights before it. `seeds` is with how many seeds the model is trained, `accepts` what a person said
    may be odd this time, with the reason ("labels").
    `outcome` is "" while it is unfinished, else "registered" or "failed"; `state` of a failed one is "failed", "invalid" or "diverged".
    """

    id: str
    cause: str
    shards: Mapping[str, tuple[str, ...]]
    snapshots: Mapping[str, int]
    until: int
    params: Mapping[str, Any]
    seed: int
    code: str
    pipeline: str
    started: datetime
    outcome: str = ""
    version: str = ""
    error: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    start: Mapping[str, Any] = field(default_factory=dict)
    seeds: int = 1
    accepts: Mapping[str, str] = field(default_factory=dict)
    state: str = ""

    @property
    def data_time(self) -> datetime:
        """The newest event time it saw."""
        return datetime.fromtimestamp(self.until / 1e6, UTC)


def stream(pipeline: str) -> str:
    """The journal stream of a pipeline's runs."""
    return f"run/{pipeline}"


def all_runs(journal: Journal, pipeline: str) -> tuple[Run, ...]:
    """Every run, oldest first."""
    runs: dict[str, Run] = {}
    for event in journal.read(stream(pipeline)):
        key = event.data["run"]
        if event.type == "RunStarted":
            runs[key] = _run(event)
        elif event.type == "RunRegistered":
            runs[key] = replace(runs[key], outcome="registered", version=event.data["version"], facts=event.data["facts"])
        elif event.type == "RunFailed":
            runs[key] = replace(runs[key], outcome="failed", error=event.data["error"], state=event.data.get("state", "failed"))
    return tuple(runs.values())


def get(journal: Journal, pipeline: str, run: str) -> Run | None:
    """One run, None where the journal knows none of that name."""
    return next((known for known in all_runs(journal, pipeline) if known.id == run), None)


def trained_until(journal: Journal, pipeline: str, run: str) -> int:
    """The event time (microseconds) before which all rows lie that a run's weights know: its own training rows, and those of the weights
    it began with. 0 where nothing is recorded. A run that has no facts yet may have begun with its champion's weights.
    """
    known, until, at = {found.id: found for found in all_runs(journal, pipeline)}, 0, run
    while at in known:
        found = known.pop(at)
        until = max(until, int(found.facts.get("trained_until", 0)))
        warm = bool(found.facts.get("start", {}).get("warm")) or not found.facts
        at = str(found.start.get("run", "")) if warm else ""
    return until


def start(journal: Journal, pipeline: str, *, cause: str, inputs: Mapping[str, Any]) -> Run:
    """Record a new run with its frozen inputs: shards, snapshots, until, params, seed, code, pipeline (fingerprint), and start, seeds
    and accepts where they say something."""
    position = journal.version(stream(pipeline))
    number = len(all_runs(journal, pipeline)) + 1
    key = f"run-{number}-{sha256(canonical(dict(inputs)))[:8]}"
    sources = [f"shard/{table}/{digest}" for table, digests in inputs["shards"].items() for digest in digests]
    data = {"run": key, "cause": cause, **inputs, "makes": f"run/{pipeline}/{key}", "from": sources}
    journal.append(stream(pipeline), [New("RunStarted", data)], expected=position)
    return next(run for run in all_runs(journal, pipeline) if run.id == key)  # another one may have begun its own meanwhile


def registered(
    journal: Journal, pipeline: str, run: str, *, version: str, facts: Mapping[str, Any], guard: Guard | None = None
) -> None:
    """Record that a run ended in a version. `facts` are its measured figures; `guard` is the run's lease, see `Journal.append`."""
    data = {"run": run, "version": version, "facts": dict(facts)}
    journal.append(stream(pipeline), [New("RunRegistered", data)], guard=guard)


def failed(journal: Journal, pipeline: str, run: str, *, error: str, state: str = "failed", guard: Guard | None = None) -> None:
    """Record that a run gave no version, why, and in which state it ended."""
    journal.append(stream(pipeline), [New("RunFailed", {"run": run, "error": error, "state": state})], guard=guard)


def lease(pipeline: str, run: str) -> str:
    """The name of the lease under which a run is carried out."""
    return f"{stream(pipeline)}/{run}"


def _run(event: Event) -> Run:
    data = event.data
    return Run(
        id=data["run"],
        cause=data["cause"],
        shards={table: tuple(digests) for table, digests in data["shards"].items()},
        snapshots=data["snapshots"],
        until=data["until"],
        params=data["params"],
        seed=data["seed"],
        code=data["code"],
        pipeline=data["pipeline"],
        started=event.at,
        start=data.get("start", {}),
        seeds=data.get("seeds", 1),
        accepts=data.get("accepts", {}),
    )
