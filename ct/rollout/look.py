"""One look at a rollout: from its tally to the verdict on each candidate, with segments and worth beside it. Pure."""

from __future__ import annotations

from dataclasses import replace

from ct.rollout.guards import Business
from ct.rollout.paired import Paired
from ct.rollout.plans import Plan
from ct.rollout.segments import by_segment
from ct.rollout.tally import Tally
from ct.rollout.verdict import ALPHA, Verdict, judge
from ct.rollout.worth import gain


def look(
    plan: Plan, *tallies: Tally, step: int, elapsed_s: float, paired: Paired | None = None, among: int = 0
) -> tuple[Verdict, ...]:
    """The verdict on each candidate at `step`, where the rollout has been for `elapsed_s` seconds.

    `tallies` count each candidate beside stable as if the two were alone, see `steps.as_pair`; there were `among` so many to begin with. Each has its
    part of the error that is allowed, for harm as for its segments. `paired` compares a shadow with stable.
    """
    alpha = ALPHA / max(among, len(tallies))
    return tuple(_candidate(plan, tally, alpha, step, elapsed_s, paired) for tally in tallies)


def _candidate(plan: Plan, tally: Tally, alpha: float, step: int, elapsed_s: float, paired: Paired | None) -> Verdict:
    counts = tally.by_segment()
    segments = by_segment(plan.guards, counts, alpha=alpha) if tally.segments else None
    cells = counts.get(("", ""), ())
    found = judge(plan, cells, step=step, elapsed_s=elapsed_s, alpha=alpha, paired=paired, segments=segments)
    valued = [guard for guard in plan.guards if isinstance(guard, Business)]
    return replace(found, gains=tuple(gain(guard, tally.worths(guard.name), alpha=ALPHA) for guard in valued))
