"""Each guard's evidence within each segment of the traffic, and the segments that are harmed. Reported; what follows from it is the plan's. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ct.evaluation.stats import rejected
from ct.rollout.guards import Guard, apart
from ct.rollout.verdict import Cell, harm

LEAST = 30
"""Requests of the canary, one a unit and window, from which a segment's value is judged."""
MOST = 20
"""So many are told beside the harmed ones: those with the most evidence."""


@dataclass(frozen=True)
class Segment:
    """One guard in one value of a segment."""

    segment: str
    value: str
    metric: str
    e_value: float
    stable_n: int
    stable_bad: float
    canary_n: int
    canary_bad: float
    harmed: bool = False

    def __str__(self) -> str:
        counts = f"canary {self.canary_bad:g} of {self.canary_n:,}, stable {self.stable_bad:g} of {self.stable_n:,}"
        return f"{self.metric} where {self.segment} is {self.value}: {counts} (e-value {self.e_value:.3g})"


@dataclass(frozen=True)
class Segments:
    """What is known of the segments at this look: `judged` pairs of a guard and a value, of them the harmed ones and those with the most evidence.

    Of those called harmed a share of `alpha` at most is so by chance, in expectation over looks like this one; nothing is promised of all
    looks together.
    """

    alpha: float
    judged: int
    rows: tuple[Segment, ...] = ()

    @property
    def harmed(self) -> tuple[Segment, ...]:
        """The harmed ones, the most evidence first."""
        return tuple(row for row in self.rows if row.harmed)


def by_segment(guards: Sequence[Guard], cells: Mapping[tuple[str, str], Sequence[Cell]], *, alpha: float) -> Segments:
    """Judge `guards` on the cells of each (segment, value); e-BH over all of them says which are harmed.

    A guard of several parts has the mean of their e-values. Caps are not asked: a segment may be above one on both arms. Two empty texts stand for
    all requests and are left out.
    """
    found = []
    for (segment, value), parts in sorted(cells.items()):
        heard = [cell.by_unit() for cell in parts]
        if not segment or sum(cell.total for cell in heard if cell.arm == "canary" and 0 < cell.weight < 1) < LEAST:
            continue
        for guard in guards:
            each = [harm(part, heard) for part in apart(guard)]
            counts = each[0][1] if len(each) == 1 else harm(guard, heard)[1]
            found.append(Segment(segment, value, guard.metric(), sum(e_value for e_value, _ in each) / len(each), *counts))
    bad = set(rejected([row.e_value for row in found], alpha))
    marked = [Segment(**{**vars(row), "harmed": at in bad}) for at, row in enumerate(found)]
    marked.sort(key=lambda row: (not row.harmed, -row.e_value, row.segment, row.value, row.metric))
    return Segments(alpha, len(marked), tuple(marked[: max(MOST, len(bad))]))
