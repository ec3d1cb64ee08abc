"""A rollout's turn: look at the evidence, mend what a killed process left, and take the step that the plan, the hooks and the clock allow."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from ct.control import ending, hooking, rollouts
from ct.control.circuits import Circuits
from ct.control.counting import Counting
from ct.errors import Unavailable
from ct.registry import pinned, routes
from ct.registry.routes import Route
from ct.rollout import state
from ct.rollout.state import Rollout
from ct.rollout.steps import paced
from ct.rollout.verdict import Verdict

if TYPE_CHECKING:
    from ct.control.act import Actor

REPORT_SECONDS, REPORT_PART = 60.0, 0.01
"""So often the evidence of a rollout that just goes on is recorded: after a minute, later after that part of the time since it began. Every look
reads the whole story of the rollouts again."""
HOOK_SECONDS, ROOM_SECONDS, CLOSE_SECONDS = 10.0, 60.0, 120.0
"""A hook that refused is asked again after so long, an application apart that could not be made larger is tried again.
An end is told of by who ended it for so long: a person's command may be at it still."""


def heed(act: Actor) -> str:
    """Journal an order that stopped candidates without a database, and tell of an end that nobody lived to tell of."""
    name = act.pipeline.name
    rollout = state.active(act.journal, name)
    route = routes.current(act.journal, name)
    if rollout is None or route is None:
        return ending.close(act, after=CLOSE_SECONDS) if route is not None else ""
    order = pinned.offline(act.settings, name) if route.candidates else None
    if order is not None and order.epoch >= route.epoch:
        return ending.end(act, "aborted", f"{order.cause} by {order.by} at {order.at}")
    return ""


def mend(act: Actor, rollout: Rollout, route: Route) -> str:
    """A process died between two records of this rollout: carry out what it decided, note a step whose route is in force. Else empty."""
    if rollout.ending:
        return ending.finish(act, rollout)
    if rollout.leaving:
        return ending.dropped(act, rollout)
    if not route.candidates and route.stable.version in rollout.versions:
        return ending.end(act, "promoted", "found promoted", version=route.stable.version)
    if not route.candidates and rollout.step >= 0:
        return ending.end(act, "aborted", f"found without traffic: {routes.history(act.journal, act.pipeline.name)[-1].cause}")
    if route.candidates and rollout.phase != "paused" and not rollouts.at_step(act, rollout, route, rollout.step):
        if rollouts.at_step(act, rollout, route, rollout.step + 1):
            return rollouts.stepped(act, rollout, rollout.step + 1, route)
        if rollout.step >= 0:  # a weight by hand whose pause was ended: back to the plan
            return rollouts.step_to(act, rollout, rollout.step)
    return ""


