"""Moves a rollout: start, step, end, and the verbs of a person. Each change is a route of the next epoch; turning.py takes the plan's own steps."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ct.control import hooking
from ct.data import labels, predictions
from ct.errors import Conflict, CtError, NotFound
from ct.evaluation.losses import row_losses
from ct.objectives import Objective
from ct.registry import files, routes, versions
from ct.registry.files import ModelSpec
from ct.registry.routes import WHOLE, Arm, Route
from ct.registry.versions import Version
from ct.rollout import state
from ct.rollout.guards import QUANTILES, Latency, Quality
from ct.rollout.plans import arms
from ct.rollout.state import Rollout
from ct.rollout.steps import enter

if TYPE_CHECKING:
    from ct.control.act import Actor

DEFAULT_SLOW_MS = 250.0
LEARNED_FROM, OFF_QUANTILE = 100, 0.9
_ERRORS = {"number": "mae", "quantiles": "pinball"}


def start(act: Actor, version: Version, *others: Version, apart: bool = False) -> Rollout:
    """Record the rollout, load its versions beside stable, and take the plan's first step; a hook that refuses holds it before that.

    `apart` runs them in applications of their own. Raises Conflict.
    """
    name, route, plan = act.pipeline.name, act.route(), act.pipeline.rollout
    taken = (version, *others)
    names = [item.name for item in taken]
    if len(taken) != arms(plan) or len(set(names)) != len(names):
        raise Conflict(f"the versions {names}", f"{arms(plan)} different ones, as {type(plan).__name__} says", "name so many")
    for item in taken:
        if item.name == route.stable.version:
            raise Conflict(f"{item.name} is already stable", "another version", "see `ct status`")
        _require_same_label(act, versions.arm(item), route.stable)
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
    )
    begin(act, rollout)
    return state.require(act.journal, name)


def begin(act: Actor, rollout: Rollout) -> str:
    """Ask whether it may start, make its versions ready, and take the first step."""
    for hook in ("confirm-rollout", "pre-rollout"):
        if refused := hooking.ask(act, rollout, hook):
            return hold(act, rollout, refused)
    ready = []
    for name in rollout.versions:
        arm = versions.arm(versions.get(act.journal, act.pipeline.name, name))
        if rollout.apart:
            arm = act.serving.deploy_arm(arm, replicas=act.settings.replica_range[0])
        act.serving.stage(arm.version, arm.manifest, arm.app)
        ready.append(arm)
    return step_to(act, rollout, 0, *ready)


def step_to(act: Actor, rollout: Rollout, step: int, *ready: Arm) -> str:
    """Take a step of the plan. `ready` are the candidates, the route's own by default."""
    plan, route = act.pipeline.rollout, act.route()
    found = ready or tuple(share.arm for share in route.candidates)
    following = enter(plan, route, found[0], step, *found[1:])
    act.change(following, f"rollout {rollout.id}, step {step + 1} of {len(plan.stages())}")
    return stepped(act, rollout, step, following)


def stepped(act: Actor, rollout: Rollout, step: int, route: Route) -> str:
    """Note a step whose route is in force, and tell of it."""
    stage = act.pipeline.rollout.stages()[step]
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


def end(act: Actor, outcome: str, cause: str, *, version: str = "") -> str:
    """End the rollout in progress: promote a candidate, or take the traffic back. Rolling back is the shortest path there is."""
    rollout = state.require(act.journal, act.pipeline.name)
    route = act.route()
    if route.canary is not None:
        following = route.promoted(version) if outcome == "promoted" else route.without_canary()
        act.change(following, f"rollout {rollout.id} {outcome}: {cause}")
    ended(act, rollout, outcome, cause)
    left = [share.arm for share in route.candidates if share.arm.app and share.arm != act.route().stable]
    for arm in left:
        with suppress(CtError):  # it costs memory, no answers; the next rollout of it takes it over
            act.serving.remove_arm(arm)
    return f"{version or rollout.version} {outcome.replace('_', ' ')}: {cause}"


