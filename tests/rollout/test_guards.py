"""What answers are worth: losses between 0 and 1 as evidence, by unit, in any order; what the guard refuses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ct
from ct.evaluation.stats import worse_arm
from ct.rollout.guards import Business, middle
from ct.rollout.tally import Tally
from ct.rollout.verdict import ALPHA, Cell, Verdict, judge


def margin(row: Mapping[str, Any], score: float, label: float) -> float:
    """A sale brings its price when the answer was right."""
    return float(row["price"]) if (score >= 0.5) == (label >= 0.5) else 0.0


GUARD = Business(margin, low=0.0, high=10.0)
PLAN = ct.Canary(50, 100, guards=[GUARD], min_requests=10)


def look(stable: tuple[int, float], canary: tuple[int, float], elapsed: float = 1.0) -> Verdict:
    cells = [
        Cell(0.5, arm, total=1000, losses=(("business", *found),)) for arm, found in (("stable", stable), ("canary", canary))
    ]
    return judge(PLAN, cells, step=0, elapsed_s=elapsed)


def test_a_canary_that_earns_less_is_rolled_back_and_one_that_earns_as_much_passes() -> None:
    assert look((1000, 300.0), (1000, 301.5)).decision == "promote"
    worse = look((1000, 300.0), (1000, 500.5))
    assert worse.decision == "roll_back"
    assert worse.cause.startswith("business: canary 500.50 of 1,000, stable 300 of 1,000")
    assert look((1000, 300.0), (40, 12.0)).cause == "business: 40 of 50 canary requests could be judged"
    assert look((0, 0.0), (0, 0.0), elapsed=4000).decision == "hold"


@given(st.floats(0.0, 1.0), st.floats(0.0, 1.0), st.floats(0.01, 0.99), st.floats(1.0, 3.0))
def test_a_bet_on_a_loss_in_between_is_never_above_fair(high: float, part: float, weight: float, ratio: float) -> None:
    """One request: stable loses all with chance `mean`, the canary `high` at a chance that gives `ratio` times that mean. Expected wealth <= 1."""
    mean = part * high / ratio  # the canary's mean loss, ratio * mean, is at most `high`
    chance = ratio * mean / high if high > 0 else 0.0
    wealth = (
        weight * (chance * worse_arm([(weight, high, high)], ratio) + 1 - chance)
        + (1 - weight) * (mean * worse_arm([(weight, 1.0, 0.0)], ratio) + 1 - mean)
    )  # fmt: skip
    assert wealth <= 1 + 1e-9


def test_equal_arms_are_seldom_called_worse_at_any_of_100_looks() -> None:
    rng, wrongly, found = np.random.default_rng(4), 0, 0
    for _ in range(200):
        losses, arm = rng.beta(0.5, 1.0, 4000), rng.random(4000) < 0.3
        # The canary's losses have the same mean and another form: all or nothing.
        drawn = np.where(arm, rng.random(4000) < 1 / 3, losses)
        worse = np.where(arm, rng.random(4000) < 0.5, losses)
        for each, at in ((drawn, "equal"), (worse, "worse")):
            every, ours = np.cumsum(each)[39::40], np.cumsum(each * arm)[39::40]
            alarm = any(worse_arm([(0.3, float(a), float(b))]) >= 1 / ALPHA for a, b in zip(every, ours, strict=True))
            wrongly, found = wrongly + (alarm and at == "equal"), found + (alarm and at == "worse")
    assert wrongly / 200 <= ALPHA + 2 * np.sqrt(ALPHA * (1 - ALPHA) / 200)
    assert found == 200


def records() -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = []
    for n, (unit, price, score, label) in enumerate(
        [("ann", 10, 0.9, 1.0), ("ann", 2, 0.9, 0.0), ("bob", 4, 0.9, 1.0), ("", 3, 0.1, 1.0), ("", None, 0.9, 1.0), ("", 99, 0.9, 1.0)]
    ):  # fmt: skip
        told.append(
            {
                "kind": "prediction", "id": str(n), "epoch": 5, "weight": 5000, "assigned": "canary", "error": "", "latency_ms": 1.0,
                "score": score, "unit": unit, "t": n, "request": {"price": price},
            }
        )  # fmt: skip
        told.append({"kind": "label", "id": str(n), "label": label})
    return told


@given(st.permutations(range(12)))
def test_a_unit_s_first_labelled_row_counts_in_any_order(order: list[int]) -> None:
    told, tally = records(), Tally(5, {"p99": 10.0}, valued=(GUARD,))
    tally.add(told[at] for at in order)
    tally.add(told)
    (cell,) = tally.cells()
    # ann's first row lost nothing, bob lost 6 of 10, the wrong one all of it; one without a price counts not, one above `high` lost nothing.
    assert cell.losses == (("business", 4, pytest.approx(0.0 + 0.6 + 1.0 + 0.0)),)
    assert cell.labelled == 6


def test_without_a_function_a_row_is_worth_the_value_that_came_with_its_label() -> None:
    """A shop's revenue: 12 is above the range, and nobody told what the last one brought."""
    tally = Tally(5, {}, valued=(ct.business(low=0.0, high=10.0, name="revenue"),))
    told = records()
    for row, value in zip((row for row in told if row["kind"] == "label"), (4.0, 9.0, 5.0, 12.0, 0.0, None), strict=True):
        row["value"] = value
    tally.add(told)
    assert tally.cells()[0].losses == (("revenue", 4, pytest.approx(0.6 + 0.5 + 0.0 + 1.0)),)


def test_what_the_guard_refuses() -> None:
    bad = ct.business("price", low=1.0, high=1.0, factor=0.5, min_labels=0, name="")  # type: ignore[arg-type]
    assert len(bad.validate()) == 5
    assert ct.business(margin, low=0.0, high=10.0).validate() == []
    assert ct.business(low=0.0, high=10.0).validate() == []
    assert any("a name of its own" in fault for fault in ct.Canary(10, 100, guards=[GUARD, GUARD]).validate())
    assert any("compares two arms" in fault for fault in ct.BlueGreen(guards=[GUARD]).validate())


def test_extreme_scores_are_seen_without_labels_on_either_side() -> None:
    rng = np.random.default_rng(6)
    limits = middle(rng.normal(size=2000))
    assert limits == (pytest.approx(-1.645, abs=0.15), pytest.approx(1.645, abs=0.15))
    plan = ct.Canary(50, 100, guards=[ct.scores()], min_requests=100)
    for shift, decision in ((0.0, "promote"), (1.2, "roll_back"), (-1.2, "roll_back")):
        tally = Tally(5, {"p99": 10.0}, middle=limits)
        tally.add(
            {
                "kind": "prediction", "id": str(n), "epoch": 5, "weight": 5000, "assigned": ("stable", "canary")[n % 2], "error": "",
                "latency_ms": 1.0, "score": rng.normal() + shift * (n % 2), "unit": "", "t": n,
            }
            for n in range(1000)
        )  # fmt: skip
        assert judge(plan, tally.cells(), step=0, elapsed_s=1.0).decision == decision


def test_scores_without_enough_of_stable_s_earlier_ones_pass_nothing() -> None:
    assert middle([0.5] * 99) is None
    plan = ct.Canary(50, 100, guards=[ct.scores()], min_requests=10)
    found = judge(plan, [Cell(0.5, "stable", 500), Cell(0.5, "canary", 500)], step=0, elapsed_s=4000)
    assert (found.decision, "extreme_scores: 0 of 1" in found.cause) == ("hold", True)
    assert ct.scores(factor=0.5).validate()
