"""The gate: every road to a verdict, and declarations that are refused."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

import ct
from ct.errors import InvalidPipeline
from ct.evaluation.evidence import CHAMPION, TRIVIAL, Evaluation, Evidence, SliceGain
from ct.evaluation.gate import Gate, decide
from ct.evaluation.paired import Gain
from ct.objectives import BINARY, Objective

GATE = Gate(beats=ct.auc(by=0.0), floors=[ct.auc(0.60), ct.ece(max=0.05)])
GOOD = {"auroc": 0.75, "ece": 0.02, "log_loss": 0.50, "base_log_loss": 0.55}


def a_gain(low: float, high: float, blocks: int = 20) -> Gain:
    middle = (low + high) / 2
    return Gain(0.75 + middle, 0.75, middle, low, high, (high - low) / 3.46, blocks, 2_000)


def evidence(changes: dict[str, float] | None = None, champion: Gain | None = None, **more: Any) -> Evidence:
    gains = {("log_loss", TRIVIAL): a_gain(0.03, 0.07)}
    if champion is not None:
        gains["auroc", CHAMPION] = champion
    given: dict[str, Any] = {"champion": Evaluation(GOOD, 100) if champion is not None else None, "gains": gains}
    return Evidence(Evaluation({**GOOD, **(changes or {})}, 100), **{**given, **more})


def judged(gate: Gate = GATE, *args: Any, **more: Any) -> str:
    verdict = decide(gate, evidence(*args, **more))
    assert verdict.reasons
    json.dumps(verdict.to_json(), allow_nan=False)
    return verdict.decision


def test_the_first_model_must_pass_the_floors_and_beat_the_base_rate() -> None:
    assert judged() == "pass"
    assert judged(GATE, {"auroc": 0.59}) == "fail"
    assert judged(GATE, {"ece": 0.051}) == "fail"
    assert judged(GATE, {"auroc": math.nan}) == "error"
    for low, high, expected in ((-0.02, 0.06, "inconclusive"), (-0.06, -0.01, "fail"), (0.0, 0.0, "fail")):
        assert judged(gains={("log_loss", TRIVIAL): a_gain(low, high)}) == expected
    assert judged(gains={}) == "error"


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.001, 0.02, "pass"), (-0.009, 0.01, "pass"), (-0.02, 0.01, "inconclusive"), (-0.05, -0.02, "fail")],
)
def test_a_candidate_is_compared_with_the_champion_by_the_interval(low: float, high: float, expected: str) -> None:
    assert judged(champion=a_gain(low, high)) == expected


def test_too_few_blocks_are_inconclusive_and_plain_json() -> None:
    nothing = Gain(0.75, 0.75, 0.0, -math.inf, math.inf, math.inf, 1, 200)
    assert judged(champion=nothing) == "inconclusive"


def test_what_was_not_measured_is_an_error_never_a_pass() -> None:
    assert judged(champion=a_gain(0.1, 0.2), gains={}) == "error"
    assert judged(faults=["the golden rows came out otherwise"]) == "error"
    limits = Gate(beats=ct.auc(by=0.0), floors=[ct.auc(0.6)], guards=[ct.fits(latency_ms=5, size_mb=10)])
    assert judged(limits) == "error"
    assert judged(limits, latency_ms=4.0, size_mb=2.0) == "pass"
    assert judged(limits, latency_ms=6.0, size_mb=2.0) == "fail"
    assert judged(limits, latency_ms=4.0, size_mb=11.0) == "fail"


def test_the_worst_finding_decides_and_all_numbers_are_told() -> None:
    verdict = decide(GATE, evidence({"auroc": 0.55}, champion=a_gain(-0.02, 0.01)))
    assert verdict.decision == "fail"
    assert verdict.reasons == ("auroc 0.5500 is below the floor 0.6",)
    told = {finding.part: finding.outcome for finding in verdict.findings}
    assert told == {
        "auroc against the champion by -0.01": "inconclusive",
        "auroc at least 0.6": "fail",
        "ece at most 0.05": "pass",
    }
    first = verdict.to_json()["findings"][0]["numbers"]
    assert (first["low"], first["high"], first["limit"], first["rows"], first["blocks"]) == (-0.02, 0.01, -0.01, 2_000, 20)


def test_all_comparisons_must_hold_and_a_calibration_may_be_one() -> None:
    gate = Gate(beats=[ct.auc(by=0.0), ct.ece(by=0.0, margin=0.01)], floors=[ct.auc(0.6)])
    gains = {("auroc", CHAMPION): a_gain(0.01, 0.02), ("ece", CHAMPION): a_gain(-0.05, -0.02)}
    assert judged(gate, champion=a_gain(0.01, 0.02), gains=gains) == "fail"
    gains["ece", CHAMPION] = a_gain(-0.005, 0.01)
    assert judged(gate, champion=a_gain(0.01, 0.02), gains=gains) == "pass"


def test_a_declared_baseline_must_be_beaten_even_beside_a_champion() -> None:
    gains = {("log_loss", TRIVIAL): a_gain(-0.02, -0.01), ("auroc", CHAMPION): a_gain(0.01, 0.02)}
    assert judged(GATE, champion=a_gain(0.01, 0.02), gains=gains) == "pass"
    asked = Gate(beats=ct.auc(by=0.0), floors=[ct.auc(0.6)], guards=[ct.baseline()])
    assert judged(asked, champion=a_gain(0.01, 0.02), gains=gains) == "fail"


def test_a_slice_that_is_surely_worse_stops_the_candidate_and_is_named() -> None:
    gate = Gate(beats=ct.auc(by=0.0), floors=[ct.auc(0.6)], guards=[ct.slices(margin=0.03)])
    fine = [SliceGain("carrier", str(at), 500, a_gain(-0.02, 0.04)) for at in range(19)]
    worse = SliceGain("carrier", "HA", 500, a_gain(-0.12, -0.08))
    assert judged(gate, champion=a_gain(0.01, 0.02), slices=fine) == "pass"
    verdict = decide(gate, evidence(champion=a_gain(0.01, 0.02), slices=[*fine, worse]))
    assert verdict.decision == "fail"
    assert "carrier=HA" in verdict.reasons[0]
    small = SliceGain("carrier", "HA", 12, None)
    found = decide(gate, evidence(champion=a_gain(0.01, 0.02), slices=[*fine, small]))
    assert found.decision == "pass"
    assert found.findings[1].numbers["not_judged"] == ["carrier=HA"]


def test_one_bad_slice_among_many_needs_more_evidence_than_one_alone() -> None:
    gate = Gate(beats=ct.auc(by=0.0), floors=[ct.auc(0.6)], guards=[ct.slices(margin=0.03)])
    doubtful = SliceGain("carrier", "HA", 500, Gain(0.7, 0.76, -0.06, -0.08, -0.034, 0.0135, 20, 500))
    many = [SliceGain("carrier", str(at), 500, a_gain(-0.01, 0.03)) for at in range(30)]
    assert judged(gate, champion=a_gain(0.01, 0.02), slices=[doubtful]) == "fail"
    assert judged(gate, champion=a_gain(0.01, 0.02), slices=[doubtful, *many]) == "pass"


def test_wrong_declarations_are_named() -> None:
    builds: list[Any] = [
        lambda: ct.auc(),  # type: ignore[call-overload]
        lambda: ct.auc(0.6, by=0.1),  # type: ignore[call-overload]
        lambda: ct.auc(1.6),
        lambda: ct.ece(max=0),
        lambda: ct.ece(),  # type: ignore[call-overload]
        lambda: ct.at_least("auroc", math.nan),
        lambda: ct.better("mae", margin=-1),
        lambda: ct.slices(minimum=0),
        lambda: ct.fits(),
        lambda: ct.fits(latency_ms=0),
        lambda: ct.baseline(per="origin"),
        lambda: ct.LightGBM(rounds=0),
    ]
    for build in builds:
        with pytest.raises(InvalidPipeline):
            build()
    assert GATE.validate() == []
    good = {"beats": ct.auc(by=0.0), "floors": [ct.auc(0.6)]}
    faulty: list[tuple[dict[str, Any], str]] = [
        ({"beats": ct.auc(0.6)}, "beats"),
        ({"beats": []}, "beats"),
        ({"floors": []}, "no floor"),
        ({"floors": [1]}, "floor 1"),
        ({"guards": [ct.auc(0.5)]}, "guard"),
        ({"guards": [ct.slices(), ct.slices()]}, "two of Slices"),
        ({"confidence": 0.3}, "confidence"),
        ({"blocks": "a day"}, "blocks"),
        ({"mature": "-2d"}, "mature"),
        ({"metrics": {"mae": lambda s, y, c: 0.0}}, "mae"),
        ({"metrics": {"cost": 3}}, "cost"),
        ({"challengers": ["LightGBM"]}, "challenger"),
    ]
    for changes, word in faulty:
        faults = Gate(**(good | changes)).validate()
        assert any(word in fault for fault in faults), f"{changes}: {faults}"


def test_a_gate_must_suit_what_is_predicted() -> None:
    def faults(objective: Objective, segments: tuple[str, ...] = (), **given: Any) -> list[str]:
        declared = {"beats": ct.better("mae"), "floors": [ct.at_most("mae", 9)]} | given
        return Gate(**declared).suits(objective, segments)

    number = Objective("number")
    quantiles = Objective("quantiles", quantiles=(0.1, 0.9))
    assert faults(number) == []
    assert (
        faults(quantiles, beats=ct.better("pinball"), floors=[ct.at_least("coverage", 0.7), ct.at_most("pinball_0.9", 3)]) == []
    )
    assert "mae" in faults(BINARY)[0]
    assert len(faults(BINARY)) == 2
    assert "segments" in faults(number, guards=[ct.slices()])[0]
    assert "per='origin'" in faults(number, guards=[ct.baseline(last=True, per="origin")])[0]
    assert faults(number, ("origin",), guards=[ct.baseline(last=True, per="origin")]) == []
    assert "last=True" in faults(BINARY, beats=ct.auc(by=0), floors=[ct.auc(0.6)], guards=[ct.baseline(last=True)])[0]
    assert "leave out lower=" in faults(number, beats=ct.better("mae", lower=True))[0]
    own = {"cost": lambda scores, labels, columns: 0.0}
    assert faults(number, beats=ct.better("cost", lower=True), floors=[ct.at_most("cost", 1)], metrics=own) == []
    assert "cost" in faults(number, beats=ct.better("cost"))[0]


def test_a_challenger_whose_package_is_missing_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ct.evaluation.challengers.find_spec", lambda name: None)
    faults = Gate(beats=ct.auc(by=0.0), floors=[ct.auc(0.6)], challengers=[ct.LightGBM()]).validate()
    assert faults == ["challenger LightGBM: the package lightgbm is not installed; run `pip install 'ct[lightgbm]'`"]


def test_the_direction_of_a_metric_of_ones_own_is_declared() -> None:
    gate = Gate(beats=[ct.auc(by=0), ct.better("cost", lower=True)], floors=[ct.auc(0.6)], metrics={"cost": np.mean})
    assert not gate.higher("cost")
    assert gate.higher("profit")
