"""Moves a rollout: start, step, and the verbs of a person. Each change is a route of the next epoch; turning.py takes the plan's own steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ct.control import ending, hooking
from ct.data import labels, predictions
from ct.errors import Conflict, Corrupt, CtError, NotFound, Unavailable
from ct.evaluation.losses import row_losses
from ct.objectives import Objective
from ct.registry import files, routes, versions
from ct.registry.files import ModelSpec
from ct.registry.routes import WHOLE, Arm, Route, arm_name
from ct.registry.versions import Version
from ct.rollout import state
from ct.rollout.frozen import freeze, thaw
from ct.rollout.guards import QUANTILES, Latency, Quality
from ct.rollout.plans import Plan, arms
from ct.rollout.state import Rollout
from ct.rollout.steps import enter
from ct.store.journal import New

if TYPE_CHECKING:
    from ct.control.act import Actor

DEFAULT_SLOW_MS = 250.0
MOST_TRIES, RETRY_SECONDS = 5, 10.0
"""So often it is tried to make a rollout's versions ready, after 10, 20, 40 and 80 seconds."""
LEARNED_FROM, OFF_QUANTILE = 100, 0.9
_ERRORS = {"number": "mae", "quantiles": "pinball"}


def start(act: Actor, version: Version, *others: Version, apart: bool = False, override: str = "") -> Rollout:
    """Record the rollout, load its versions beside stable, and take the plan's first step; a hook that refuses holds it before that.

    `apart` runs them in applications of their own. `override` is the reason for which a gate that did not pass is overruled: it is journaled in
    the transaction of the start, or not at all. Raises Conflict, or Forbidden for who may not overrule.
    """
    name, route, plan = act.pipeline.name, act.route(), act.pipeline.rollout
    taken = (version, *others)
    names = [item.name for item in taken]
    if len(taken) != arms(plan) or len(set(names)) != len(names):
        raise Conflict(f"the versions {names}", f"{arms(plan)} different ones, as {type(plan).__name__} says", "name so many")
    overruled = []
    for item in taken:
        if item.name == route.stable.version:
            raise Conflict(f"{item.name} is already stable", "another version", "see `ct status`")
        if override and not item.cleared:
            event = versions.overruling(act.journal, item.name, reason=override, approvers=act.settings.approvers)
            overruled.append(event)
            item = replace(item, override=override)
        arm = versions.arm(item)
        with suppress(Corrupt, NotFound, Unavailable):  # it is tried again, so many times, before the first step
            _require_same_label(act, arm, route.stable)
    state.none_else(act.journal, name)
    rollout = state.start(
        act.journal,
        name,
        version=version.name,
        baseline=route.stable.version,
        first_epoch=route.epoch + 1,
        slow_ms=slow_limits(act, route.stable.version),
        limit=off_limit(act, route.stable.version),
        others=tuple(names[1:]),
        apart=apart,
        plan=freeze(plan),
        guard=lambda connection: _overrule(act, connection, overruled),
    )
    with suppress(Conflict):  # `ct watch` took the first step meanwhile
        begin(act, rollout)
    return next(item for item in state.history(act.journal, name) if item.id == rollout.id)


def _overrule(act: Actor, connection: Any, events: Sequence[New]) -> None:
    if events:
        act.journal.add(connection, versions.stream(act.pipeline.name), events)


def plan_of(act: Actor, rollout: Rollout) -> Plan:
    """The plan as it was declared when the rollout began. A changed file applies from the next one."""
    present: Plan = act.pipeline.rollout
    return present if rollout.plan is None else thaw(rollout.plan, present)


def begin(act: Actor, rollout: Rollout) -> str:
    """Ask whether it may start, make its versions ready, and take the first step. One that cannot be ready after MOST_TRIES has failed."""
    if rollout.tries >= MOST_TRIES:
        return _give_up(act, rollout.cause)
    if not rollout.warming:
        for hook in ("confirm-rollout", "pre-rollout"):
            if refused := hooking.ask(act, rollout, hook):
                return hold(act, rollout, refused)
        state.note(act.journal, act.pipeline.name, rollout.id, "RolloutWarming")
    try:
        ready = _ready(act, rollout)
    except CtError as error:
        cause = f"{error.found} (expected {error.expected})" if error.expected else error.found
        state.note(act.journal, act.pipeline.name, rollout.id, "RolloutNotReady", {"cause": cause})
        if rollout.tries + 1 >= MOST_TRIES:
            return _give_up(act, cause)
        return f"{rollout.version} is not ready, try {rollout.tries + 1} of {MOST_TRIES}: {cause}"
    return step_to(act, rollout, 0, *ready)


