"""Plans and guards: what they accept, their stages, their stable description."""

import pytest

import ct
from ct.ids import describe, fingerprint
from ct.rollout.guards import Guard
from ct.rollout.plans import Stage
from ct.rollout.verdict import Cell, judge


def test_a_plan_describes_itself_stably() -> None:
    plan = ct.Canary(10, 50, 100, guards=[ct.error_rate(), ct.latency("p99"), ct.quality()])
    assert plan.validate() == []
    assert plan.stages() == (Stage((10,)), Stage((50,)), Stage((100,)))
    assert plan == ct.Canary(10, 50, 100, guards=[ct.error_rate(), ct.latency("p99"), ct.quality()])
    assert describe(plan)["steps"] == [10, 50, 100]
    assert fingerprint(plan) != fingerprint(ct.Canary(10, 50, 100, guards=[ct.error_rate(0.02)]))
    assert hash(plan)


@pytest.mark.parametrize(
    ("plan", "fault"),
    [
        (ct.Canary(), "percentages from 1 to 100"),
        (ct.Canary(0, 100), "percentages from 1 to 100"),
        (ct.Canary(50, 10), "steps that grow"),
        (ct.Canary(10, 101), "percentages from 1 to 100"),
        (ct.Canary(10, min_requests=0), "no data is never a pass"),
        (ct.Canary(10, deadline="soon"), "soon"),
        (ct.Canary(10, guards=["errors"]), "ct.error_rate"),  # type: ignore[list-item]
        (ct.Canary(10, guards=[ct.error_rate(max=1.5)]), "max=1.5"),
        (ct.Canary(10, guards=[ct.latency("p42")]), "p42"),
        (ct.Canary(10, guards=[ct.latency("p99", "p99")]), "each once"),
        (ct.Canary(10, guards=[ct.latency(factor=0.5)]), "factor=0.5"),
        (ct.Canary(10, guards=[ct.latency("p50", "p99", factor=2.0)]), "a factor below 2"),
        (ct.Canary(10, harmed_segment="cheer"), "harmed_segment='cheer'"),  # type: ignore[arg-type]
        (ct.Canary(10, guards=[ct.quality(margin=0)]), "margin=0"),
        (ct.Canary(10, guards=[ct.quality(min_labels=-1)]), "min_labels=-1"),
        (ct.BlueGreen(guards=[ct.quality()]), "compares two arms"),
        (ct.Canary(100, guards=[ct.quality()]), "compares two arms"),
        (ct.Shadow(min_requests=0), "min_requests=0"),
    ],
)
def test_faults_are_named(plan: ct.Canary, fault: str) -> None:
    assert any(fault in found for found in plan.validate()), plan.validate()


class Refusals:
    """A user's own guard: answers that were withheld, counted as slow here for want of a field."""

    def metric(self) -> str:
        return "refusals"

    def events(self, cell: Cell) -> tuple[int, int]:
        return cell.total, cell.slow["p50"]

    def ratio(self, stable: float) -> float:
        return 2.0

    def cap(self) -> float | None:
        return None

    def allowed(self, stable: float) -> float:
        return 0.5

    def needed(self) -> int:
        return 0

    def compares(self) -> bool:
        return False

    def validate(self) -> list[str]:
        return []


def test_a_users_own_guard_takes_part() -> None:
    assert isinstance(Refusals(), Guard)
    plan = ct.Canary(50, guards=[Refusals()])
    assert plan.validate() == []
    found = judge(
        plan, [Cell(0.5, "stable", 300, slow={"p50": 10}), Cell(0.5, "canary", 300, slow={"p50": 140})], step=0, elapsed_s=1
    )
    assert (found.decision, found.evidence[0].metric) == ("roll_back", "refusals")
