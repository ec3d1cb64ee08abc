"""Moves a rollout: start, judge, step, end. Each change is a route of the next epoch; the verdict itself is rollout/verdict.py's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ct.data import labels, predictions
from ct.errors import Conflict, NotFound
from ct.evaluation.losses import row_losses
from ct.ids import describe
from ct.objectives import Objective
from ct.registry import files, routes, versions
from ct.registry.files import ModelSpec
from ct.registry.routes import WHOLE, Arm
from ct.registry.versions import Version
from ct.rollout import state, verdict
from ct.rollout.guards import QUANTILES, Latency, Quality
from ct.rollout.paired import Paired, compare
from ct.rollout.state import Rollout
from ct.rollout.steps import enter
from ct.rollout.tally import Tally

if TYPE_CHECKING:
    from ct.control.act import Actor

DEFAULT_SLOW_MS = 250.0
LEARNED_FROM, OFF_QUANTILE = 100, 0.9
_ERRORS = {"number": "mae", "quantiles": "pinball"}


def start(act: Actor, version: Version) -> Rollout:
    """Record the rollout, load the version beside stable, and take the plan's first step."""
    name, route = act.pipeline.name, act.route()
    arm = versions.arm(version)
    if version.name == route.stable.version:
        raise Conflict(f"{version.name} is already stable", "another version", "see `ct status`")
    _require_same_label(act, arm, route.stable)
    rollout = state.start(
        act.journal,
        name,
        version=version.name,
        baseline=route.stable.version,
        first_epoch=route.epoch + 1,
        slow_ms=slow_limit(act, route.stable.version),
        limit=off_limit(act, route.stable.version),
    )
    act.serving.stage(arm.version, arm.manifest)
    _step(act, rollout, 0)
    return state.require(act.journal, name)


def slow_limit(act: Actor, stable: str) -> float:
    """The latency (ms) that most of stable's earlier answers stayed under, most being the latency guard's quantile.

    A default when stable has not answered 100 times.
    """
    named = [guard.quantile for guard in act.pipeline.rollout.guards if isinstance(guard, Latency)]
    quantile = QUANTILES[named[0]] if named else QUANTILES["p99"]
    times = sorted(
        record["latency_ms"]
        for record in predictions.everything(act.settings)
        if record["kind"] == "prediction" and record["version"] == stable and not record["error"]
    )
    return float(times[int(len(times) * quantile)]) if len(times) >= 100 else DEFAULT_SLOW_MS


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
    ours, theirs = _spec(act, arm).objective, _spec(act, stable).objective
    if Objective.from_json(ours) != Objective.from_json(theirs):
        raise Conflict(
            f"{arm.version} predicts {_said(ours)}, stable {stable.version} predicts {_said(theirs)}",
            "two versions for the same label",
            "give the pipeline another name: another label is another endpoint",
        )


def _spec(act: Actor, arm: Arm) -> ModelSpec:
    return ModelSpec.from_bytes(files.fetch(act.artifacts, arm.manifest)[files.SPEC])


def _said(objective: Mapping[str, Any]) -> str:
    given = [*objective["classes"], *objective["quantiles"]]
    return f"{objective['kind']} {given}" if given else f"a {objective['kind']} label"


def _step(act: Actor, rollout: Rollout, step: int) -> str:
    plan = act.pipeline.rollout
    percent, shadow = plan.stages()[step]
    arm = versions.arm(versions.get(act.journal, act.pipeline.name, rollout.version))
    route = enter(plan, act.route(), arm, step)
    cause = f"rollout {rollout.id}, step {step + 1} of {len(plan.stages())}"
    act.change(route, cause)
    state.note(
        act.journal,
        act.pipeline.name,
        rollout.id,
        "RolloutStepped",
        {"step": step, "weight": route.weight, "epoch": route.epoch},
    )
    return f"{rollout.version} gets {percent} % of the traffic" if not shadow else f"{rollout.version} is shadowed"


def end(act: Actor, outcome: str, cause: str) -> str:
    """End the rollout in progress: promote the canary, or take its traffic back. Rolling back is the shortest path there is."""
    rollout = state.require(act.journal, act.pipeline.name)
    route = act.route()
    if route.canary is not None:
        following = route.promoted() if outcome == "promoted" else route.without_canary()
        act.change(following, f"rollout {rollout.id} {outcome}: {cause}")
    state.note(act.journal, act.pipeline.name, rollout.id, "RolloutEnded", {"outcome": outcome, "cause": cause})
    return f"{rollout.version} {outcome.replace('_', ' ')}: {cause}"


def pause(act: Actor) -> str:
    """Keep the weights until `resume`."""
    rollout = state.require(act.journal, act.pipeline.name)
    state.note(act.journal, act.pipeline.name, rollout.id, "RolloutPaused", {"cause": "paused by hand"})
    return f"rollout {rollout.id} is paused"


def resume(act: Actor) -> str:
    """Go on after `pause`."""
    rollout = state.require(act.journal, act.pipeline.name)
    state.note(act.journal, act.pipeline.name, rollout.id, "RolloutResumed")
    return f"rollout {rollout.id} goes on"