def _give_up(act: Actor, cause: str) -> str:
    return ending.end(act, "failed", f"not ready after {MOST_TRIES} tries: {cause}", reason=ending.NOT_READY)


def _ready(act: Actor, rollout: Rollout) -> tuple[Arm, ...]:
    """Every candidate loaded beside stable in each replica, with applications apart of the size that the first step needs."""
    stage, ready = plan_of(act, rollout).stages()[0], []
    for name, percent in zip(rollout.versions, stage.weights, strict=True):
        arm = versions.arm(versions.get(act.journal, act.pipeline.name, name))
        _require_same_label(act, arm, act.route().stable)
        if rollout.apart:
            arm = act.serving.deploy_arm(arm, replicas=ending.processes(act, WHOLE if stage.shadow else percent * WHOLE // 100))
        act.serving.stage(arm.version, arm.manifest, arm.app)
        ready.append(arm)
    return tuple(ready)


def step_to(act: Actor, rollout: Rollout, step: int, *ready: Arm) -> str:
    """Take a step of the plan. `ready` are the candidates, the route's own by default."""
    following = route_of(act, rollout, step, *ready)
    ending.make_room(act, following)
    act.change(following, f"rollout {rollout.id}, step {step + 1} of {len(plan_of(act, rollout).stages())}")
    return stepped(act, rollout, step, following)


def route_of(act: Actor, rollout: Rollout, step: int, *ready: Arm) -> Route:
    """The route of a step, following the one in force."""
    route = act.route()
    found = ready or tuple(share.arm for share in route.candidates)
    return enter(plan_of(act, rollout), route, found[0], step, *found[1:], gone=rollout.gone)


def stepped(act: Actor, rollout: Rollout, step: int, route: Route) -> str:
    """Note a step whose route is in force, and tell of it."""
    stage = plan_of(act, rollout).stages()[step]
    word = "shadow" if stage.shadow else "bake" if stage.bake else ""
    weights = [share.weight for share in route.candidates]
    said = {"step": step, "weight": route.weight, "weights": weights, "epoch": route.epoch, "stage": word}
    state.note(act.journal, act.pipeline.name, rollout.id, "RolloutStepped", said)
    shares = ", ".join(f"{share.arm.version} gets {share.weight / WHOLE:.4g} of 1" for share in route.candidates)
    if len(weights) == 1:
        shares = f"{rollout.version} gets {route.weight * 100 / WHOLE:g} % of the traffic"
    text = f"{rollout.version} is shadowed" if stage.shadow else shares
    hooking.ask(act, rollout, "event", event="step", weights=weights, cause=text)
    return text


def hold(act: Actor, rollout: Rollout, cause: str) -> str:
    """Wait for a person, or for what refuses. Said once for one cause."""
    if rollout.phase == "holding" and rollout.cause == cause:
        return ""
    state.note(act.journal, act.pipeline.name, rollout.id, "RolloutHeld", {"cause": cause})
    act.alert("WARN", f"the rollout of {rollout.version} holds", detail=cause)
    hooking.ask(act, rollout, "event", event="hold", cause=cause)
    return f"{rollout.version} holds: {cause}"


def slow_limits(act: Actor, stable: str) -> dict[str, float]:
    """For each quantile that is guarded (p99 where none is) the latency in ms that so many of stable's earlier answers stayed under.

    A default when stable has not answered 100 times.
    """
    guarded = [name for guard in act.pipeline.rollout.guards if isinstance(guard, Latency) for name in guard.quantiles]
    times = sorted(
        record["latency_ms"]
        for record in predictions.everything(act.settings)
        if record["kind"] == "prediction" and record["version"] == stable and not record["error"]
    )
    known = len(times) >= LEARNED_FROM
    return {
        name: float(times[int(len(times) * QUANTILES[name])]) if known else DEFAULT_SLOW_MS
        for name in dict.fromkeys(guarded or ["p99"])
    }


def off_limit(act: Actor, stable: str) -> float | None:
    """How far off a number, or the pinball loss of quantiles, may be before it counts as wrong; None for other labels.

    The quality guard's own limit; else what 9 of 10 of stable's earlier answers stayed under; else, with fewer than 100 of them labelled,
    twice stable's mean error at the gate (normal and Laplace errors exceed that in 11 to 14 % of rows). It is learned before the rollout
    begins, so that its evidence stays valid.
    """
    objective = act.pipeline.label.objective
    if objective.kind in ("binary", "classes"):
        return None
    declared = [guard.limit for guard in act.pipeline.rollout.guards if isinstance(guard, Quality) and guard.limit is not None]
    if declared:
        return declared[0]
    joined = labels.join(predictions.everything(act.settings))
    known = [row for row in joined.rows if row.version == stable and row.label is not None]
    scores, truth = labels.arrays(known, objective)
    errors = np.sort(row_losses(objective, _ERRORS[objective.kind], scores, truth)) if known else np.empty(0)
    errors = errors[np.isfinite(errors)]
    if len(errors) >= LEARNED_FROM:
        return float(errors[int(len(errors) * OFF_QUANTILE)])
    mean = versions.get(act.journal, act.pipeline.name, stable).metrics.get(_ERRORS[objective.kind])
    return None if mean is None else 2.0 * float(mean)


def _require_same_label(act: Actor, arm: Arm, stable: Arm) -> None:
    """Raises Conflict when the two versions answer different questions: their scores cannot be compared, nor their labels told apart."""
    ours, theirs = spec_of(act, arm).objective, spec_of(act, stable).objective
    if Objective.from_json(ours) != Objective.from_json(theirs):
        raise Conflict(
            f"{arm.version} predicts {_said(ours)}, stable {stable.version} predicts {_said(theirs)}",
            "two versions for the same label",
            "give the pipeline another name: another label is another endpoint",
        )


def spec_of(act: Actor, arm: Arm) -> ModelSpec:
    """What a version says of itself: label, threshold, features."""
    return ModelSpec.from_bytes(files.fetch(act.artifacts, arm.manifest)[files.SPEC])


def _said(objective: Mapping[str, Any]) -> str:
    given = [*objective["classes"], *objective["quantiles"]]
    return f"{objective['kind']} {given}" if given else f"a {objective['kind']} label"


def _steered(act: Actor) -> Rollout:
    """The rollout in progress, for a person to steer. Raises Conflict while its end is being carried out, NotFound without one."""
    rollout = state.require(act.journal, act.pipeline.name)
    if rollout.ending:
        raise Conflict(
            f"rollout {rollout.id} is being ended: {rollout.decided}", "one that goes on", "wait; `ct watch` ends it"
        )
    return rollout


def promote(act: Actor, *, full: bool = False, version: str = "") -> str:
    """Take the plan's next step by hand; after the last one, or with `full`, make the candidate stable. No hook is asked: a person decides."""
    rollout, route = _steered(act), act.route()
    if len(rollout.versions) > 1 and not version:
        raise Conflict(f"{len(rollout.left)} candidates", "one of them named", f"say which of {list(rollout.left)} wins")
    if version in rollout.gone:
        raise Conflict(f"{version} was rolled back in {rollout.id}", f"one of {list(rollout.left)}", "name another one")
    if version and version not in rollout.versions:
        raise NotFound(f"{version} is no candidate of {rollout.id}", f"one of {list(rollout.left)}", "check the spelling")
    if not route.candidates:
        if rollout.step >= 0:
            raise Conflict("the route has no canary", "a running rollout", "`ct watch` closes what was cut off")
        return step_to(act, rollout, 0, *_ready(act, rollout))
    if not full and not version and rollout.step + 1 < len(plan_of(act, rollout).stages()):
        return step_to(act, rollout, rollout.step + 1)
    return ending.end(act, "promoted", "promoted by hand", version=version)


def pause(act: Actor) -> str:
    """Keep the weights until `resume`. What is seen meanwhile is judged as ever: harm takes the traffic back."""
    rollout = _steered(act)
    state.note(act.journal, act.pipeline.name, rollout.id, "RolloutPaused", {"cause": "paused by hand"})
    return f"rollout {rollout.id} is paused"


def resume(act: Actor) -> str:
    """Go on after `pause`, at the step's own weight."""
    rollout, route = _steered(act), act.route()
    state.note(act.journal, act.pipeline.name, rollout.id, "RolloutResumed")
    if rollout.step >= 0 and route.candidates and not at_step(act, rollout, route, rollout.step):
        step_to(act, rollout, rollout.step)
    return f"rollout {rollout.id} goes on"


def at_step(act: Actor, rollout: Rollout, route: Route, step: int) -> bool:
    """Has the route the shares of that step?"""
    plan = plan_of(act, rollout)
    if not 0 <= step < len(plan.stages()) or not route.candidates:
        return False
    first, *others = (share.arm for share in route.candidates)
    return enter(plan, route, first, step, *others, gone=rollout.gone).candidates == route.candidates


def set_weight(act: Actor, percent: int) -> str:
    """Give the one candidate `percent` of the traffic and pause, so that the plan does not take it back at once."""
    rollout = _steered(act)
    if len(rollout.versions) > 1:
        raise Conflict(f"{len(rollout.versions)} candidates", "a weight for each that changes", "name them: VERSION=PERCENT")
    return set_weights(act, {rollout.version: percent})


def set_weights(act: Actor, percents: Mapping[str, int]) -> str:
    """Give candidates, by their versions or the names of their arms, so many percent of the traffic each, and pause. The others keep theirs.

    Where one of several grows, those after it move along, and some users change their arm. Raises Conflict or NotFound, changing nothing.
    """
    rollout, route = _steered(act), act.route()
    for name, percent in percents.items():
        if isinstance(percent, bool) or not isinstance(percent, int) or not 0 <= percent <= 100:
            raise Conflict(f"a weight of {percent!r} % for {name}", "0 to 100", "give a whole percentage")
    if not route.candidates or not percents:
        raise Conflict(
            "the route has no canary" if percents else "no weight", "a canary and its weight", "start a rollout first"
        )
    known = {share.arm.version: share for share in route.candidates if not share.out}
    arms_ = {arm_name(at): share.arm.version for at, share in enumerate(route.candidates) if not share.out}
    given = {arms_.get(name, name): percent for name, percent in percents.items()}
    if unknown := sorted(set(given) - set(known)):
        raise NotFound(f"{unknown[0]} is no candidate with a share of its own", f"one of {list(known)}", "check the spelling")
    wanted = {version: given[version] * WHOLE // 100 if version in given else share.weight for version, share in known.items()}
    if (whole := sum(wanted.values())) > WHOLE:
        raise Conflict(f"weights of {whole * 100 / WHOLE:g} % together", "at most 100 %", "give the others less first")
    shares, room = [], WHOLE - whole
    for share in route.candidates:
        weight, gap = (0, min(share.gap, room)) if share.out else (wanted[share.arm.version], 0)
        shares.append(replace(share, weight=weight, shadow=False, gap=gap))
        room -= gap
    said = ", ".join(f"{version} {percent} %" for version, percent in given.items())
    # First the pause: cut off between the two, the old weight stays.
    state.note(act.journal, act.pipeline.name, rollout.id, "RolloutPaused", {"cause": f"weight set by hand: {said}"})
    following = route.with_candidates(tuple(shares))
    ending.make_room(act, following)
    act.change(following, f"weight set by hand: {said}")
    return f"{', '.join(f'{version} gets {percent} % of the traffic' for version, percent in given.items())}; the rollout is paused"


def undo(act: Actor, to: str = "") -> str:
    """Make an earlier stable version stable again at once, in one change of the route. A rollout in progress is aborted by it."""
    route = act.route()
    earlier = [
        entry.route.stable
        for entry in routes.history(act.journal, act.pipeline.name)
        if entry.route.stable.version != route.stable.version
    ]
    found = [arm for arm in earlier if not to or arm.version == to]
    if not found:
        known = list(dict.fromkeys(arm.version for arm in earlier))
        raise NotFound(f"{to or 'an earlier version'} was never stable before", f"one of {known}", "see `ct rollout history`")
    target, rollout = found[-1], state.active(act.journal, act.pipeline.name)
    cause = f"undone by hand: back to {target.version}"
    if rollout is not None and route.candidates:
        ending.end(act, "aborted", cause, to=target.version)
        return f"{target.version} is stable again"
    if rollout is not None:
        ending.end(act, "aborted", cause)
    act.change(replace(act.route().without_canary(), stable=target), cause)
    return f"{target.version} is stable again"


def retry(act: Actor) -> Rollout:
    """Start the last rollout again that was taken back. Raises Conflict when it was promoted, NotFound when there was none."""
    told = state.history(act.journal, act.pipeline.name)
    if not told:
        raise NotFound(f"{act.pipeline.name!r} has had no rollout", "one that was taken back", "use `ct rollout start VERSION`")
    last = told[-1]
    if last.outcome == "promoted":
        raise Conflict(f"rollout {last.id} was promoted", "one that was taken back", "use `ct rollout start VERSION`")
    found = [versions.get(act.journal, act.pipeline.name, name) for name in last.versions]
    return start(act, *found, apart=last.apart)
