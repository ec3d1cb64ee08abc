"""A rollout's journal as Prometheus samples."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

import ct
from ct.clock import TurnableClock
from ct.control import exposed
from ct.rollout import state
from ct.rollout.look import look
from ct.rollout.tally import Tally
from ct.store.journal import Journal

WORTH = ct.business(lambda row, score, label: 10 * label, low=0.0, high=10.0)
BEGUN = datetime(2024, 5, 1, tzinfo=UTC)


class Told:
    """A journal on a turned clock, and what Prometheus reads of it."""

    def __init__(self, folder: Path) -> None:
        self.clock = TurnableClock(BEGUN)
        self.journal = Journal(f"sqlite:///{folder / 'journal.db'}", clock=self.clock)

    def start(self) -> str:
        return state.start(self.journal, "tiny", version="v2", baseline="v1", first_epoch=2, slow_ms={"p99": 100.0}).id

    def note(self, rollout: str, type: str, **data: Any) -> None:
        state.note(self.journal, "tiny", rollout, type, data)

    def read(self, name: str, label: str) -> dict[str, float]:
        text = exposed.text(self.journal, "tiny")
        found = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        assert all(sample.labels["endpoint"] == "tiny" for sample in found)
        return {sample.labels.get(label, ""): sample.value for sample in found if sample.name == name}


@pytest.fixture
def told(tmp_path: Path) -> Told:
    return Told(tmp_path)


def evidence(metric: str, e_value: float) -> dict[str, Any]:
    return {"metric": metric, "e_value": e_value, "limit": 300.0}


def test_an_endpoint_without_a_rollout_tells_zeros(told: Told) -> None:
    assert told.read("ct_rollback_timestamp_seconds", "") == {"": 0}
    assert told.read("ct_rollout_phase", "phase") == {}


def test_phase_and_evidence_of_the_rollout_in_progress(told: Told) -> None:
    rollout = told.start()
    told.note(rollout, "RolloutStepped", step=0)
    told.note(
        rollout, "RolloutJudged", decision="continue", cause="", evidence=[evidence("error_rate", 2.5), evidence("p99", 0.1)]
    )
    assert told.read("ct_rollout_phase", "phase") == {name: float(name == "progressing") for name in exposed.PHASES}
    assert told.read("ct_rollout_evalue", "metric") == {"error_rate": 2.5, "p99": 0.1}
    assert told.read("ct_rollout_evalue_limit", "metric") == {"error_rate": 300, "p99": 300}
    told.note(rollout, "RolloutHeld", cause="nobody asked")
    assert told.read("ct_rollout_phase", "phase")["holding"] == 1


def test_each_phase_has_a_word_of_its_own(told: Told) -> None:
    def phase() -> str:
        (found,) = (name for name, value in told.read("ct_rollout_phase", "phase").items() if value)
        return found

    rollout, seen = told.start(), []
    ending: dict[str, Any] = {"outcome": "failed", "cause": "no room", "reason": "not_ready", "version": "", "to": ""}
    for event, data in (
        ("", {}), ("RolloutWarming", {}), ("RolloutStepped", {"step": 0, "stage": "shadow"}), ("RolloutStepped", {"step": 1, "stage": "bake"}),
        ("RolloutPaused", {}), ("RolloutEnding", ending), ("RolloutEnded", ending),
    ):  # fmt: skip
        if event:
            told.note(rollout, event, **data)
        seen.append(phase())
    assert seen == ["pending", "warming", "shadowing", "baking", "paused", "rolling_back", "failed"]
    assert set(seen) <= set(exposed.PHASES)
    assert told.read("ct_rollbacks_total", "reason") == {}, "it had no traffic that could be taken back"
    assert told.read("ct_rollout_duration_seconds_count", "status") == {"failed": 1}


def test_rollbacks_by_what_did_it_and_when(told: Told) -> None:
    for number, (metric, outcome) in enumerate(
        [("error_rate", "rolled_back"), ("error_rate", "rolled_back"), ("", "aborted"), ("", "promoted")]
    ):
        rollout = told.start()
        if metric:
            told.note(
                rollout, "RolloutJudged", decision="roll_back", cause="", evidence=[evidence(metric, 400), evidence("p99", 299)]
            )
        told.clock.turn(timedelta(minutes=2))
        told.note(rollout, "RolloutEnded", outcome=outcome, cause=f"number {number}")
    assert told.read("ct_rollbacks_total", "reason") == {"error_rate": 2, "by_hand": 1}
    assert told.read("ct_rollback_timestamp_seconds", "") == {"": (BEGUN + timedelta(minutes=6)).timestamp()}
    assert told.read("ct_rollout_duration_seconds_count", "status") == {"rolled_back": 2, "aborted": 1, "promoted": 1}
    assert told.read("ct_rollout_duration_seconds_sum", "status") == {"rolled_back": 240, "aborted": 120, "promoted": 120}
    assert told.read("ct_rollout_phase", "phase")["promoted"] == 1
    assert told.read("ct_rollout_evalue", "metric") == {}


def test_split_segments_and_worth_of_the_latest_look(told: Told) -> None:
    rollout = told.start()
    plan = ct.Canary(50, 100, guards=[ct.error_rate(), WORTH])
    tally = Tally(2, {}, valued=(WORTH,), segments=("carrier",))
    for at in range(600):
        arm = "canary" if at % 3 == 0 else "stable"
        common = {
            "kind": "prediction",
            "epoch": 2,
            "weight": 5000,
            "latency_ms": 1.0,
            "error": "",
            "unit": "",
            "t": at,
            "score": 0.9,
        }
        tally.add([{**common, "id": str(at), "assigned": arm, "context": {"carrier": "AA"}, "request": {}}])
        tally.add([{"kind": "label", "id": str(at), "label": float(arm == "stable"), "t": at}])
    (found,) = look(plan, tally, step=0, elapsed_s=1.0)
    told.note(rollout, "RolloutJudged", **found.recorded())
    assert told.read("ct_rollout_assignment_ratio", "") == {"": pytest.approx(2 / 3)}
    assert told.read("ct_rollout_assignment_evalue", "")[""] > told.read("ct_rollout_assignment_evalue_limit", "")[""]
    assert told.read("ct_rollout_segments_harmed", "") == {"": 1}
    worth = told.read("ct_rollout_worth_difference", "bound")
    assert -10 <= worth["low"] < worth["estimate"] < worth["high"] < 0
