"""Judges a rollout from counts: continue, promote, hold or roll back, with the evidence. Pure; valid at any number of looks.

Harm is looked for with e-processes (evaluation/stats.py): over all looks, steps, weights and metrics together a canary that is no
worse than stable, and under the guards' caps, is rolled back with probability `alpha` at most.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from ct.clock import duration
from ct.evaluation.stats import above_rate, uneven_split, worse_arm
from ct.ids import describe
from ct.rollout.guards import Guard, apart
from ct.rollout.paired import Paired
from ct.rollout.plans import AB, Plan, Shadow, part_at

if TYPE_CHECKING:
    from ct.rollout.segments import Segments
    from ct.rollout.worth import Gain

ALPHA = 0.05
SPLIT_LIMIT = 1000.0
"""A split is called broken where the e-value of one weight is this and the share is also off by a fifth: less than that spoils no verdict."""
SPLIT_FLOOR = 0.2
IN_A_ROW = 5
"""So many units in a row that fail, while stable answers, say that the canary is down. A replica's own circuit opens then as well."""
BY_CHANCE, UNKNOWN_RATE = 0.001, 0.05
"""So seldom must such a run come in a whole rollout by stable's rate of errors (the second where nobody knows it); else it has to be longer."""


@dataclass(frozen=True)
class Cell:
    """Counts of one arm while the canary's share was `weight` (0 to 1).

    `total` requests assigned, of them `errors`, and `slow` above the limit of each quantile that is watched; `labelled` whose truth is known,
    of them `wrong`. The `unit_` counts are the same of the requests that speak for their unit (user), see `Tally`; None where requests are
    independent. `losses` has (metric, rows, sum of their losses from 0 to 1). `failed_in_a_row` units failed, from the moment
    `failing_since` on, and none succeeded after them; `succeeded_at` is when the last one did (microseconds, None for never). `distinct` units asked at all, each of which was drawn for its arm once; None where every request was.
    """

    weight: float
    arm: str
    total: int = 0
    errors: int = 0
    slow: Mapping[str, int] = field(default_factory=dict)
    labelled: int = 0
    wrong: int = 0
    unit_total: int | None = None
    unit_errors: int = 0
    unit_slow: Mapping[str, int] = field(default_factory=dict)
    unit_labelled: int = 0
    unit_wrong: int = 0
    losses: tuple[tuple[str, int, float], ...] = ()
    failed_in_a_row: int = 0
    failing_since: int | None = None
    succeeded_at: int | None = None
    distinct: int | None = None

    def by_unit(self) -> Cell:
        """The cell with only the requests that speak for their unit, which is what evidence of harm rests on."""
        if self.unit_total is None:
            return self
        asked = (self.unit_total, self.unit_errors, self.unit_slow, self.unit_labelled, self.unit_wrong)
        return Cell(self.weight, self.arm, *asked, losses=self.losses)


@dataclass(frozen=True)
class Evidence:
    """One metric's evidence of harm: an alarm is raised where `e_value` reaches `limit`. The counts are those that it rests on."""

    metric: str
    e_value: float
    limit: float
    stable_n: int
    stable_bad: float
    canary_n: int
    canary_bad: float

    @property
    def harmful(self) -> bool:
        """Has the alarm gone off?"""
        return self.e_value >= self.limit

    def __str__(self) -> str:
        return (
            f"{self.metric}: canary {_count(self.canary_bad)} of {self.canary_n:,}, stable {_count(self.stable_bad)} of {self.stable_n:,}"
            f" (e-value {self.e_value:.3g}, alarm at {self.limit:.0f})"
        )


@dataclass(frozen=True)
class Split:
    """How the units were split: the canary got `canary` of `n` while both arms had a share, where the weights promise `expected`.

    A unit that asked at several weights counts at each of them, so `e_value` is the mean of the weights' e-values.
    """

    n: int
    canary: int
    expected: float
    e_value: float
    limit: float = SPLIT_LIMIT

    @property
    def ratio(self) -> float:
        """What the canary got over what it should have got: 1 is as told."""
        return self.canary / self.expected if self.expected else 1.0


