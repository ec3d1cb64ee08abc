"""Decisions: what the loop would do, from plain observations. No Ray, no clock, no store."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ct.control.decide import (
    Arrival,
    CheckDrift,
    Deploy,
    Ingest,
    Judge,
    Reconcile,
    StartRollout,
    StartRun,
    State,
    Train,
    decide,
)
from ct.control.runs import Run
from ct.control.triggers import Drift, Every, NewData, Observed
from ct.errors import InvalidPipeline
from ct.registry.routes import Arm, Route
from ct.registry.versions import Version
from ct.rollout.state import Rollout
from ct.testing import trigger_contract

NOW = datetime(2020, 1, 31, tzinfo=UTC)
LINE: Any = SimpleNamespace(retrain=(NewData(rows=100), Every("7d"), Drift(features=2)))
ROUTE = Route("p", 3, Arm("v1", "1" * 64))
RUN = Run("run-1", "", {}, {}, 0, {}, 0, "", "", NOW)
ROLLOUT = Rollout("r1", "v2", "v1", 4, 100.0, NOW)


def version(name: str, verdict: str = "pass", override: str = "") -> Version:
    return Version(name, "0" * 64, name, verdict, NOW, override=override)


def test_nothing_to_do() -> None:
    assert decide(LINE, State()) == ()
    assert decide(LINE, State(route=ROUTE, served_epoch=3, versions=(version("v1"),), tried=frozenset({"v1"}))) == ()


def test_traffic_comes_before_data_and_data_before_training() -> None:
    arrival = Arrival("flights", Path("x"))
    state = State(arrivals=(arrival,), undrifted=("s",), run=RUN, route=ROUTE, rollout=ROLLOUT, served_epoch=2)
    assert decide(LINE, state) == (Reconcile(), Judge(), Ingest(arrival), CheckDrift("s"))


def test_an_unfinished_run_goes_on_before_a_new_one_starts() -> None:
    assert decide(LINE, State(run=RUN, observed=Observed(new_rows=1000))) == (Train(RUN),)


def test_the_first_cleared_version_is_deployed_and_later_ones_are_rolled_out() -> None:
    assert decide(LINE, State(versions=(version("v1"),))) == (Deploy(version("v1")),)
    versions = (version("v1"), version("v2"))
    assert decide(LINE, State(versions=versions, tried=frozenset({"v1"}), route=ROUTE, served_epoch=3)) == (
        StartRollout(version("v2")),
    )


def test_a_version_that_failed_its_gate_gets_no_traffic_unless_overruled() -> None:
    state = State(versions=(version("v1"), version("v2", "fail")), tried=frozenset({"v1"}), route=ROUTE, served_epoch=3)
    assert decide(LINE, state) == ()
    overruled = version("v2", "fail", "ann: because")
    assert decide(LINE, State(versions=(version("v1"), overruled), tried=frozenset({"v1"}), route=ROUTE, served_epoch=3)) == (
        StartRollout(overruled),
    )


def test_a_version_that_was_rolled_back_is_not_tried_again_nor_an_older_one() -> None:
    state = State(
        versions=(version("v1"), version("v2"), version("v3")), tried=frozenset({"v1", "v3"}), route=ROUTE, served_epoch=3
    )
    assert decide(LINE, state) == ()


def test_a_paused_rollout_is_watched_and_holds_back_the_next_run() -> None:
    from dataclasses import replace

    paused = replace(ROLLOUT, phase="paused")
    assert decide(LINE, State(route=ROUTE, served_epoch=3, rollout=paused, observed=Observed(new_rows=1000))) == (
        Judge(paused=True),
    )


@pytest.mark.parametrize(
    ("observed", "cause"),
    [
        (Observed(new_rows=99), ""),
        (Observed(new_rows=100), "100 new rows (at least 100)"),
        (Observed(data_time=NOW, trained_until=datetime(2020, 1, 25, tzinfo=UTC)), ""),
        (
            Observed(data_time=NOW, trained_until=datetime(2020, 1, 24, tzinfo=UTC)),
            "data reach 7 d beyond the last run (every 7d)",
        ),
        (Observed(data_time=NOW), ""),
        (Observed(drifted=("temp",)), ""),
        (Observed(drifted=("temp", "wind")), "2 drifted feature(s): temp, wind"),
    ],
)
def test_triggers(observed: Observed, cause: str) -> None:
    found = decide(LINE, State(observed=observed))
    assert found == ((StartRun(cause),) if cause else ())


@pytest.mark.parametrize("trigger", LINE.retrain, ids=lambda trigger: type(trigger).__name__)
def test_triggers_keep_their_contract(trigger: object) -> None:
    trigger_contract(trigger)


@pytest.mark.parametrize(
    "wrong", [lambda: NewData(rows=0), lambda: NewData(rows="many"), lambda: Every("soon"), lambda: Drift(features=0)]
)
def test_wrong_triggers_are_refused(wrong: Any) -> None:
    with pytest.raises(InvalidPipeline):
        wrong()
