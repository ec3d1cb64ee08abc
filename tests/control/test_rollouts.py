"""What a person, a hook and a plan may do to a rollout: steps, holds, ends, A/B tests, versions apart."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import ct
from ct.cli import rollout_view
from ct.clock import TurnableClock
from ct.control import rollouts, turning
from ct.control.act import Actor
from ct.errors import Conflict, InvalidPipeline, NotFound
from ct.rollout import state
from tests.control import rolling

PLAN = ct.Canary(25, ct.Step(50, pause="manual"), 100, min_requests=5, guards=[ct.error_rate(max=0.2)])


def last(act: Actor) -> state.Rollout:
    return state.history(act.journal, rolling.LINE)[-1]


def test_a_person_takes_steps_and_holds_at_a_manual_pause(tmp_path: Path) -> None:
    act = rolling.actor(tmp_path / "p", PLAN)
    act.start_rollout("v2")
    assert (act.route().weight, last(act).shown) == (2500, "Progressing")
    assert rolling.drive(act) == ""
    assert (act.route().weight, last(act).shown) == (5000, "Holding")
    assert "waits for a person" in last(act).cause
    act.promote()
    assert (act.route().weight, last(act).phase) == (10_000, "progressing")
    act.pause()
    act.set_weight(10)
    assert (act.route().weight, last(act).shown) == (1000, "Paused")
    act.resume()
    assert act.route().weight == 10_000, "the plan's own weight again"
    act.promote()
    assert (act.route().stable.version, last(act).shown) == ("v2", "Succeeded")
    with pytest.raises(Conflict, match="was promoted"):
        rollouts.retry(act)
    assert "v1 is stable again" in act.undo()
    assert (act.route().stable.version, act.route().candidates) == ("v1", ())
    with pytest.raises(NotFound, match="v3 was never stable"):
        act.undo("v3")


def test_full_ends_it_and_retry_starts_it_again(tmp_path: Path) -> None:
    act = rolling.actor(tmp_path / "p", PLAN)
    act.start_rollout("v2")
    act.abort()
    assert (last(act).outcome, last(act).shown) == ("aborted", "RolledBack")
    assert rollouts.retry(act).id == "r2"
    act.promote(full=True)
    assert (act.route().stable.version, last(act).outcome) == ("v2", "promoted")


def test_an_ab_test_reports_and_a_person_names_the_winner(tmp_path: Path) -> None:
    act = rolling.actor(tmp_path / "p", ct.AB(30, 30, guards=[ct.error_rate(max=0.5)], deadline="1h"))
    with pytest.raises(Conflict, match="2 different ones"):
        act.start_rollout("v2")
    act.start_rollout("v2", "v3")
    assert act.route().shares == {"stable": 4000, "canary": 3000, "canary-2": 3000}
    assert rolling.drive(act, turns=3) == ""
    assert "ended by a person" in last(act).cause
    with pytest.raises(Conflict, match="one of them named"):
        act.promote()
    act.promote(version="v3")
    assert (act.route().stable.version, last(act).outcome) == ("v3", "promoted")


def test_harm_in_one_arm_ends_an_ab_test(tmp_path: Path) -> None:
    act = rolling.actor(tmp_path / "p", ct.AB(30, 30, guards=[ct.error_rate(max=0.1)]))
    act.start_rollout("v2", "v3")
    assert rolling.drive(act, errors=True) == "rolled_back"


@pytest.mark.parametrize(("ending", "outcome"), [("hold", ""), ("abort", "aborted"), ("promote", "promoted")])
def test_the_deadline_does_what_the_plan_says(tmp_path: Path, ending: Any, outcome: str) -> None:
    plan = ct.Canary(50, min_requests=9_000, deadline="1h", at_deadline=ending, only={"country": ["DE"]}, override=["never"])
    act = rolling.actor(tmp_path / "p", plan)
    act.start_rollout("v2")
    assert (act.route().only, act.route().override) == ({"country": ("DE",)}, ("never",))
    assert rolling.drive(act, turns=3) == outcome
    if outcome:
        assert (act.route().only, act.route().override) == ({}, ("always", "never"))


def test_a_step_lasts_its_least_time(tmp_path: Path) -> None:
    act = rolling.actor(tmp_path / "p", ct.Canary(50, min_requests=5, min_time="2h", deadline="3h"))
    act.start_rollout("v2")
    rolling.traffic(act)
    assert act.judge() == ""
    assert isinstance(act.clock, TurnableClock)
    act.clock.turn(timedelta(hours=2))
    assert "promoted" in act.judge()


def test_a_version_apart_is_deployed_first_and_removed_after(tmp_path: Path) -> None:
    act = rolling.actor(tmp_path / "p", PLAN)
    act.start_rollout("v2", apart=True)
    assert act.route().candidates[0].arm.app == "apart-v2"
    act.abort()
    assert act.serving.read()["apps"] == {}  # type: ignore[attr-defined]


def test_segments_of_a_plan_must_be_declared(tmp_path: Path) -> None:
    with pytest.raises(InvalidPipeline, match=r"only reads \['carrier'\]"):
        rolling.actor(tmp_path / "p", ct.Canary(100, only={"carrier": ["AA"]}))


def test_a_rollout_that_just_goes_on_tells_its_evidence_once_a_minute(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    act = rolling.actor(tmp_path / "p", ct.AB(50, guards=[ct.error_rate(max=0.5), ct.latency("p50", "p99")]))
    act.start_rollout("v2")
    rolling.traffic(act)
    assert act.judge() == ""
    assert last(act).evidence == ()
    assert isinstance(act.clock, TurnableClock)
    for _ in range(3):
        act.clock.turn(timedelta(seconds=40))
        assert act.judge() == ""
    told = [event for event in act.journal.read(state.stream(rolling.LINE)) if event.type == "RolloutJudged"]
    assert [event.data["decision"] for event in told] == ["continue"]
    assert [item["metric"] for item in last(act).evidence] == [
        "error_rate", "error_rate above 0.5", "latency_p50_p99", "latency_p50", "latency_p99",
    ]  # fmt: skip
    assert last(act).evidence[0]["canary_n"] > 0
    assert last(act).split is not None
    assert last(act).shown == "Progressing"
    rollout_view.view(rolling.LINE, rollout_view.data(rolling.LINE, act.journal))
    assert "split: the canary got " in capsys.readouterr().out


def test_a_shadow_without_a_labelled_row_yet_goes_on(tmp_path: Path) -> None:
    act = rolling.actor(tmp_path / "p", ct.Shadow(within=0.01))
    act.start_rollout("v2")
    rolling.traffic(act)
    assert act.judge() == ""
    assert last(act).shown == "Shadowing"


# -- hooks


def boom(_: Mapping[str, Any]) -> bool:
    raise RuntimeError("not today")


def slow(_: Mapping[str, Any]) -> bool:
    time.sleep(5)
    return True


def no(_: Mapping[str, Any]) -> bool:
    return False


@pytest.mark.parametrize(
    ("call", "said"), [(boom, "RuntimeError: not today"), (slow, "no answer within 1 s"), (no, "it said no")]
)
@pytest.mark.parametrize("name", ["confirm-rollout", "confirm-promotion"])
def test_a_hook_that_refuses_holds_and_never_promotes(tmp_path: Path, call: Any, said: str, name: str) -> None:
    plan = ct.Canary(50, min_requests=5)
    act = rolling.actor(tmp_path / "p", plan, hooks=[ct.Hook(name, call, timeout="1s")])
    act.start_rollout("v2")
    rolling.drive(act, turns=2)
    assert (last(act).phase, act.route().stable.version) == ("holding", "v1")
    assert said in last(act).cause
    assert bool(act.route().candidates) == (name == "confirm-promotion")
    calls = [event.data for event in act.journal.read(state.stream(rolling.LINE), types=["HookCalled"])]
    assert {item["hook"] for item in calls} == {name}
    act.promote(full=name == "confirm-promotion")  # a person decides
    assert last(act).step == 0


def test_a_rollback_hook_that_fails_stops_no_rollback(tmp_path: Path) -> None:
    act = rolling.actor(tmp_path / "p", PLAN, hooks=[ct.Hook("rollback", boom), ct.Hook("event", boom)])
    act.start_rollout("v2")
    act.abort()
    assert (act.route().candidates, last(act).outcome) == ((), "aborted")


@pytest.fixture
def webhook() -> Iterator[tuple[str, list[dict[str, Any]], list[int]]]:
    got: list[dict[str, Any]] = []
    status = [200]

    class Hears(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(status[0])
            self.send_header("location", "/elsewhere")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hears)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/hook?secret=1", got, status
    server.shutdown()
    server.server_close()


def test_a_webhook_is_asked_and_a_redirect_is_no_yes(tmp_path: Path, webhook: Any) -> None:
    url, got, status = webhook
    act = rolling.actor(tmp_path / "p", PLAN)
    act.settings = act.settings.model_copy(update={"hooks": {"confirm-traffic-increase": url}})
    act.start_rollout("v2")
    status[0] = 307
    rolling.drive(act, turns=1)
    assert (last(act).phase, act.route().weight, len(got)) == ("holding", 2500, 1)
    assert "secret" not in last(act).cause
    status[0] = 200
    rolling.drive(act, turns=1)
    assert (act.route().weight, got[1]["weights"], got[1]["version"]) == (5000, [50], "v2")


def test_a_weight_by_hand_that_was_cut_off_goes_back_to_the_plan(tmp_path: Path) -> None:
    act = rolling.actor(tmp_path / "p", PLAN)
    act.start_rollout("v2")
    share = replace(act.route().candidates[0], weight=777)
    act.change(act.route().with_candidates((share,)), "by another door")
    act.judge()
    assert act.route().weight == 2500
    assert turning.heed(act) == ""
