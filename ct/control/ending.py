"""How a rollout, or one of its candidates, ends: the decision is journaled, then carried out, then told. Killed anywhere, the next look goes on with it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from math import ceil
from typing import TYPE_CHECKING, Any

from ct.control import hooking
from ct.errors import Conflict, CtError
from ct.registry import routes, versions
from ct.registry.routes import WHOLE, Arm, Route
from ct.rollout import state
from ct.rollout.state import Rollout

if TYPE_CHECKING:
    from ct.control.act import Actor

BY_HAND, DEADLINE, CIRCUIT, NOT_READY = "by_hand", "deadline", "circuit", "not_ready"
_TITLES = {"rolled_back": "rolled back", "aborted": "aborted", "failed": "could not be started"}


def end(act: Actor, outcome: str, cause: str, *, version: str = "", reason: str = BY_HAND, to: str = "") -> str:
    """End the rollout in progress: promote a candidate, or take the traffic back. Rolling back is the shortest path there is.

    `version` is the candidate to be promoted, the first by default; `to` an earlier stable version that becomes stable again.
    """
    rollout = state.require(act.journal, act.pipeline.name)
    if outcome == "promoted" and act.route().candidates:
        make_room(act, act.route().promoted(version))
    said = {"outcome": outcome, "cause": cause, "reason": reason, "version": version, "to": to}
    state.note(act.journal, act.pipeline.name, rollout.id, "RolloutEnding", said)
    now = next(item for item in state.history(act.journal, act.pipeline.name) if item.id == rollout.id)
    if not now.active:  # `ct watch` was quicker
        return f"{', '.join(now.left)} {now.outcome.replace('_', ' ')}: {now.cause}"
    return finish(act, now)


def finish(act: Actor, rollout: Rollout) -> str:
    """Carry out an end that was decided, by this process or by one that died since: the route, its record, and who is told."""
    route = act.route()
    if route.candidates:
        try:
            act.change(_following(act, rollout, route), f"rollout {rollout.id} {rollout.decided}: {rollout.cause}")
        except Conflict:
            if act.route().candidates:
                raise  # the next look ends what another process made of it
    stable = act.route().stable.version
    # The route is what is so: another process may have decided otherwise at the same moment, and been first.
    outcome = "promoted" if stable in rollout.versions else "aborted" if rollout.decided == "promoted" else rollout.decided
    who = stable if outcome == "promoted" else ", ".join(rollout.left)
    if _ended(act, rollout, {"outcome": outcome, "cause": rollout.cause, "reason": rollout.reason}):
        close(act)
    return f"{who} {outcome.replace('_', ' ')}: {rollout.cause}"


def _ended(act: Actor, rollout: Rollout, said: dict[str, Any]) -> bool:
    """Record the end. False when another process was first: that one tells of it."""
    name = act.pipeline.name
    while True:
        position = act.journal.version(state.stream(name))
        if not any(item.id == rollout.id and item.active for item in state.history(act.journal, name)):
            return False
        with suppress(Conflict):  # something else of this rollout was noted between the two
            state.note(act.journal, name, rollout.id, "RolloutEnded", said, expected=position)
            return True


def _following(act: Actor, rollout: Rollout, route: Route) -> Route:
    if rollout.decided == "promoted":
        return route.promoted(rollout.winner)
    if rollout.to:
        return replace(route.without_canary(), stable=earlier(act, rollout.to))
    return route.without_canary()


def earlier(act: Actor, version: str) -> Arm:
    """A version that was stable before, as it ran last."""
    arms = [entry.route.stable for entry in routes.history(act.journal, act.pipeline.name)]
    return next(arm for arm in reversed(arms) if arm.version == version)


def close(act: Actor, *, after: float = 0.0) -> str:
    """Tell of the last rollout's end who may not have heard of it, and take apart what ran for it alone. Empty when there is nothing to do.

    Whoever ended it is at it for so long; only then, `after` seconds, it is another one's.
    """
    told = state.history(act.journal, act.pipeline.name)
    if not told or (rollout := told[-1]).ended is None or rollout.closed:
        return ""
    outcome, cause = rollout.outcome, rollout.cause
    if outcome != "promoted" and rollout.reason != BY_HAND:
        act.alert("PAGE", f"rollout {rollout.id} of {', '.join(rollout.left)}: {_TITLES[outcome]}", detail=cause)
    if (act.clock.now() - rollout.ended).total_seconds() < after:
        return ""
    hook = "post-rollout" if outcome == "promoted" else "rollback"
    if hook not in rollout.told:
        hooking.ask(act, rollout, hook, outcome=outcome, cause=cause)
    if "event" not in rollout.told:
        hooking.ask(act, rollout, "event", event="end", outcome=outcome, cause=cause)
    _take_apart(act, rollout, rollout.versions)
    state.note(act.journal, act.pipeline.name, rollout.id, "RolloutClosed")
    return f"rollout {rollout.id} {outcome.replace('_', ' ')}"


def make_room(act: Actor, route: Route) -> None:
    """Before a route is in force: applications apart get the processes for what they will carry. Nothing is taken from one that has more.

    Versions in the endpoint's own replicas need none: each of these can answer all that it gets with any of them. Raises Unavailable.
    """
    shares = [(route.stable, WHOLE - sum(share.weight for share in route.candidates))]
    shares += [(share.arm, WHOLE if share.shadow else share.weight) for share in route.candidates if not share.out]
    for arm, weight in shares:
        if arm.app:
            act.serving.scale_arm(arm, processes(act, weight))


def processes(act: Actor, weight: int) -> int:
    """How many an application apart needs for `weight` of WHOLE of the traffic: that part of the replicas which the endpoint has now."""
    least, _ = act.settings.replica_range
    return max(1, ceil(max(least, len(act.serving.state())) * weight / WHOLE))


def drop(act: Actor, rollout: Rollout, version: str, cause: str) -> str:
    """End one of several candidates: what it got goes to stable, the others keep their users."""
    said = {"version": version, "cause": cause}
    state.note(act.journal, act.pipeline.name, rollout.id, "CandidateLeaving", said)
    return dropped(act, state.require(act.journal, act.pipeline.name))


def dropped(act: Actor, rollout: Rollout) -> str:
    """Carry out that candidates end while others go on, whoever decided it."""
    done = []
    for version, cause in rollout.leaving:
        route = act.route()
        if version in {share.arm.version for share in route.candidates if not share.out}:
            act.change(route.dropping(version), f"rollout {rollout.id}, {version} rolled_back: {cause}")
        facts: dict[str, Any] = {"version": version, "outcome": "rolled_back", "cause": cause}
        act.alert(
            "PAGE", f"rollout {rollout.id} of {', '.join(rollout.left)}: {version} rolled back, others go on", detail=cause
        )
        hooking.ask(act, rollout, "rollback", **facts)
        hooking.ask(act, rollout, "event", event="candidate", **facts)
        _take_apart(act, rollout, (version,))
        state.note(act.journal, act.pipeline.name, rollout.id, "CandidateGone", {"version": version, "cause": cause})
        done.append(f"{version} rolled back, {', '.join(name for name in rollout.left if name != version)} go on: {cause}")
    return "; ".join(done)


def _take_apart(act: Actor, rollout: Rollout, names: tuple[str, ...]) -> None:
    """Remove the applications that ran these versions, or the one that was stable, where the route names them no more."""
    name, kept = act.pipeline.name, act.route().arms
    history = {arm for entry in routes.history(act.journal, name) for arm in entry.route.arms if arm.app}
    apart = {arm for arm in history if arm.version in (*names, rollout.baseline)}
    try:
        if rollout.apart:  # also those that never came into a route
            known = [versions.get(act.journal, name, version) for version in names]
            apart |= {act.serving.apart(Arm(item.name, item.manifest)) for item in known}
        for arm in sorted(apart - set(kept), key=lambda arm: arm.app):
            act.serving.remove_arm(arm)
    except CtError as error:  # it costs memory, no answers; the next rollout of it takes it over
        act.alert("WARN", f"an application of rollout {rollout.id} is left", detail=str(error))
