"""A rollout's turn: look at the evidence, mend what a killed process left, and take the step that the plan, the hooks and the clock allow."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ct.control import hooking, rollouts
from ct.data import labels, predictions
from ct.registry import pinned, routes
from ct.registry.routes import Route
from ct.rollout import state, verdict
from ct.rollout.guards import Business, Scores, middle
from ct.rollout.look import look
from ct.rollout.paired import Paired, compare
from ct.rollout.state import Rollout
from ct.rollout.steps import paced
from ct.rollout.tally import Tally
from ct.rollout.verdict import Verdict

if TYPE_CHECKING:
    from ct.control.act import Actor

HOOK_SECONDS = 10.0
"""A hook that refused is asked again after so long."""


def heed(act: Actor) -> str:
    """Journal an order that stopped candidates without a database, and close a paused rollout that was cut off while it ended."""
    name = act.pipeline.name
    rollout = state.active(act.journal, name)
    route = routes.current(act.journal, name) if rollout else None
    if rollout is None or route is None:
        return ""
    order = pinned.offline(act.settings, name) if route.candidates else None
    if order is not None and order.epoch >= route.epoch:
        return rollouts.end(act, "aborted", f"{order.cause} by {order.by} at {order.at}")
    return mend(act, rollout, route) if rollout.phase == "paused" and rollout.step >= 0 else ""


def mend(act: Actor, rollout: Rollout, route: Route) -> str:
    """A process died between two records of this rollout: close what the route ended, note a step whose route is in force. Else empty."""
    if not route.candidates and route.stable.version in rollout.versions:
        rollouts.ended(act, rollout, "promoted", "found promoted after a restart")
        return f"{route.stable.version} promoted"
    if not route.candidates and rollout.step >= 0:
        cause = routes.history(act.journal, act.pipeline.name)[-1].cause
        told = cause.removeprefix(f"rollout {rollout.id} ").partition(": ")
        outcome = told[0] if told[0] in ("rolled_back", "aborted") else "rolled_back"
        rollouts.ended(act, rollout, outcome, told[2] or "found without traffic after a restart")
        return f"{rollout.version} {outcome.replace('_', ' ')}"
    if route.candidates and rollout.phase != "paused" and not rollouts.at_step(act, route, rollout.step):
        if rollouts.at_step(act, route, rollout.step + 1):
            return rollouts.stepped(act, rollout, rollout.step + 1, route)
        if rollout.step >= 0:  # a weight by hand whose pause was ended: back to the plan
            return rollouts.step_to(act, rollout, rollout.step)
    return ""


class Judging:
    """The rollout's counts, kept between looks. They are a fold of the prediction log, so a new process counts the same."""

    def __init__(self, act: Actor) -> None:
        self._act = act
        self._rollout = ""
        self._tally = Tally(0, {})
        self._cursor: Any = None

    def turn(self) -> str:
        """Look once and act on the verdict. Returns what was done, empty when the rollout just goes on."""
        act, name = self._act, self._act.pipeline.name
        rollout, route = state.require(act.journal, name), act.route()
        if mended := mend(act, rollout, route):
            return mended
        if rollout.refused_at and self._since(rollout.refused_at) < HOOK_SECONDS and rollout.step < 0:
            return ""
        if not route.candidates:
            return rollouts.begin(act, rollout)
        self._read(rollout)
        found = self._verdict(rollout, route)
        if found.decision == "promote" and rollout.passed_at is None:
            state.note(act.journal, name, rollout.id, "RolloutPassed", {"step": rollout.step})
        elapsed = self._since(rollout.step_at or rollout.started)
        passed = self._since(rollout.passed_at) if rollout.passed_at else None
        found = paced(act.pipeline.rollout, rollout.step, found, elapsed_s=elapsed, passed_s=passed)
        waits = rollout.refused_at and self._since(rollout.refused_at) < HOOK_SECONDS and found.decision == "promote"
        if waits or found.decision == "continue" or (found.decision == "hold" and rollout.phase == "holding"):
            return ""
        said = found.recorded()
        if not self._stands(rollout, route):
            return ""
        state.note(act.journal, name, rollout.id, "RolloutJudged", said)
        return self._follow(rollout, route, found)

    def _stands(self, rollout: Rollout, route: Route) -> bool:
        """Is what was judged still so? A person may have paused, stepped or ended it while the log was read or a hook was asked."""
        now = state.active(self._act.journal, self._act.pipeline.name)
        known = now is not None and (now.id, now.phase, now.step) == (rollout.id, rollout.phase, rollout.step)
        return known and self._act.route().epoch == route.epoch

    def _follow(self, rollout: Rollout, route: Route, found: Verdict) -> str:
        act = self._act
        stages, following = act.pipeline.rollout.stages(), rollout.step + 1
        match found.decision:
            case "roll_back" | "abort":
                said = rollouts.end(act, "rolled_back" if found.decision == "roll_back" else "aborted", found.cause)
                act.alert("PAGE", f"{rollout.version} was rolled back", detail=found.cause)
                return said
            case "hold":
                return rollouts.hold(act, rollout, found.cause)
            case _ if following < len(stages):
                weights = list(stages[following].weights)
                if refused := hooking.ask(act, rollout, "confirm-traffic-increase", weights=weights, cause=found.cause):
                    return rollouts.hold(act, rollout, refused)
                return rollouts.step_to(act, rollout, following) if self._stands(rollout, route) else ""
            case _:
                if refused := hooking.ask(act, rollout, "confirm-promotion", cause=found.cause):
                    return rollouts.hold(act, rollout, refused)
                return rollouts.end(act, "promoted", found.cause) if self._stands(rollout, route) else ""

    def _verdict(self, rollout: Rollout, route: Route) -> Verdict:
        """The verdict on the candidate; of several the worst one, each with its part of the error that is allowed."""
        plan = self._act.pipeline.rollout
        paired = self._paired(rollout) if route.shadow else None
        elapsed = self._since(rollout.step_at or rollout.started)
        found = look(plan, self._tally, step=rollout.step, elapsed_s=elapsed, paired=paired)
        order = ("roll_back", "abort", "hold", "continue", "promote")
        return min(found, key=lambda item: order.index(item.decision))

    def _since(self, moment: datetime) -> float:
        return (self._act.clock.now() - moment).total_seconds()

    def _paired(self, rollout: Rollout) -> Paired:
        """The shadow beside stable on the rows that both have scored since the rollout began."""
        objective = self._act.pipeline.label.objective
        records = predictions.everything(self._act.settings)
        joined = labels.join(records)
        answered = {row.id: row for row in joined.rows if row.version == rollout.baseline}
        shadows = [
            row
            for row in joined.shadow
            if row.version == rollout.version and row.epoch >= rollout.first_epoch and row.of in answered
        ]
        ours, truth = labels.arrays(shadows, objective)
        theirs, _ = labels.arrays([answered[row.of] for row in shadows], objective)
        found = compare(objective, theirs, ours, truth, alpha=verdict.paired_alpha(self._act.pipeline.rollout))
        asked = [
            bool(record["error"])
            for record in records
            if record["kind"] == "shadow" and record["version"] == rollout.version and record["epoch"] >= rollout.first_epoch
        ]
        return replace(found, asked=len(asked), failed=sum(asked))

    def _earlier(self, rollout: Rollout) -> list[float]:
        """Stable's scores from before the rollout, so that the limits learned from them do not depend on what they judge."""
        return [
            float(record["score"])
            for record in predictions.everything(self._act.settings)
            if record["kind"] == "prediction"
            and record["version"] == rollout.baseline
            and record["epoch"] < rollout.first_epoch
            and not record["error"]
            and record["score"] is not None
        ]

    def _read(self, rollout: Rollout) -> None:
        if self._rollout != rollout.id:
            label = self._act.pipeline.label
            specs = {arm.version: rollouts.spec_of(self._act, arm) for arm in self._act.route().arms}
            cuts = {version: spec.threshold for version, spec in specs.items()}
            # Only what every arm's answers tell: else one arm alone would have requests in the segment.
            told = self._act.pipeline.segments
            segments = tuple(name for name in told if all(name in spec.segments for spec in specs.values()))
            guards = self._act.pipeline.rollout.guards
            valued = tuple(guard for guard in guards if isinstance(guard, Business))
            between = middle(self._earlier(rollout)) if any(isinstance(guard, Scores) for guard in guards) else None
            tally = Tally(rollout.first_epoch, rollout.slow_ms, label.objective, rollout.limit, cuts, valued, between, segments)
            tally.add(predictions.committed(self._act.settings, first_epoch=rollout.first_epoch))
            # Only now: a store that failed above is asked again at the next look.
            self._rollout, self._tally, self._cursor = rollout.id, tally, None
        records, self._cursor = predictions.read(self._act.settings.inbox, self._cursor)
        self._tally.add(records)
