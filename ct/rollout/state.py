"""A rollout as the journal tells it: a fold over the events of `rollout/<endpoint>`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from ct.errors import Conflict, NotFound
from ct.rollout.guards import QUANTILES
from ct.store.journal import Event, Journal, New


@dataclass(frozen=True)
class Rollout:
    """One rollout. `phase` is "progressing", "paused", "holding" or "ended"; `outcome` is "", "promoted", "rolled_back" or "aborted".

    `first_epoch` is the route's epoch at the start; only predictions from then on count in the verdict.
    `slow_ms` has the latency limit of each quantile, learned from stable before the start, `limit` how far off a number may be before it is wrong.
    `others` are the candidates after the first; `apart` says that they run in applications of their own. `passed_at` is when the step was
    first proven, `refused_at` when a hook last refused, `stage` what the step is: "", "shadow" or "bake".
    """

    id: str
    version: str
    baseline: str
    first_epoch: int
    slow_ms: Mapping[str, float]
    started: datetime
    step: int = -1
    phase: str = "progressing"
    outcome: str = ""
    cause: str = ""
    step_at: datetime | None = None
    ended: datetime | None = None
    evidence: tuple[dict[str, Any], ...] = ()
    split: Mapping[str, Any] | None = None
    segments: Mapping[str, Any] | None = None
    gains: tuple[dict[str, Any], ...] = ()
    limit: float | None = None
    others: tuple[str, ...] = ()
    apart: bool = False
    passed_at: datetime | None = None
    refused_at: datetime | None = None
    stage: str = ""

    @property
    def versions(self) -> tuple[str, ...]:
        """Every candidate, the first one first."""
        return (self.version, *self.others)

    @property
    def shown(self) -> str:
        """Its phase in the words that controllers of rollouts share."""
        if not self.active:
            return "Succeeded" if self.outcome == "promoted" else "RolledBack"
        if self.phase != "progressing":
            return self.phase.capitalize()
        return "Warming" if self.step < 0 else {"shadow": "Shadowing", "bake": "Baking"}.get(self.stage, "Progressing")

    @property
    def active(self) -> bool:
        """Does it still own the endpoint's canary?"""
        return self.phase != "ended"


def stream(endpoint: str) -> str:
    """The journal stream of an endpoint's rollouts."""
    return f"rollout/{endpoint}"


def history(journal: Journal, endpoint: str) -> tuple[Rollout, ...]:
    """Every rollout, oldest first."""
    rollouts: dict[str, Rollout] = {}
    for event in journal.read(stream(endpoint)):
        key = event.data["rollout"]
        rollouts[key] = _step(rollouts.get(key), event)
    return tuple(rollouts.values())


def active(journal: Journal, endpoint: str) -> Rollout | None:
    """The rollout in progress, None when there is none."""
    return next((rollout for rollout in history(journal, endpoint) if rollout.active), None)


def require(journal: Journal, endpoint: str) -> Rollout:
    """The rollout in progress. Raises NotFound when there is none."""
    rollout = active(journal, endpoint)
    if rollout is None:
        raise NotFound(
            f"{endpoint!r} has no rollout in progress", "a running rollout", "start one with `ct rollout start VERSION`"
        )
    return rollout


def start(
    journal: Journal,
    endpoint: str,
    *,
    version: str,
    baseline: str,
    first_epoch: int,
    slow_ms: Mapping[str, float],
    limit: float | None = None,
    others: tuple[str, ...] = (),
    apart: bool = False,
) -> Rollout:
    """Record the start of a rollout. Raises Conflict while another one is in progress."""
    position = journal.version(stream(endpoint))
    if other := active(journal, endpoint):
        raise Conflict(
            f"rollout {other.id} of {other.version} is in progress",
            "no other rollout",
            "wait, or end it with `ct rollout abort`",
        )
    key = f"r{len(history(journal, endpoint)) + 1}"
    data: dict[str, Any] = {
        "version": version,
        "baseline": baseline,
        "first_epoch": first_epoch,
        "slow_ms": dict(slow_ms),
        "limit": limit,
    }
    data |= {"others": list(others), "apart": apart}
    note(journal, endpoint, key, "RolloutStarted", data, expected=position)
    return require(journal, endpoint)


def note(
    journal: Journal, endpoint: str, rollout: str, type: str, data: dict[str, Any] | None = None, *, expected: int | None = None
) -> None:
    """Append one event of a rollout."""
    journal.append(stream(endpoint), [New(type, {"rollout": rollout, **(data or {})})], expected=expected)


def _step(state: Rollout | None, event: Event) -> Rollout:
    data = event.data
    if state is None:
        return Rollout(
            id=data["rollout"],
            version=data["version"],
            baseline=data["baseline"],
            first_epoch=data["first_epoch"],
            slow_ms=_limits(data["slow_ms"]),
            limit=data.get("limit"),
            others=tuple(data.get("others", ())),
            apart=data.get("apart", False),
            started=event.at,
        )
    if not state.active:
        return state  # what comes after the end was decided before it
    match event.type:
        case "RolloutStepped":
            begun = replace(state, step=data["step"], step_at=event.at, phase="progressing", cause="")
            return replace(begun, passed_at=None, refused_at=None, stage=data.get("stage", ""))
        case "RolloutPassed":
            return replace(state, passed_at=event.at)
        case "HookCalled":
            asked = str(data.get("hook", "")).startswith(("confirm-", "pre-"))  # the others are only told
            return replace(state, refused_at=event.at) if data["refused"] and asked else state
        case "RolloutPaused":
            return replace(state, phase="paused", cause=data.get("cause", ""))
        case "RolloutResumed":
            # The step's time begins anew: what was spent in the pause proves nothing.
            return replace(state, phase="progressing", cause="", step_at=event.at if state.step_at else None)
        case "RolloutHeld":
            return replace(state, phase="holding", cause=data["cause"])
        case "RolloutJudged":
            # What holds it stays told, whatever is seen meanwhile.
            cause = state.cause if state.phase == "holding" else data["cause"]
            seen = {name: data.get(name) for name in ("split", "segments")}
            return replace(state, evidence=tuple(data["evidence"]), cause=cause, gains=tuple(data.get("gains", ())), **seen)
        case "RolloutEnded":
            return replace(state, phase="ended", outcome=data["outcome"], cause=data["cause"], ended=event.at)
        case _:
            return state


def _limits(told: float | Mapping[str, float]) -> Mapping[str, float]:
    """The limit of each quantile; a journal of an earlier release has one for all."""
    return dict(told) if isinstance(told, Mapping) else dict.fromkeys(QUANTILES, told)