def ended(act: Actor, rollout: Rollout, outcome: str, cause: str) -> None:
    """Note an end whose route is in force, and tell of it."""
    state.note(act.journal, act.pipeline.name, rollout.id, "RolloutEnded", {"outcome": outcome, "cause": cause})
    hooking.ask(act, rollout, "post-rollout" if outcome == "promoted" else "rollback", outcome=outcome, cause=cause)
    hooking.ask(act, rollout, "event", event="end", outcome=outcome, cause=cause)


def promote(act: Actor, *, full: bool = False, version: str = "") -> str:
    """Take the plan's next step by hand; after the last one, or with `full`, make the candidate stable. No hook is asked: a person decides."""
    rollout, route = state.require(act.journal, act.pipeline.name), act.route()
    if len(rollout.versions) > 1 and not version:
        raise Conflict(
            f"{len(rollout.versions)} candidates", "one of them named", f"say which of {list(rollout.versions)} wins"
        )
    if version and version not in rollout.versions:
        raise NotFound(f"{version} is no candidate of {rollout.id}", f"one of {list(rollout.versions)}", "check the spelling")
    if route.canary is None:
        if rollout.step >= 0:
            raise Conflict("the route has no canary", "a running rollout", "`ct watch` closes what was cut off")
        arm = versions.arm(versions.get(act.journal, act.pipeline.name, rollout.version))
        return step_to(act, rollout, 0, arm) if len(rollout.versions) == 1 and not rollout.apart else begin(act, rollout)
    if not full and not version and rollout.step + 1 < len(act.pipeline.rollout.stages()):
        return step_to(act, rollout, rollout.step + 1)
    return end(act, "promoted", "promoted by hand", version=version)


def pause(act: Actor) -> str:
    """Keep the weights until `resume`."""
    rollout = state.require(act.journal, act.pipeline.name)
    state.note(act.journal, act.pipeline.name, rollout.id, "RolloutPaused", {"cause": "paused by hand"})
    return f"rollout {rollout.id} is paused"


def resume(act: Actor) -> str:
    """Go on after `pause`, at the step's own weight."""
    rollout, route = state.require(act.journal, act.pipeline.name), act.route()
    state.note(act.journal, act.pipeline.name, rollout.id, "RolloutResumed")
    if rollout.step >= 0 and route.canary is not None and not at_step(act, route, rollout.step):
        step_to(act, rollout, rollout.step)
    return f"rollout {rollout.id} goes on"


def at_step(act: Actor, route: Route, step: int) -> bool:
    """Has the route the shares of that step?"""
    stages = act.pipeline.rollout.stages()
    if not 0 <= step < len(stages):
        return False
    wanted = [percent * WHOLE // 100 for percent in stages[step].weights]
    return [share.weight for share in route.candidates] == wanted and route.shadow == stages[step].shadow


def set_weight(act: Actor, percent: int) -> str:
    """Give the canary `percent` of the traffic and pause, so that the plan does not take it back at once."""
    if isinstance(percent, bool) or not isinstance(percent, int) or not 0 <= percent <= 100:
        raise Conflict(f"a weight of {percent!r} %", "0 to 100", "give a whole percentage")
    rollout, route = state.require(act.journal, act.pipeline.name), act.route()
    if route.canary is None:
        raise Conflict("the route has no canary", "a canary", "start a rollout first")
    if len(route.candidates) > 1:
        raise Conflict(f"{len(route.candidates)} candidates", "a single one", "a split of several is fixed; abort it")
    # First the pause: cut off between the two, the old weight stays.
    state.note(act.journal, act.pipeline.name, rollout.id, "RolloutPaused", {"cause": f"weight set to {percent} % by hand"})
    share = replace(route.candidates[0], weight=percent * WHOLE // 100, shadow=False)
    act.change(route.with_candidates((share,)), f"weight set to {percent} % by hand")
    return f"{rollout.version} gets {percent} % of the traffic; the rollout is paused"


def undo(act: Actor, to: str = "") -> str:
    """Make an earlier stable version stable again at once. A rollout in progress is aborted first."""
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
    if state.active(act.journal, act.pipeline.name):
        end(act, "aborted", "undone by hand")
    target = found[-1]
    act.change(replace(act.route().without_canary(), stable=target), f"undone by hand: back to {target.version}")
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