def set_weight(act: Actor, percent: int) -> str:
    """Give the canary `percent` of the traffic and pause, so that the plan does not take it back at once."""
    if not 0 <= percent <= 100:
        raise Conflict(f"a weight of {percent} %", "0 to 100", "give a percentage")
    rollout, route = state.require(act.journal, act.pipeline.name), act.route()
    if route.canary is None:
        raise Conflict("the route has no canary", "a canary", "start a rollout first")
    act.change(route.with_canary(route.canary, weight=percent * WHOLE // 100), f"weight set to {percent} % by hand")
    state.note(act.journal, act.pipeline.name, rollout.id, "RolloutPaused", {"cause": f"weight set to {percent} % by hand"})
    return f"{rollout.version} gets {percent} % of the traffic; the rollout is paused"


def undo(act: Actor, to: str = "") -> str:
    """Make an earlier stable version stable again at once. A rollout in progress is aborted first."""
    if state.active(act.journal, act.pipeline.name):
        end(act, "aborted", "undone by hand")
    route = act.route()
    earlier = [
        entry.route.stable for entry in routes.history(act.journal, act.pipeline.name) if entry.route.stable != route.stable
    ]
    found = [arm for arm in earlier if not to or arm.version == to]
    if not found:
        raise NotFound(
            f"{to or 'an earlier version'} was never stable before",
            f"one of {[arm.version for arm in earlier]}",
            "see `ct rollout history`",
        )
    target = found[-1]
    act.change(route.with_canary(target).promoted(), f"undone by hand: back to {target.version}")
    return f"{target.version} is stable again"


class Judging:
    """The rollout's counts, kept between looks. They are a fold of the prediction log, so a new process counts the same."""

    def __init__(self, act: Actor) -> None:
        self._act = act
        self._rollout = ""
        self._tally = Tally(0, 0.0)
        self._cursor: Any = None

    def turn(self) -> str:
        """Look once and act on the verdict. Returns what was done, empty when the rollout just goes on."""
        act, name = self._act, self._act.pipeline.name
        rollout = state.require(act.journal, name)
        route = act.route()
        if rollout.step < 0 or route.canary is None:
            return self._mend(rollout)
        self._read(rollout)
        found = verdict.judge(
            act.pipeline.rollout,
            self._tally.cells(),
            step=rollout.step,
            elapsed_s=(act.clock.now() - (rollout.step_at or rollout.started)).total_seconds(),
            paired=self._paired(rollout) if route.shadow else None,
        )
        if found.decision == "continue" or (found.decision == "hold" and rollout.phase == "holding"):
            return ""
        state.note(
            act.journal,
            name,
            rollout.id,
            "RolloutJudged",
            {
                "decision": found.decision,
                "cause": found.cause,
                "evidence": describe(found.evidence),
                "paired": describe(found.paired) if found.paired else None,
            },
        )
        match found.decision:
            case "roll_back":
                said = end(act, "rolled_back", found.cause)
                act.alert("PAGE", f"{rollout.version} was rolled back", detail=found.cause)
                return said
            case "hold":
                state.note(act.journal, name, rollout.id, "RolloutHeld", {"cause": found.cause})
                act.alert("WARN", f"the rollout of {rollout.version} holds", detail=found.cause)
                return f"{rollout.version} holds: {found.cause}"
            case _ if rollout.step + 1 < len(act.pipeline.rollout.stages()):
                return _step(act, rollout, rollout.step + 1)
            case _:
                return end(act, "promoted", found.cause)

    def _mend(self, rollout: Rollout) -> str:
        """A process died between two records of this rollout: take the step that is missing, or close what the route already ended."""
        act, name = self._act, self._act.pipeline.name
        route = act.route()
        if route.stable.version == rollout.version:
            state.note(
                act.journal,
                name,
                rollout.id,
                "RolloutEnded",
                {"outcome": "promoted", "cause": "found promoted after a restart"},
            )
            return f"{rollout.version} promoted"
        if rollout.step < 0:
            return _step(act, rollout, 0)
        state.note(
            act.journal,
            name,
            rollout.id,
            "RolloutEnded",
            {"outcome": "rolled_back", "cause": "found without traffic after a restart"},
        )
        return f"{rollout.version} rolled back"

    def _paired(self, rollout: Rollout) -> Paired:
        """The shadow beside stable on the rows that both have scored since the rollout began."""
        objective = self._act.pipeline.label.objective
        joined = labels.join(predictions.everything(self._act.settings))
        answered = {row.id: row for row in joined.rows if row.version == rollout.baseline}
        shadows = [
            row
            for row in joined.shadow
            if row.version == rollout.version and row.epoch >= rollout.first_epoch and row.of in answered
        ]
        ours, truth = labels.arrays(shadows, objective)
        theirs, _ = labels.arrays([answered[row.of] for row in shadows], objective)
        return compare(objective, theirs, ours, truth, alpha=verdict.paired_alpha(self._act.pipeline.rollout))

    def _read(self, rollout: Rollout) -> None:
        if self._rollout != rollout.id:
            self._rollout, self._cursor = rollout.id, None
            label = self._act.pipeline.label
            cuts = {arm.version: _spec(self._act, arm).threshold for arm in self._act.route().arms}
            self._tally = Tally(rollout.first_epoch, rollout.slow_ms, label.objective, rollout.limit, cuts)
            self._tally.add(predictions.committed(self._act.settings, first_epoch=rollout.first_epoch))
        records, self._cursor = predictions.read(self._act.settings.inbox, self._cursor)
        self._tally.add(records)
