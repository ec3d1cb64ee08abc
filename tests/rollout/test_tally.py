"""The tally: the same records give the same counts, in any order, any split, and however often they are read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ct
from ct.objectives import Objective
from ct.rollout.tally import WINDOW_US, Tally, off, wrong
from ct.rollout.verdict import Cell, judge

SLOW = {"p99": 10.0}


def prediction(key: str, **changed: Any) -> dict[str, Any]:
    return {
        "kind": "prediction", "id": key, "epoch": 5, "weight": 1000, "assigned": "stable", "error": "", "latency_ms": 5.0, "score": 0.2, **changed,
    }  # fmt: skip


def label(key: str, value: float) -> dict[str, Any]:
    return {"kind": "label", "id": key, "label": value}


def test_counts_by_weight_and_assigned_arm() -> None:
    tally = Tally(first_epoch=5, slow_ms=SLOW)
    tally.add(
        [
            prediction("a"),
            prediction("b", assigned="canary", latency_ms=11.0),
            prediction("c", assigned="canary", error="boom"),
            prediction("old", epoch=4),
            prediction("forced", forced=True, assigned="canary"),
            label("a", 1.0),
            label("b", 0.0),
            label("c", 1.0),
            label("unknown", 1.0),
        ]
    )
    assert tally.cells() == (
        Cell(
            0.1,
            "canary",
            total=2,
            errors=1,
            slow={"p99": 1},
            labelled=1,
            wrong=0,
            unit_total=2,
            unit_errors=1,
            unit_slow={"p99": 1},
            unit_labelled=1,
            failed_in_a_row=1,
            failing_since=0,
            succeeded_at=0,
            distinct=2,
        ),
        Cell(
            0.1,
            "stable",
            total=1,
            slow={"p99": 0},
            labelled=1,
            wrong=1,
            unit_total=1,
            unit_slow={"p99": 0},
            unit_labelled=1,
            unit_wrong=1,
            succeeded_at=0,
            distinct=1,
        ),
    )


@given(st.permutations(range(12)), st.integers(0, 12))
def test_order_split_and_repetition_do_not_matter(order: list[int], cut: int) -> None:
    arms = ("stable", "canary")
    records = [
        prediction(
            str(n), assigned=arms[n % 2], score=n / 6, unit=f"u{n % 2}", t=7 - n, latency_ms=4.0 * n, weight=1000 * (n // 2)
        )
        for n in range(6)
    ]
    records += [label(str(n), float(n % 3 == 0)) for n in range(6)]
    straight, shuffled = Tally(5, SLOW), Tally(5, SLOW)
    straight.add(records)
    mixed = [records[at] for at in order]
    shuffled.add(mixed[:cut])
    shuffled.add(mixed[cut:])
    shuffled.add(mixed)
    assert shuffled.cells() == straight.cells()


@given(st.permutations(range(7)))
def test_units_that_failed_in_a_row_are_counted_in_any_order(order: list[int]) -> None:
    told = [("ann", ""), ("bob", "boom"), ("cat", ""), ("dan", "boom"), ("dan", "boom"), ("eve", "boom"), ("bob", "boom")]
    records = [prediction(str(t), unit=unit, error=error, t=t) for t, (unit, error) in enumerate(told)]
    tally = Tally(5, SLOW)
    tally.add(records[at] for at in order)
    cell = tally.cells()[0]
    assert (cell.failed_in_a_row, cell.failing_since, cell.succeeded_at) == (3, 4, 2), "dan, eve and bob, after cat's success"


@given(st.permutations(range(6)))
def test_segments_are_counted_beside_the_whole(order: list[int]) -> None:
    values = ["AA", "AA", "UA", None, "AA", "UA"]
    records = [
        prediction(
            str(n),
            context={"carrier": value, "other": "x"},
            unit="ann" if n < 2 else f"u{n}",
            t=n,
            error="boom" if n < 2 else "",
        )
        for n, value in enumerate(values)
    ]
    tally = Tally(5, SLOW, segments=("carrier",))
    tally.add(records[at] for at in order)
    found = {name: (cells[0].total, cells[0].unit_total, cells[0].unit_errors) for name, cells in tally.by_segment().items()}
    assert found == {
        ("", ""): (6, 5, 1),
        ("carrier", "AA"): (3, 2, 1),
        ("carrier", "UA"): (2, 2, 0),
        ("carrier", "(missing)"): (1, 1, 0),
    }


CLASSES, NUMBER = Objective("classes", ("early", "late")), Objective("number")
QUANTILES = Objective("quantiles", quantiles=(0.1, 0.9))


def test_what_counts_as_wrong_for_each_kind() -> None:
    late = {"score": 0.7, "scores": {"early": 0.3, "late": 0.7}}
    assert wrong(CLASSES, late, 0.0, None) is True
    assert wrong(CLASSES, late, 1.0, None) is False
    assert wrong(NUMBER, {"score": 5.0}, 8.0, 3.0) is False
    assert wrong(NUMBER, {"score": 5.0}, 8.1, 3.0) is True
    between = {"score": 10.0, "scores": {"0.1": 0.0, "0.9": 10.0}}
    # 0.1 * 5 below, 0.1 * 5 above: the mean pinball loss of a truth in the middle.
    assert off(QUANTILES, between, 5.0) == pytest.approx(0.5)
    assert off(QUANTILES, between, 12.0) == pytest.approx((0.1 * 12 + 0.9 * 2) / 2)
    assert wrong(QUANTILES, between, 5.0, 0.6) is False
    assert wrong(QUANTILES, between, 12.0, 0.6) is True


def test_an_interval_wide_enough_for_any_truth_is_wrong_nevertheless() -> None:
    wide = {"score": 1e4, "scores": {"0.1": -1e4, "0.9": 1e4}}
    assert wrong(QUANTILES, wide, 5.0, 0.6) is True


def test_what_cannot_be_said_is_not_counted() -> None:
    """Numbers without a limit, and answers of a version for another label: neither right nor wrong."""
    for objective, record, limit in (
        (NUMBER, prediction("a"), None),
        (CLASSES, prediction("a", scores={"other": 1.0}), None),
        (CLASSES, prediction("a"), None),
        (QUANTILES, prediction("a", scores={"0.5": 1.0}), 1.0),
    ):
        tally = Tally(5, SLOW, objective, limit)
        tally.add([record, label("a", 1.0)])
        (cell,) = tally.cells()
        assert (cell.total, cell.labelled, cell.wrong) == (1, 0, 0)


def test_labels_before_and_after_their_predictions_count_alike() -> None:
    records = [
        prediction("a", scores={"early": 0.9, "late": 0.1}, score=0.9),
        prediction("b", scores={"early": 0.9, "late": 0.1}, score=0.9),
    ]
    told = [label("a", 1.0), label("b", 0.0)]
    first, last = Tally(5, SLOW, CLASSES), Tally(5, SLOW, CLASSES)
    first.add([*told, *records])
    last.add([*records, *told])
    assert first.cells() == last.cells()
    assert (first.cells()[0].labelled, first.cells()[0].wrong) == (2, 1)


def test_one_request_in_ten_minutes_speaks_for_its_unit() -> None:
    broken = [prediction(f"p{n}", unit="ann", error="boom", t=n, weight=1000 if n < 3 else 5000) for n in range(6)]
    later = prediction("later", unit="ann", error="boom", t=WINDOW_US, weight=5000)
    tally = Tally(5, SLOW)
    tally.add([*reversed(broken), prediction("q", unit="bob", t=9, weight=5000), later])
    assert [(cell.weight, cell.total, cell.errors, cell.by_unit().total, cell.by_unit().errors) for cell in tally.cells()] == [
        (0.1, 3, 3, 1, 1),
        (0.5, 5, 4, 2, 1),
    ]
    anybody = Tally(5, SLOW)
    anybody.add([prediction(f"p{n}", error="boom", unit="") for n in range(4)])
    assert anybody.cells()[0].unit_errors == 4, "requests without a unit are each their own"


def test_harm_to_users_who_ask_often_is_found() -> None:
    """Each user is wrong now and then on stable too: who counts users that were ever wrong sees no difference between the arms."""
    rng, tally = np.random.default_rng(3), Tally(5, SLOW)
    for arm, wrong_share in (("stable", 0.2), ("canary", 0.8)):
        rows = [
            prediction(f"{arm}-{user}-{n}", unit=f"{arm}-{user}", assigned=arm, weight=5000, t=n * WINDOW_US // 10)
            for user in range(100)
            for n in range(50)
        ]
        tally.add([*rows, *(label(row["id"], float(rng.random() < wrong_share)) for row in rows)])
    plan = ct.Canary(50, 100, guards=[ct.quality()])
    assert judge(plan, tally.cells(), step=0, elapsed_s=1.0).decision == "roll_back"


def test_a_binary_answer_is_wrong_by_its_own_version_s_threshold() -> None:
    records = [
        prediction("a", score=0.3, version="v1"),
        prediction("b", score=0.3, version="v2"),
        label("a", 1.0),
        label("b", 1.0),
    ]
    tally = Tally(5, SLOW, cuts={"v1": 0.2})
    tally.add(records)
    assert tally.cells()[0].wrong == 1, "v1 said 1 from 0.2 on, v2 is not named and said 0"
