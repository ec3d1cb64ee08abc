"""One look at a rollout: from its tally to the verdict on each candidate, with segments and worth beside it. Pure."""

from __future__ import annotations

from dataclasses import replace

from ct.registry.routes import arm_name
from ct.rollout.guards import Business
from ct.rollout.paired import Paired
from ct.rollout.plans import Plan
from ct.rollout.segments import by_segment
from ct.rollout.steps import pairs
from ct.rollout.tally import Tally
from ct.rollout.verdict import ALPHA, Verdict, judge
from ct.rollout.worth import gain


def look(plan: Plan, tally: Tally, *, step: int, elapsed_s: float, paired: Paired | None = None) -> tuple[Verdict, ...]:
    """The verdict on each candidate at `step`, where the rollout has been for `elapsed_s` seconds.

    Each has its part of the error that is allowed, for harm as for its segments. `paired` compares a shadow with stable.
    """
    return tuple(_candidate(plan, tally, at, step, elapsed_s, paired) for at in range(len(plan.stages()[step].weights)))


def _candidate(plan: Plan, tally: Tally, at: int, step: int, elapsed_s: float, paired: Paired | None) -> Verdict:
    stage = plan.stages()[step]
    counts, alpha = tally.by_segment(), ALPHA / len(stage.weights)
    own = {name: pairs(stage, cells)[at] for name, cells in counts.items()}
    segments = by_segment(plan.guards, own, alpha=alpha) if tally.segments else None
    cells = own.get(("", ""), ())
    found = judge(plan, cells, step=step, elapsed_s=elapsed_s, alpha=alpha, paired=paired, segments=segments)
    percent = stage.weights[at]
    share = percent / (percent + 100 - sum(stage.weights)) if len(stage.weights) > 1 else None
    valued = [guard for guard in plan.guards if isinstance(guard, Business)]
    told = [gain(guard, tally.worths(guard.name), alpha=ALPHA, arm=arm_name(at), share=share) for guard in valued]
    return replace(found, gains=tuple(told))
