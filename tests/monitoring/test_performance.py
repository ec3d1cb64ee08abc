"""Live quality: what is known of it at any maturity."""

import numpy as np
import pytest

from ct.ids import canonical
from ct.monitoring.performance import HEADLINE, cohort, live
from ct.objectives import Objective


def test_nothing_known_is_none_and_plain_data() -> None:
    for scores, labels in (([], []), ([0.2, 0.3], [np.nan, np.nan]), ([0.2, 0.3], [1.0, 1.0]), ([None, 0.3], [1.0, None])):
        found = live(np.array(scores, dtype=object), np.array(labels, dtype=object))
        assert found["auroc"] is None
        assert canonical(found)


def test_metrics_maturity_and_interval() -> None:
    rng = np.random.default_rng(0)
    p = rng.uniform(0.05, 0.6, 4000)
    truth = (rng.random(4000) < p).astype(float)
    truth[rng.random(4000) < 0.25] = np.nan
    found = live(p, truth)
    assert found["maturity"] == pytest.approx(0.75, abs=0.03)
    assert found["auroc_low"] < found["auroc"] < found["auroc_high"]
    assert found["ece"] < 0.04
    assert found["base_rate"] == pytest.approx(found["mean_score"], abs=0.03)


def test_failed_requests_are_no_predictions() -> None:
    found = live([0.1, None, 0.9], [0.0, 1.0, 1.0])
    assert (found["predictions"], found["labelled"], found["auroc"]) == (2, 2, 1.0)


def test_a_cohort_takes_early_truths_for_no_more_than_they_are() -> None:
    """Late truths are the bad ones: all that is known so far flatters, the mature cohort does not."""
    rng = np.random.default_rng(1)
    made = rng.integers(0, 1000, 5000)
    truth = (rng.random(5000) < 0.3).astype(float)
    delay = np.where(truth == 1, 400, 50)
    seen = np.where(made + delay <= 1000, truth, np.nan)
    assert live(np.full(5000, 0.3), seen)["base_rate"] < 0.25
    mature = cohort(made, 1000, 400)
    found = live(np.full(5000, 0.3)[mature], seen[mature])
    assert found["maturity"] == 1.0
    assert found["base_rate"] == pytest.approx(0.3, abs=0.03)


CLASSES = Objective("classes", ("a", "b", "c"))
NUMBER, QUANTILES = Objective("number"), Objective("quantiles", quantiles=(0.1, 0.9))


@pytest.mark.parametrize("objective", [CLASSES, NUMBER, QUANTILES])
def test_every_kind_is_none_before_labels_and_ignores_what_failed(objective: Objective) -> None:
    shape = (4, objective.outputs) if objective.outputs > 1 else (4,)
    scores, labels = np.full(shape, 0.4), np.array([np.nan, np.nan, 1.0, np.nan])
    scores[2] = np.nan
    found = live(scores, labels, objective)
    name = HEADLINE[objective.kind]
    assert (found["predictions"], found["labelled"], found["maturity"]) == (3, 0, 0.0)
    assert found[name] is found[f"{name}_low"] is None
    assert canonical(found)
    scores[2], one = 0.4, live(np.where(np.isnan(scores), 0.4, scores), labels, objective)
    assert one["labelled"] == 1
    assert one[name] is not None
    assert one[f"{name}_low"] is None, "one row has no interval"
    assert canonical(live(np.empty((0, *shape[1:])), np.empty(0), objective))


def test_classes_numbers_and_quantiles_by_hand() -> None:
    found = live([[0.5, 0.3, 0.2], [0.2, 0.7, 0.1]], [0.0, 2.0], CLASSES)
    assert (found["accuracy"], found["log_loss"]) == (0.5, pytest.approx(-(np.log(0.5) + np.log(0.1)) / 2))
    found = live([1.0, 5.0, np.nan], [2.0, 2.0, 2.0], NUMBER)
    assert (found["mae"], found["rmse"], found["bias"], found["mean_label"]) == (2.0, pytest.approx(5**0.5), 1.0, 2.0)
    found = live([[0.0, 10.0], [0.0, 10.0]], [5.0, 12.0], QUANTILES)
    assert (found["coverage"], found["pinball"]) == (0.5, pytest.approx((0.5 + 1.5) / 2))


def test_intervals_hold_their_confidence() -> None:
    rng = np.random.default_rng(2)
    held = 0
    for _ in range(300):
        gaps = rng.exponential(1.0, 300)
        found = live(gaps, np.zeros(300), NUMBER)
        held += found["mae_low"] <= 1.0 <= found["mae_high"]
    assert held / 300 > 0.92
