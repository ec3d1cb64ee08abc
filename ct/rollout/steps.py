"""Plan + verdict + route → next route. Pure; recording the route and telling the replicas is control/act.py's part."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from ct.clock import duration
from ct.registry.routes import CANARY, STABLE, WHOLE, Arm, Route, Share, arm_name
from ct.rollout.plans import MANUAL, Plan, part_at
from ct.rollout.verdict import Verdict

Outcome = Literal["", "promoted", "rolled_back", "aborted"]


@dataclass(frozen=True)
class Move:
    """What follows from a verdict. `route` is None where the route stays; `outcome` is empty while the rollout goes on."""

    route: Route | None
    step: int
    outcome: Outcome = ""


def enter(plan: Plan, route: Route, canary: Arm, step: int, *others: Arm, gone: Collection[str] = ()) -> Route:
    """The route of `step`: each candidate's share, or its shadow, and who may get one. `others` are the candidates after the first.

    Those that are `gone` get nothing; what would be theirs stays stable's.
    """
    stage = plan.stages()[step]
    part, _ = part_at(plan, step)
    shares = tuple(
        Share(arm, gap=percent * WHOLE // 100, out=True)
        if arm.version in gone
        else Share(arm, percent * WHOLE // 100, stage.shadow)
        for arm, percent in zip((canary, *others), stage.weights, strict=True)
    )
    return replace(
        route.with_candidates(shares), only=dict(part.only), without=dict(part.without), override=tuple(part.override)
    )


def follow(plan: Plan, route: Route, step: int, verdict: Verdict) -> Move:
    """The move that `verdict` asks for at `step` of `plan`, from the route in force."""
    if route.canary is None or verdict.decision in ("continue", "hold"):
        return Move(None, step)
    if verdict.decision in ("roll_back", "abort"):
        return Move(route.without_canary(), step, "rolled_back" if verdict.decision == "roll_back" else "aborted")
    if step + 1 < len(plan.stages()):
        first, *others = (share.arm for share in route.candidates)
        return Move(enter(plan, route, first, step + 1, *others), step + 1)
    return Move(route.promoted(), step, "promoted")


def paced(plan: Plan, step: int, verdict: Verdict, *, elapsed_s: float, passed_s: float | None) -> Verdict:
    """`verdict` in its time: a step that has passed waits for its least time and for its pause.

    `elapsed_s` are the seconds since the step began, `passed_s` those since it passed first (None: it has not).
    """
    if verdict.decision != "promote":
        return verdict
    part, _ = part_at(plan, step)
    stage = plan.stages()[step]
    if part.min_time and elapsed_s < duration(part.min_time).total_seconds():
        return replace(verdict, decision="continue", cause=f"proven; the step lasts at least {part.min_time}")
    if stage.pause == MANUAL:
        return replace(verdict, decision="hold", cause="proven; the plan waits for a person: `ct rollout promote`")
    if stage.pause and (passed_s is None or passed_s < duration(stage.pause).total_seconds()):
        word = "bakes" if stage.bake else "waits"
        return replace(verdict, decision="continue", cause=f"proven; it {word} for {stage.pause}")
    return verdict


def as_pair(record: Mapping[str, Any], at: int, route: Route) -> Mapping[str, Any] | None:
    """A record of the prediction log as if stable and the candidate in place `at` were alone under `route`, the one that it was answered under.

    The candidate is named canary, its weight is its share of what both had. None for another candidate's; labels are as they were.
    """
    if record["kind"] != "prediction":
        return record
    name = arm_name(at)
    if record["assigned"] not in (STABLE, name):
        return None
    ours, stable = route.shares.get(name, 0), route.shares[STABLE]
    weight = round(ours * WHOLE / (ours + stable)) if ours + stable else 0
    return {**record, "weight": weight, "assigned": STABLE if record["assigned"] == STABLE else CANARY}
