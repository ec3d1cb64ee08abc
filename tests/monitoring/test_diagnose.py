"""Causes: each kind of change gets its name, in order; what is unknown is called unknown."""

import pytest

from ct.monitoring.diagnose import explain
from ct.monitoring.drift import FeatureDrift

GATE = {"auroc": 0.74, "base_rate": 0.20}
LIVE = {"auroc": 0.74, "auroc_low": 0.72, "auroc_high": 0.76, "base_rate": 0.205, "labelled": 4000, "maturity": 0.8}
WORSE = {**LIVE, "auroc": 0.66, "auroc_low": 0.64, "auroc_high": 0.68}


def row(name: str, effect: float, missing: float = 0.0) -> FeatureDrift:
    return FeatureDrift(name, "number", effect, 0.1, 0.0 if effect > 0.1 else 1.0, effect > 0.1, 0.0, missing, "moved")


CALM = [row(f"f{i}", 0.02) for i in range(20)]
MOVED = [row(f"f{i}", 0.25 if i < 6 else 0.02) for i in range(20)]


def test_values_that_went_missing_are_a_fault_before_anything_else() -> None:
    found = explain([*MOVED, row("wind", 0.4, missing=0.3)], performance_before=GATE, performance_now=WORSE)
    assert (found.kind, found.retrain) == ("data fault", False)
    assert "wind" in found.text
    assert len(found.evidence) == 3


def test_one_column_far_off_is_a_fault_and_many_are_not() -> None:
    assert explain([*CALM, row("distance", 0.8)]).kind == "data fault"
    assert explain([row(f"f{i}", 0.8) for i in range(20)]).kind == "covariate shift"


def test_base_rate_alone_is_label_shift() -> None:
    found = explain(CALM, performance_before=GATE, performance_now={**LIVE, "base_rate": 0.30})
    assert (found.kind, found.retrain) == ("label shift", True)
    assert "20.0% → 30.0%" in found.text


def test_moved_features_are_covariate_shift_with_what_became_of_quality() -> None:
    fine = explain(MOVED, performance_before=GATE, performance_now=LIVE)
    worse = explain(MOVED, performance_before=GATE, performance_now=WORSE)
    assert fine.kind == worse.kind == "covariate shift"
    assert "6 of 20" in fine.text
    assert "no loss beyond noise" in fine.text
    assert "concept change is not excluded" in worse.text


def test_lost_quality_with_calm_features_is_concept_change_or_noise() -> None:
    found = explain(CALM, performance_before=GATE, performance_now=WORSE)
    assert found.kind == "concept change"
    assert "label noise" in found.text


def test_without_labels_quality_is_unknown() -> None:
    for now in (None, {"auroc": None, "base_rate": None, "labelled": 0, "maturity": 0.0}):
        assert "unknown" in explain(MOVED, performance_before=GATE, performance_now=now).text
    assert explain(CALM).kind == "none"


def test_scores_that_drift_are_named() -> None:
    found = explain(CALM, performance_before=GATE, performance_now=LIVE, score=row("score", 0.3))
    assert any("scores drifted" in line for line in found.evidence)


@pytest.mark.parametrize(("name", "said"), [("mae", "mean error"), ("pinball", "pinball loss"), ("log_loss", "log loss")])
def test_lost_quality_of_other_labels(name: str, said: str) -> None:
    now = {name: 12.0, f"{name}_low": 11.0, f"{name}_high": 13.0, "labelled": 400, "maturity": 0.5}
    lost = explain(CALM, performance_before={name: 10.0}, performance_now=now)
    assert lost.kind == "concept change"
    assert f"live {said} 12 [11, 13] on 400 labels (50% mature), 10 at the gate" in lost.text
    assert explain(CALM, performance_before={name: 10.6}, performance_now=now).kind == "none", "within 5 %"
    unknown = explain(CALM, performance_before={name: 10.0}, performance_now={name: None, f"{name}_low": None})
    assert f"live {said} unknown" in unknown.text
