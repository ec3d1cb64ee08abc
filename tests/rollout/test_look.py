"""One look at a rollout from its records: each candidate's verdict, which segments are harmed, what answers are worth, how traffic was split."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import ct
from ct.evaluation.stats import rejected
from ct.ids import canonical
from ct.registry.routes import Arm, Share, first
from ct.rollout.guards import Business, Guard
from ct.rollout.look import look
from ct.rollout.segments import LEAST, by_segment
from ct.rollout.steps import as_pair
from ct.rollout.tally import Tally, Worth
from ct.rollout.verdict import ALPHA, Cell
from ct.rollout.worth import gain

CARRIERS = ("AA", "B6", "DL", "UA")
GUARDS: list[Guard] = [ct.error_rate(max=0.9), ct.latency("p50", "p99")]


def records(
    rng: np.random.Generator, n: int, *, weight: int = 5000, arms: tuple[str, ...] = ("stable", "canary"), **harm: float
) -> Iterator[dict[str, Any]]:
    """Requests of n users; stable fails 2 % of them, the canary `harm` more where the carrier says so, or "all" where all do."""
    for at in range(n):
        arm, carrier = arms[rng.integers(len(arms))], CARRIERS[rng.integers(4)]
        chance = 0.02 + (arm == "canary") * harm.get(carrier, harm.get("all", 0.0))
        yield {
            "kind": "prediction", "id": f"{at}", "epoch": 5, "weight": weight, "assigned": arm, "latency_ms": float(rng.lognormal()),
            "error": "boom" if rng.random() < chance else "", "score": 0.9, "unit": f"u{at}", "t": at, "context": {"carrier": carrier},
            "request": {"price": float(rng.integers(1, 11))},
        }  # fmt: skip


def tally(rng: np.random.Generator, n: int, **more: Any) -> Tally:
    made = Tally(5, {"p50": 1.0, "p99": 10.2}, segments=("carrier",))
    made.add(records(rng, n, **more))
    return made


def test_harm_in_one_segment_is_reported_and_holds_a_plan_that_says_so() -> None:
    found = tally(np.random.default_rng(1), 4000, AA=0.08, B6=-0.02, DL=-0.02, UA=-0.02)
    plan = ct.Canary(50, 100, guards=GUARDS, min_requests=100, harmed_segment="hold")
    (verdict,) = look(plan, found, step=0, elapsed_s=1.0)
    assert verdict.decision == "hold"
    assert verdict.cause.startswith("a segment is harmed: error_rate where carrier is AA: canary ")
    assert verdict.segments is not None
    assert [(row.segment, row.value, row.metric) for row in verdict.segments.harmed] == [("carrier", "AA", "error_rate")]
    assert verdict.segments.judged == 8, "two guards, four carriers"
    whole = {item.metric: item.e_value for item in verdict.evidence}
    assert whole["error_rate"] < verdict.segments.harmed[0].e_value, "the whole hides it"
    assert canonical(verdict.recorded())
    (usual,) = look(ct.Canary(50, 100, guards=GUARDS, min_requests=100), found, step=0, elapsed_s=1.0)
    assert (usual.decision, usual.segments) == ("promote", verdict.segments)


def test_no_segment_of_an_equal_canary_is_harmed_more_often_than_alpha() -> None:
    rng, wrong, told = np.random.default_rng(2), 0, 0
    for _ in range(200):
        cells = {
            ("carrier", name): [Cell(0.3, "stable", 700, int(all_ - ours)), Cell(0.3, "canary", 300, int(ours))]
            for name in map(str, range(20))
            for all_ in [rng.binomial(1000, 0.02)]
            for ours in [rng.binomial(all_, 0.3)]
        }
        wrong += bool(by_segment([ct.error_rate()], cells, alpha=ALPHA).harmed)
        cells["carrier", "0"] = [Cell(0.3, "stable", 700, 14), Cell(0.3, "canary", 300, 40)]
        cells["carrier", "1"] = [Cell(0.3, "stable", 700, 14), Cell(0.3, "canary", 300, 35)]
        harmed = by_segment([ct.error_rate()], cells, alpha=ALPHA).harmed
        told += {row.value for row in harmed} >= {"0", "1"}
    assert wrong / 200 <= ALPHA
    assert told == 200


def test_a_segment_with_few_requests_or_nobody_to_compare_with_is_not_judged() -> None:
    few = [Cell(0.3, "stable", 700, 0), Cell(0.3, "canary", LEAST - 1, LEAST - 1)]
    alone = [Cell(1.0, "canary", 500, 400)]
    assert by_segment([ct.error_rate()], {("carrier", "AA"): few, ("carrier", "UA"): alone}, alpha=ALPHA).judged == 0


def test_e_bh_takes_the_longest_list_that_its_limits_allow() -> None:
    assert rejected([], 0.05) == ()
    assert rejected([19.0], 0.05) == ()
    assert rejected([20.0], 0.05) == (0,)
    # K = 4, alpha 5 %: the limits are 80, 40, 26.7 and 20. The first one is missed, the third is met, and takes both before it along.
    assert rejected([27.0, 0.1, 79.0, 39.0], 0.05) == (2, 3, 0)


def test_each_candidate_of_an_a_b_test_has_its_own_verdict() -> None:
    plan = ct.AB(33, 33, guards=[ct.error_rate(max=0.9)], min_requests=100)
    told = list(records(np.random.default_rng(3), 6000, weight=3300, arms=("stable", "canary", "canary-2"), all=0.2))
    stable, *candidates = (Arm(name, name) for name in ("v1", "v2", "v3"))
    route = first("e", stable).with_candidates(tuple(Share(arm, 3333) for arm in candidates))
    tallies = [Tally(5, {"p50": 1.0, "p99": 10.2}, segments=("carrier",)) for _ in candidates]
    for at, found in enumerate(tallies):
        found.add(pair for record in told if (pair := as_pair(record, at, route)) is not None)
    bad, good = look(plan, *tallies, step=0, elapsed_s=1.0)
    assert (bad.decision, good.decision) == ("roll_back", "continue")
    assert bad.split is not None
    assert bad.split.ratio == pytest.approx(1.0, abs=0.05)


def test_the_split_is_told_whether_it_is_broken_or_not() -> None:
    plan = ct.Canary(50, 100, guards=GUARDS, min_requests=100)
    (even,) = look(plan, tally(np.random.default_rng(4), 2000), step=0, elapsed_s=1.0)
    assert even.split is not None
    assert (even.split.ratio, even.split.e_value < 20) == (pytest.approx(1.0, abs=0.06), True)
    (uneven,) = look(plan, tally(np.random.default_rng(4), 2000, weight=3000), step=0, elapsed_s=1.0)
    assert uneven.split is not None
    assert uneven.split.ratio == pytest.approx(5 / 3, rel=0.06)
    assert uneven.split.e_value > uneven.split.limit
    assert "split is broken" in uneven.cause
    assert uneven.recorded()["split"]["ratio"] == uneven.split.ratio


def price(row: Any, score: float, label: float) -> float:
    """A right answer brings its price."""
    return float(row["price"]) if (score >= 0.5) == (label >= 0.5) else 0.0


def test_what_answers_are_worth_has_an_interval_in_the_users_unit() -> None:
    rng, guard = np.random.default_rng(5), ct.business(price, low=0.0, high=10.0)
    made = Tally(5, {"p99": 10.0}, valued=(guard,))
    told = list(records(rng, 6000))
    right = {"stable": 0.8, "canary": 0.7}
    labels = [
        {"kind": "label", "id": row["id"], "label": float(rng.random() < right[row["assigned"]]), "t": 10**6 + at}
        for at, row in enumerate(told)
    ]
    made.add([*told, *labels])
    (verdict,) = look(ct.Canary(50, 100, guards=[guard]), made, step=0, elapsed_s=1.0)
    (found,) = verdict.gains
    assert found.stable == pytest.approx(5.5 * 0.8, abs=0.2)
    assert found.canary == pytest.approx(5.5 * 0.7, abs=0.2)
    assert found.low < -0.55 < found.high < 0, "0.55 less a row, and surely less"
    assert str(found).startswith("business: -0.")
    assert canonical(verdict.recorded())


def test_worth_is_compared_within_its_time_and_its_order_is_that_of_the_labels() -> None:
    """The canary grows as the base falls: the plain difference of the means says that it loses, though it does not."""
    rng, guard, rows = np.random.default_rng(6), Business(price, low=0.0, high=1.0), []
    for at in range(4000):
        weight, base = (1000, 0.9) if at < 2000 else (5000, 0.3)
        ours = rng.random() < weight / 10_000
        rows.append(Worth(weight, "canary" if ours else "stable", float(rng.random() > base)))
    found = gain(guard, rows, alpha=ALPHA)
    assert found.stable is not None
    assert found.canary is not None
    assert found.canary - found.stable < -0.1
    assert found.low < 0 < found.high
    assert abs(found.difference) < 0.06
    assert gain(guard, (), alpha=ALPHA).high == 1.0
    made = Tally(5, {}, valued=(guard,))
    sold = [dict(row, request={"price": 1.0}, error="") for row in records(rng, 3)]
    made.add([*sold, *({"kind": "label", "id": f"{at}", "label": 1.0, "t": 9 - at} for at in range(3))])
    assert [row.arm for row in made.worths("business")] == [row["assigned"] for row in reversed(sold)]