@dataclass(frozen=True)
class Verdict:
    """`promote` means: this step has passed, take the next one or end. `hold` means: a person should look.

    `reason` is a word for the cause where no metric's evidence is it: "circuit", "split", "segment" or "deadline".
    """

    decision: Literal["continue", "promote", "hold", "roll_back", "abort"]
    cause: str
    evidence: tuple[Evidence, ...] = ()
    paired: Paired | None = None
    split: Split | None = None
    segments: Segments | None = None
    gains: tuple[Gain, ...] = ()
    reason: Literal["", "circuit", "split", "segment", "deadline"] = ""

    def recorded(self) -> dict[str, Any]:
        """Everything of it as plain data for the journal."""
        told = {name: describe(value) for name, value in vars(self).items()}
        return told | ({"split": told["split"] | {"ratio": self.split.ratio}} if self.split else {})


def paired_alpha(plan: Plan, alpha: float = ALPHA) -> float:
    """The share of `alpha` that the paired comparison of a shadow has: it is one test more."""
    return alpha / (_tests(plan.guards) + 1)


def judge(
    plan: Plan,
    cells: Sequence[Cell],
    *,
    step: int,
    elapsed_s: float,
    alpha: float = ALPHA,
    paired: Paired | None = None,
    segments: Segments | None = None,
) -> Verdict:
    """The verdict over all `cells` of the rollout while it stands at `step`, where it has been for `elapsed_s` seconds.

    `paired` compares a shadow with stable, its bounds made with `paired_alpha`. `segments` is what is known of segments: a plan that says so
    holds rather than pass while one is harmed.
    """
    found = _judge(plan, cells, step, elapsed_s, alpha, paired)
    part, _ = part_at(plan, step)
    holds = getattr(part, "harmed_segment", "report") == "hold"  # a plan of the user's own may not know the word
    if found.decision == "promote" and holds and segments is not None and segments.harmed:
        found = replace(found, decision="hold", cause=f"a segment is harmed: {segments.harmed[0]}", reason="segment")
    return replace(found, paired=paired, split=split(cells), segments=segments)


def _judge(plan: Plan, cells: Sequence[Cell], step: int, elapsed_s: float, alpha: float, paired: Paired | None) -> Verdict:
    broken, shares = _broken(cells)
    # Where the canary got more requests than its weight says, more bad events alone do not make it worse: judge by what it got.
    received = [replace(cell, weight=shares[cell.weight]) for cell in cells] if broken else cells
    tests = _tests(plan.guards) + any(stage.shadow for stage in plan.stages())
    evidence = _evidence(plan.guards, [cell.by_unit() for cell in received], tests / alpha)
    if harmful := [item for item in evidence if item.harmful]:
        return Verdict("roll_back", str(max(harmful, key=lambda item: item.e_value)), evidence)
    if down := _down(plan, cells):
        return Verdict("roll_back", down, evidence, reason="circuit")
    if paired is not None and paired.harmful:
        return Verdict("roll_back", str(paired), evidence)
    if broken:
        return Verdict("hold", broken, evidence, reason="split")
    part, at = part_at(plan, step)
    lacking = _unproven(part, paired) if part.stages()[at].shadow else _lacking(part, cells, at)
    if not lacking:
        return Verdict("promote", "every guard is inside its margin", evidence)
    if elapsed_s >= duration(part.deadline).total_seconds():
        percent = plan.stages()[step].weights[0]
        here = [cell for cell in cells if cell.arm == "canary" and _at(cell, percent)]
        seen = any(cell.total > cell.errors for cell in here) or (paired is not None and paired.n > 0)
        return Verdict(_late(part, seen), f"not proven within {part.deadline}: {lacking}", evidence, reason="deadline")
    return Verdict("continue", lacking, evidence)


def _at(cell: Cell, percent: int) -> bool:
    return abs(cell.weight - percent / 100) < 1e-9


