"""The gate: every road to a verdict, and metrics against definitions."""

from __future__ import annotations

import numpy as np
import pytest

from ct.errors import InvalidPipeline
from ct.evaluation.gate import Evaluation, Gate, auc, decide, ece
from ct.evaluation.metrics import best_threshold, by_segment, metrics
from ct.evaluation.stats import Interval

GATE = Gate(beats=auc(by=0.0), floors=[auc(0.60), ece(max=0.05)])
GOOD = {"auroc": 0.75, "ece": 0.02, "log_loss": 0.50, "base_log_loss": 0.55}


def judged(changes: dict[str, float] | None = None, champion: bool = False, difference: Interval | None = None) -> str:
    other = Evaluation(GOOD, 100) if champion else None
    verdict = decide(GATE, Evaluation({**GOOD, **(changes or {})}, 100), other, difference)
    assert verdict.reasons
    return verdict.decision


def test_the_first_model_must_pass_the_floors_and_beat_the_base_rate() -> None:
    assert judged() == "pass"
    assert judged({"auroc": 0.59}) == "fail"
    assert judged({"ece": 0.051}) == "fail"
    assert judged({"log_loss": 0.56}) == "fail"
    assert judged({"auroc": float("nan")}) == "error"


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.001, 0.02, "pass"), (-0.009, 0.01, "pass"), (-0.02, 0.01, "inconclusive"), (-0.05, -0.02, "fail")],
)
def test_a_challenger_is_judged_by_the_interval(low: float, high: float, expected: str) -> None:
    assert judged(champion=True, difference=Interval((low + high) / 2, low, high)) == expected


def test_a_champion_without_a_difference_is_an_error() -> None:
    assert judged(champion=True) == "error"


def test_a_missing_metric_is_an_error_not_a_crash() -> None:
    assert decide(GATE, Evaluation({"auroc": 0.7}, 10), None, None).decision == "error"


def test_wrong_declarations_are_named() -> None:
    for build in (lambda: auc(), lambda: auc(0.6, by=0.1), lambda: auc(1.6), lambda: ece(max=0)):
        with pytest.raises(InvalidPipeline):
            build()
    assert Gate(beats=auc(0.6), floors=[1]).validate()  # type: ignore[arg-type, list-item]
    assert GATE.validate() == []


def test_metrics_against_their_definitions() -> None:
    random = np.random.default_rng(0)
    scores = random.random(4000)
    labels = (random.random(4000) < scores).astype(float)
    found = metrics(scores, labels, 0.5)
    ones, zeros = scores[labels == 1], scores[labels == 0]
    assert found["auroc"] == pytest.approx((ones[:, None] > zeros[None, :]).mean(), abs=1e-6)
    assert found["brier"] == pytest.approx(((scores - labels) ** 2).mean(), abs=1e-6)
    loss = -(labels * np.log(scores) + (1 - labels) * np.log(1 - scores)).mean()
    assert found["log_loss"] == pytest.approx(loss, abs=1e-5)
    assert found["ece"] < 0.05
    assert found["base_rate"] == pytest.approx(labels.mean())
    said = scores >= 0.5
    f1 = 2 * (said & (labels == 1)).sum() / (said.sum() + labels.sum())
    assert found["f1"] == pytest.approx(f1, abs=1e-6)


def test_the_best_threshold_is_the_best_of_all() -> None:
    random = np.random.default_rng(1)
    scores = np.round(random.random(500), 2)
    labels = (random.random(500) < scores**2).astype(float)

    def f1(threshold: float) -> float:
        said = scores >= threshold
        return float(2 * (said & (labels == 1)).sum() / (said.sum() + labels.sum()))

    assert f1(best_threshold(scores, labels)) == max(f1(value) for value in np.unique(scores))


def test_segments_need_rows_and_both_classes() -> None:
    random = np.random.default_rng(2)
    scores, labels = random.random(1000), random.integers(0, 2, 1000).astype(float)
    segment = np.array(["AA"] * 500 + ["B6"] * 400 + ["tiny"] * 10 + [None] * 90, dtype=object)
    labels[500:900] = 0
    found = by_segment(scores, labels, segment, 0.5)
    assert set(found) == {"AA", "None"}
    assert found["AA"]["rows"] == 500