class Judging:
    """What is kept between looks; a new process finds the same out by itself."""

    def __init__(self, act: Actor) -> None:
        self._act = act
        self._counts = Counting(act)
        self._circuits = Circuits(act)
        self._rest = 0.0
        self._reported = 0.0

    def turn(self) -> str:
        """Look once and act on the verdict. Returns what was done, empty when the rollout just goes on.

        A paused one is watched as ever, only it does not move on: its deadline waits, and the split is told of rather than held for.
        """
        act, name = self._act, self._act.pipeline.name
        rollout, route = state.require(act.journal, name), act.route()
        if mended := mend(act, rollout, route):
            return mended
        if not route.candidates:
            return "" if self._rests(rollout) else rollouts.begin(act, rollout)
        for version, cause in self._circuits.opened(rollout, route).items():
            return self._harmed(rollout, version, cause, ending.CIRCUIT) if self._stands(rollout, route) else ""
        plan, paused = rollouts.plan_of(act, rollout), rollout.phase == "paused"
        elapsed = 0.0 if paused else self._since(rollout.step_at or rollout.started)
        version, found = self._counts.verdict(rollout, route, plan, elapsed)
        if paused:
            return self._paused(rollout, route, version, found)
        if found.decision == "promote" and rollout.passed_at is None:
            state.note(act.journal, name, rollout.id, "RolloutPassed", {"step": rollout.step})
        passed = self._since(rollout.passed_at) if rollout.passed_at else None
        found = paced(plan, rollout.step, found, elapsed_s=elapsed, passed_s=passed)
        waits = found.decision == "promote" and (self._refused(rollout) or act.clock.now().timestamp() < self._rest)
        if waits or found.decision == "continue" or (found.decision == "hold" and rollout.phase == "holding"):
            self._report(rollout, route, version, found)
            return ""
        if not self._stands(rollout, route):
            return ""
        state.note(act.journal, name, rollout.id, "RolloutJudged", {"version": version, **found.recorded()})
        return self._follow(rollout, route, version, found)

    def _rests(self, rollout: Rollout) -> bool:
        """Is it too early for another try to begin?"""
        wait = rollouts.RETRY_SECONDS * 2 ** (rollout.tries - 1)
        tried = rollout.tried_at is not None and self._since(rollout.tried_at) < wait
        return rollout.phase == "paused" or tried or self._refused(rollout)

    def _refused(self, rollout: Rollout) -> bool:
        return rollout.refused_at is not None and self._since(rollout.refused_at) < HOOK_SECONDS

    def _report(self, rollout: Rollout, route: Route, version: str, found: Verdict) -> None:
        """Tell the evidence of a look that changes nothing, now and then: else nobody would see it before it decides."""
        now, begun = self._act.clock.now().timestamp(), (rollout.step_at or rollout.started).timestamp()
        wait = max(REPORT_SECONDS, REPORT_PART * self._since(rollout.started))
        if now - max(self._reported, begun) >= wait and self._stands(rollout, route):
            said = {"version": version, **found.recorded()}
            state.note(self._act.journal, self._act.pipeline.name, rollout.id, "RolloutJudged", said)
            self._reported = now

    def _paused(self, rollout: Rollout, route: Route, version: str, found: Verdict) -> str:
        if found.reason == "split":
            self._act.alert("WARN", f"rollout {rollout.id}: the split is broken, while it is paused", detail=found.cause)
        if found.decision != "roll_back" or not self._stands(rollout, route):
            self._report(rollout, route, version, found)
            return ""
        said = {"version": version, **found.recorded()}
        state.note(self._act.journal, self._act.pipeline.name, rollout.id, "RolloutJudged", said)
        return self._harmed(rollout, version, found.cause, found.reason)

    def _harmed(self, rollout: Rollout, version: str, cause: str, reason: str) -> str:
        """Harm ends the candidate that does it, and the rollout with the last one."""
        if rollout.left == (version,):
            return ending.end(self._act, "rolled_back", cause, reason=reason)
        return ending.drop(self._act, rollout, version, cause)

    def _stands(self, rollout: Rollout, route: Route) -> bool:
        """Is what was judged still so? A person may have paused, stepped or ended it while the log was read or a hook was asked."""
        now = state.active(self._act.journal, self._act.pipeline.name)
        known = now is not None and (now.id, now.phase, now.step) == (rollout.id, rollout.phase, rollout.step)
        return known and self._act.route().epoch == route.epoch

    def _follow(self, rollout: Rollout, route: Route, version: str, found: Verdict) -> str:
        act, following = self._act, rollout.step + 1
        stages = rollouts.plan_of(act, rollout).stages()
        match found.decision:
            case "roll_back":
                return self._harmed(rollout, version, found.cause, found.reason)
            case "abort":
                return ending.end(act, "aborted", found.cause, reason=ending.DEADLINE)
            case "hold":
                return rollouts.hold(act, rollout, found.cause)
        last = following == len(stages)
        asked = {} if last else {"weights": list(stages[following].weights)}
        hook = "confirm-promotion" if last else "confirm-traffic-increase"
        if refused := hooking.ask(act, rollout, hook, cause=found.cause, **asked):
            return rollouts.hold(act, rollout, refused)
        try:
            ending.make_room(act, route.promoted() if last else rollouts.route_of(act, rollout, following))
        except Unavailable as error:
            self._rest = act.clock.now().timestamp() + ROOM_SECONDS
            return rollouts.hold(act, rollout, f"no room for the next step: {error.found}")
        if not self._stands(rollout, route):
            return ""
        return ending.end(act, "promoted", found.cause, reason="") if last else rollouts.step_to(act, rollout, following)

    def _since(self, moment: datetime) -> float:
        return (self._act.clock.now() - moment).total_seconds()
