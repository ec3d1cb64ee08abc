"""Live quality: what is known of it at any maturity."""

import numpy as np
import pytest

from ct.ids import canonical
from ct.monitoring.performance import cohort, live


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