def _down(plan: Plan, cells: Sequence[Cell]) -> str:
    """The hard circuits: why the canary is plainly down, empty where it is not, or where stable is down as well."""
    total = sum(cell.total for cell in cells if cell.arm == "stable")
    errors = sum(cell.errors for cell in cells if cell.arm == "stable")
    rate = (errors + 1) / (total + 2) if total else UNKNOWN_RATE
    beside = {cell.weight: cell for cell in cells if cell.arm == "stable" and cell.total}
    for canary in (cell for cell in cells if cell.arm == "canary" and cell.errors):
        stable = beside.get(canary.weight)
        if canary.errors == canary.total >= max(plan.min_requests, IN_A_ROW) and (
            stable is None or stable.errors < stable.total
        ):
            return f"the canary is down: all of its {canary.total:,} requests at {canary.weight:.0%} failed"
        # A run of k begins at any of n requests with rate**k; over all looks that is BY_CHANCE * (1/1 + 1/4 + 1/9 + ...) at most.
        needed = max(IN_A_ROW, math.log(BY_CHANCE / canary.total**2) / math.log(rate))
        if canary.failed_in_a_row >= needed and (stable is None or _after(stable.succeeded_at, canary.failing_since)):
            return f"the canary is down: its last {canary.failed_in_a_row} units failed in a row at {canary.weight:.0%}"
    return ""


def _after(later: int | None, earlier: int | None) -> bool:
    return later is not None and earlier is not None and later > earlier


def _late(plan: Plan, seen: bool) -> Literal["hold", "promote", "abort"]:
    """What a plan does at its deadline. One whose candidate answered nothing at this step is never promoted."""
    if plan.at_deadline == "abort":
        return "abort"
    return "promote" if plan.at_deadline == "promote" and seen else "hold"


def _tests(guards: Sequence[Guard]) -> int:
    return sum(1 if guard.cap() is None else 2 for guard in guards)


def _evidence(guards: Sequence[Guard], cells: Sequence[Cell], limit: float) -> tuple[Evidence, ...]:
    """Each guard's test. Where one has k parts, their mean is the test, and a part is said to alarm at k times its limit: then the mean does too."""
    made = []
    for guard in guards:
        parts = [
            Evidence(part.metric(), e_value, 0.0, *totals) for part in apart(guard) for e_value, totals in [harm(part, cells)]
        ]
        if len(parts) > 1:
            mean = sum(part.e_value for part in parts) / len(parts)
            made.append(Evidence(guard.metric(), mean, limit, *_totals(_compare(guard, cells))))
        made += [replace(part, limit=limit * len(parts)) for part in parts]
        if (cap := guard.cap()) is not None:
            _, _, n, bad = totals = _totals(_levels(guard, cells))
            made.append(Evidence(f"{guard.metric()} above {cap:g}", above_rate(cap, n, bad), limit, *totals))
    return tuple(made)


def harm(guard: Guard, cells: Sequence[Cell]) -> tuple[float, tuple[int, float, int, float]]:
    """The e-value of a guard against stable, of cells by unit, and what it rests on: stable's requests and bad ones, the canary's."""
    found = _compare(guard, cells)
    levels = [(level.weight, level.stable_bad + level.canary_bad, level.canary_bad) for level in found]
    return worse_arm(levels, max(1.0, guard.ratio(_stable_rate(found)))), _totals(found)


@dataclass(frozen=True)
class _Level:
    """One guard's counts at one weight."""

    weight: float
    stable_n: int
    stable_bad: float
    canary_n: int
    canary_bad: float


def _levels(guard: Guard, cells: Sequence[Cell]) -> tuple[_Level, ...]:
    counts: dict[float, dict[str, tuple[int, float]]] = defaultdict(lambda: {"stable": (0, 0), "canary": (0, 0)})
    for cell in cells:
        n, bad = guard.events(cell)
        before = counts[cell.weight][cell.arm]
        counts[cell.weight][cell.arm] = (before[0] + n, before[1] + bad)
    return tuple(_Level(weight, *arms["stable"], *arms["canary"]) for weight, arms in sorted(counts.items()))


def _compare(guard: Guard, cells: Sequence[Cell]) -> tuple[_Level, ...]:
    """The levels at which both arms had a share: at 100 % another hour's stable would be compared, not another version."""
    return tuple(level for level in _levels(guard, cells) if 0 < level.weight < 1)


def _totals(levels: Sequence[_Level]) -> tuple[int, float, int, float]:
    return (
        sum(level.stable_n for level in levels),
        sum(level.stable_bad for level in levels),
        sum(level.canary_n for level in levels),
        sum(level.canary_bad for level in levels),
    )


