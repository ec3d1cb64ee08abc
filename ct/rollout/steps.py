"""Plan + verdict + route → next route. Pure; recording the route and telling the replicas is control/act.py's part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ct.registry.routes import WHOLE, Arm, Route
from ct.rollout.plans import Plan
from ct.rollout.verdict import Verdict

Outcome = Literal["", "promoted", "rolled_back"]


@dataclass(frozen=True)
class Move:
    """What follows from a verdict. `route` is None where the route stays; `outcome` is empty while the rollout goes on."""

    route: Route | None
    step: int
    outcome: Outcome = ""


def enter(plan: Plan, route: Route, canary: Arm, step: int) -> Route:
    """The route of `step`: the canary's share, or its shadow."""
    percent, shadow = plan.stages()[step]
    return route.with_canary(canary, weight=percent * WHOLE // 100, shadow=shadow)


def follow(plan: Plan, route: Route, step: int, verdict: Verdict) -> Move:
    """The move that `verdict` asks for at `step` of `plan`, from the route in force."""
    if route.canary is None or verdict.decision in ("continue", "hold"):
        return Move(None, step)
    if verdict.decision == "roll_back":
        return Move(route.without_canary(), step, "rolled_back")
    if step + 1 < len(plan.stages()):
        return Move(enter(plan, route, route.canary, step + 1), step + 1)
    return Move(route.promoted(), step, "promoted")
