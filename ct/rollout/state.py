"""A rollout as the journal tells it: a fold over the events of `rollout/<endpoint>`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any

from ct.errors import Conflict, NotFound
from ct.rollout.guards import QUANTILES
from ct.store.journal import Event, Guard, Journal, New

ENDING = {"promoted": "promoting", "rolled_back": "rolling_back", "aborted": "rolling_back", "failed": "rolling_back"}
"""The phase between the decision how a rollout ends and its end, by that decision."""


@dataclass(frozen=True)
class Rollout:
    """One rollout. `phase` is "progressing", "paused", "holding", "promoting", "rolling_back" or "ended".

    `outcome` is how it ended: "", "promoted", "rolled_back", "aborted" or "failed" (it could not begin); `decided` says so before it is done.
    `reason` is the word for that where no metric says it: "by_hand", "deadline", "circuit", "not_ready"; `winner` the version to be promoted,
    `to` the earlier one that becomes stable again.
    `first_epoch` is the route's epoch at the start; only predictions from then on count in the verdict.
    `slow_ms` has the latency limit of each quantile, learned from stable before the start, `limit` how far off a number may be before it is wrong.
    `others` are the candidates after the first; `apart` says that they run in applications of their own. `passed_at` is when the step was
    first proven, `refused_at` when a hook last refused, `stage` what the step is: "", "shadow" or "bake". `plan` is what was declared at the
    start, see frozen.py. `warming` says that its hooks agreed; of its `tries` to be ready all failed, the last one at `tried_at`. Candidates
    that are being taken out while others go on are `leaving`, with their causes; those that were are `gone`. `closed`: everybody was told of its
    end, `told` names the hooks that were.
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
    plan: Mapping[str, Any] | None = field(default=None, repr=False)
    warming: bool = False
    tries: int = 0
    tried_at: datetime | None = None
    decided: str = ""
    reason: str = ""
    winner: str = ""
    to: str = ""
    leaving: tuple[tuple[str, str], ...] = ()
    gone: tuple[str, ...] = ()
    told: tuple[str, ...] = ()
    closed: bool = False

    @property
    def versions(self) -> tuple[str, ...]:
        """Every candidate, the first one first."""
        return (self.version, *self.others)

    @property
    def left(self) -> tuple[str, ...]:
        """The candidates that were not taken out."""
        return tuple(name for name in self.versions if name not in self.gone)

    @property
    def ending(self) -> bool:
        """Is its end decided, and not yet carried out?"""
        return self.active and bool(self.decided)

    @property
    def shown(self) -> str:
        """Its phase in the words that controllers of rollouts share."""
        if not self.active:
            return {"promoted": "Succeeded", "failed": "Failed"}.get(self.outcome, "RolledBack")
        if self.phase != "progressing":
            return {"rolling_back": "RollingBack"}.get(self.phase, self.phase.capitalize())
        if self.step < 0:
            return "Warming" if self.warming else "Pending"
        return {"shadow": "Shadowing", "bake": "Baking"}.get(self.stage, "Progressing")

    @property
    def active(self) -> bool:
        """Does it still own the endpoint's canary?"""
        return self.phase != "ended"


def plain(rollout: Rollout) -> dict[str, Any]:
    """A rollout as plain data, the same over every door; `state` is its phase in the words that controllers share."""
    told: dict[str, Any] = json.loads(json.dumps(asdict(rollout), default=lambda moment: moment.isoformat()))
    return told | {"state": rollout.shown}


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


def none_else(journal: Journal, endpoint: str) -> None:
    """Raises Conflict while a rollout is in progress."""
    if other := active(journal, endpoint):
        raise Conflict(
            f"rollout {other.id} of {', '.join(other.versions)} is in progress",
            "no other rollout",
            "wait, or end it with `ct rollout abort`",
        )


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
    plan: Mapping[str, Any] | None = None,
    guard: Guard | None = None,
) -> Rollout:
    """Record the start of a rollout; `guard` is that of `Journal.append`. Raises Conflict while another one is in progress."""
    position = journal.version(stream(endpoint))
    none_else(journal, endpoint)
    key = f"r{len(history(journal, endpoint)) + 1}"
    data: dict[str, Any] = {
        "version": version,
        "baseline": baseline,
        "first_epoch": first_epoch,
        "slow_ms": dict(slow_ms),
        "limit": limit,
    }
    data |= {"others": list(others), "apart": apart, "plan": plan}
    try:
        note(journal, endpoint, key, "RolloutStarted", data, expected=position, guard=guard)
    except Conflict:
        none_else(journal, endpoint)  # another one began at the same moment: said by name
        raise
    return require(journal, endpoint)


def note(
    journal: Journal,
    endpoint: str,
    rollout: str,
    type: str,
    data: dict[str, Any] | None = None,
    *,
    expected: int | None = None,
    guard: Guard | None = None,
) -> None:
    """Append one event of a rollout."""
    journal.append(stream(endpoint), [New(type, {"rollout": rollout, **(data or {})})], expected=expected, guard=guard)


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
            plan=data.get("plan"),
            started=event.at,
        )
    if not state.active:
        return _after(state, event)  # anything else was decided before the end
    return _ending(state, event) if state.ending else _going(state, event)


def _going(state: Rollout, event: Event) -> Rollout:
    data = event.data
    match event.type:
        case "RolloutWarming":
            return replace(state, phase="progressing", cause="", warming=True)
        case "RolloutNotReady":
            return replace(state, cause=data["cause"], tries=state.tries + 1, tried_at=event.at)
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
            return replace(state, phase="progressing", cause="", step_at=event.at if state.step_at else None, passed_at=None)
        case "RolloutHeld":
            return replace(state, phase="holding", cause=data["cause"])
        case "RolloutJudged":
            # What holds it stays told, whatever is seen meanwhile.
            cause = state.cause if state.phase in ("holding", "paused") else data["cause"]
            seen = replace(state, evidence=tuple(data["evidence"]), cause=cause, gains=tuple(data.get("gains", ())))
            return replace(seen, split=data.get("split"), segments=data.get("segments"))
        case _:
            return _ending(state, event)


def _ending(state: Rollout, event: Event) -> Rollout:
    """Once its end is decided nothing else moves it; of two decisions the last one counts until the route is in force."""
    data = event.data
    match event.type:
        case "CandidateLeaving":
            return replace(state, leaving=(*state.leaving, (data["version"], data["cause"])))
        case "CandidateGone":
            left = tuple(item for item in state.leaving if item[0] != data["version"])
            return replace(state, leaving=left, gone=tuple(dict.fromkeys((*state.gone, data["version"]))))
        case "RolloutEnding":
            decided = replace(state, phase=ENDING[data["outcome"]], decided=data["outcome"], cause=data["cause"])
            return replace(decided, reason=data["reason"], winner=data["version"], to=data["to"])
        case "RolloutEnded":
            done = replace(state, phase="ended", outcome=data["outcome"], cause=data["cause"], ended=event.at, leaving=())
            # Without a reason it is of a time when nothing was closed.
            return replace(done, reason=data.get("reason", state.reason), closed="reason" not in data)
        case _:
            return state


def _after(state: Rollout, event: Event) -> Rollout:
    match event.type:
        case "HookCalled":
            return replace(state, told=(*state.told, event.data["hook"]))
        case "RolloutClosed":
            return replace(state, closed=True)
        case _:
            return state


def _limits(told: float | Mapping[str, float]) -> Mapping[str, float]:
    """The limit of each quantile; a journal of an earlier release has one for all."""
    return dict(told) if isinstance(told, Mapping) else dict.fromkeys(QUANTILES, told)