def _stable_rate(levels: Sequence[_Level]) -> float:
    """Stable's rate had it served the canary's requests: level by level, so that a rate that moves over the day does not count as harm."""
    both = [level for level in levels if level.stable_n and level.canary_n]
    exposure = sum(level.canary_n for level in both)
    return sum(level.canary_n * level.stable_bad / level.stable_n for level in both) / exposure if exposure else 0.0


def split(cells: Sequence[Cell]) -> Split:
    """How the units were split over the weights at which both arms had a share."""
    found = [(weight, *counts) for weight, counts in _units(cells).items() if 0 < weight < 1]
    e_values = [uneven_split([level]) for level in found] or [1.0]
    canary, expected = sum(canary for _, _, canary in found), sum((weight * n for weight, n, _ in found), 0.0)
    return Split(sum(n for _, n, _ in found), canary, expected, sum(e_values) / len(e_values))


def _units(cells: Sequence[Cell]) -> dict[float, tuple[int, int]]:
    """For each weight the units (requests where each was drawn for itself), and the canary's."""
    found: dict[float, tuple[int, int]] = {}
    for cell in cells:
        (n, canary), new = found.get(cell.weight, (0, 0)), cell.total if cell.distinct is None else cell.distinct
        found[cell.weight] = (n + new, canary + new * (cell.arm == "canary"))
    return found


def _broken(cells: Sequence[Cell]) -> tuple[str, dict[float, float]]:
    """What is wrong with the split of the traffic (empty: it is as the weights say), and for each weight the share that the canary got."""
    broken, shares = "", {}
    for weight, (n, canary) in sorted(_units(cells).items()):
        shares[weight] = max(weight, canary / n) if n else weight
        off = n and abs(canary / n - weight) > SPLIT_FLOOR * min(weight, 1 - weight)
        if off and _split_evidence(weight, n, canary) >= SPLIT_LIMIT:
            broken = (
                f"the canary got {canary:,} of {n:,} units at a weight of {weight:.0%}: the split is broken, trust neither arm"
            )
    return broken, shares


def _split_evidence(weight: float, n: int, canary: int) -> float:
    certain = weight in (0.0, 1.0)  # then one unit in the wrong arm is one too many
    return SPLIT_LIMIT if certain else uneven_split([(weight, n, canary)])


def _unproven(plan: Plan, paired: Paired | None) -> str:
    """What keeps a shadow from passing, empty when nothing does."""
    if not isinstance(plan, Shadow) or plan.within is None:
        return "a shadow gets no traffic and is promoted by a person"
    if paired is None or paired.n < plan.min_labels:
        return f"{paired.n if paired else 0:,} of {plan.min_labels:,} labelled rows of both"
    return "" if paired.passes(plan.within) else f"{paired}, allowed {-plan.within:g}"


def _lacking(plan: Plan, cells: Sequence[Cell], step: int) -> str:
    """What keeps the step from passing, empty when nothing does."""
    if isinstance(plan, AB):
        return "an A/B test is ended by a person"
    percent = plan.stages()[step].weights[0]
    here = [cell for cell in cells if _at(cell, percent)]
    requests = sum(cell.total for cell in here if cell.arm == "canary")
    if requests < plan.min_requests:
        return f"{requests:,} of {plan.min_requests:,} canary requests at {percent} %"
    compared = any(0 < stage.weights[0] < 100 for stage in plan.stages())
    for guard in (part for whole in plan.guards for part in apart(whole)):
        # A capped rate must be kept at this very step; a compared one wherever there was somebody to compare with.
        if found := _outside(
            guard, _levels(guard, here) if guard.cap() is not None or not compared else _compare(guard, cells)
        ):
            return found
    return ""


def _outside(guard: Guard, levels: Sequence[_Level]) -> str:
    """Why the guard's margin is not kept, or cannot be judged; empty when it is kept."""
    _, _, n, bad = _totals(levels)
    if n < max(1, guard.needed()):
        return f"{guard.metric()}: {n:,} of {max(1, guard.needed()):,} canary requests could be judged"
    allowed = guard.allowed(_stable_rate(levels))
    return (
        "" if bad / n <= allowed else f"{guard.metric()}: canary {_count(bad)} of {n:,} ({bad / n:.2%}), allowed {allowed:.2%}"
    )


def _count(bad: float) -> str:
    return f"{bad:,.0f}" if bad == int(bad) else f"{bad:,.2f}"
