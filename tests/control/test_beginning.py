"""How a rollout begins: what is checked before it is recorded, what its phases are called, and versions that cannot be made ready."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import ct
from ct.control import rollouts
from ct.control.act import Actor
from ct.control.decide import Judge, decide
from ct.control.loop import observe
from ct.errors import Conflict, Forbidden
from ct.registry import publishing, versions
from ct.rollout import frozen, state
from tests.control import rolling
from tests.control.rolling import last, replicas, turn
from tests.registry.made import made

PLAN = ct.Canary(25, ct.Step(50, pause="manual"), 100, min_requests=5, guards=[ct.error_rate(max=0.2)])


# -- a version that cannot be made ready


def test_a_version_that_no_replica_takes_fails_after_five_tries_and_costs_stable_nothing(tmp_path: Path) -> None:
    told: list[Mapping[str, Any]] = []
    hooks = [ct.Hook(name, told.append) for name in ("rollback", "event", "confirm-rollout")]
    act = rolling.actor(tmp_path / "p", PLAN, hooks=hooks)
    replicas(act).refuses = {"v2"}
    rollout = act.start_rollout("v2")
    assert (rollout.shown, rollout.tries) == ("Warming", 1)
    assert "golden rows differ" in rollout.cause
    assert turn(act, 5) == "", "the next try is not at once"
    assert "try 2 of 5" in turn(act, 6)
    for wait in (21, 41):
        turn(act, wait)
    assert "v2 failed: not ready after 5 tries" in turn(act, 81)
    assert (last(act).outcome, last(act).shown, last(act).closed) == ("failed", "Failed", True)
    assert [(said["hook"], said.get("outcome")) for said in told] == [
        ("confirm-rollout", None),
        ("rollback", "failed"),
        ("event", "failed"),
    ]
    (alert,) = [event.data for event in act.journal.read(f"alert/{rolling.LINE}") if event.data["tier"] == "PAGE"]
    assert alert["title"] == "rollout r1 of v2: could not be started"
    assert (act.route().epoch, act.route().stable.version) == (1, "v1")
    replicas(act).refuses = set()
    assert rollouts.retry(act).shown == "Progressing"


def test_a_version_that_is_ready_at_the_third_try_goes_on(tmp_path: Path) -> None:
    act = rolling.actor(tmp_path / "p", PLAN)
    replicas(act).refuses = {"v2"}
    act.start_rollout("v2")
    turn(act, 11)
    replicas(act).refuses = set()
    assert "25 % of the traffic" in turn(act, 21)
    assert (last(act).shown, last(act).cause) == ("Progressing", "")


def test_a_broken_artifact_ends_its_rollout_and_not_the_loop(tmp_path: Path) -> None:
    """The loop starts what is cleared: a version whose files are gone must not be the only thing that it ever does."""
    act = rolling.actor(tmp_path / "p", PLAN)
    manifest = versions.get(act.journal, rolling.LINE, "v3").manifest
    for file in {manifest, *act.artifacts.manifest(manifest).values()}:
        Path(act.artifacts.address(file)).unlink(missing_ok=True)
    act.start_rollout("v3")
    for wait in (11, 21, 41, 81):
        assert decide(act.pipeline, observe(act)) == (Judge(),)
        turn(act, wait)
    assert last(act).outcome == "failed"
    assert decide(act.pipeline, observe(act)) == (), "v3 is not begun again"


def test_a_rollout_that_is_paused_while_it_warms_up_is_not_tried(tmp_path: Path) -> None:
    act = rolling.actor(tmp_path / "p", PLAN)
    replicas(act).refuses = {"v2"}
    act.start_rollout("v2")
    act.pause()
    replicas(act).refuses = set()
    assert (turn(act, 3600), last(act).shown) == ("", "Paused")
    act.resume()
    turn(act, 1)
    assert last(act).shown == "Progressing"


# -- what it is called meanwhile


def test_every_phase_is_seen_while_it_lasts(tmp_path: Path) -> None:
    seen: list[str] = []

    def asked(_: Mapping[str, Any]) -> None:
        seen.append(last(act).shown)

    act = rolling.actor(tmp_path / "p", ct.Canary(50, min_requests=5), hooks=[ct.Hook("pre-rollout", asked)])
    replicas(act).hears = lambda _: seen.append(last(act).shown)
    act.start_rollout("v2")
    act.promote(full=True)
    assert list(dict.fromkeys(seen)) == ["Pending", "Warming", "Promoting"]
    assert last(act).shown == "Succeeded"
    seen.clear()
    act.start_rollout("v3")
    act.abort()
    assert (list(dict.fromkeys(seen)), last(act).shown) == (["Pending", "Warming", "RollingBack"], "RolledBack")


# -- a gate that is overruled


def failed(act: Actor) -> str:
    publishing.publish(act.journal, act.artifacts, rolling.LINE, made("d"), run="d", verdict="fail", metrics={"auc": 0.5})
    return "v4"


def overruled(act: Actor) -> list[Any]:
    return list(act.journal.read(versions.stream(rolling.LINE), types=["GateOverruled"]))


def test_overruling_is_recorded_with_the_start_or_not_at_all(tmp_path: Path) -> None:
    act = rolling.actor(tmp_path / "p", PLAN)
    version = failed(act)
    with pytest.raises(Conflict, match="has the verdict 'fail'"):
        act.start_rollout(version)
    act.start_rollout("v2")
    with pytest.raises(Conflict, match="is in progress"):
        act.start_rollout(version, override="it must go out")
    with pytest.raises(Conflict, match="different ones"):
        act.start_rollout(version, "v3", override="it must go out")
    act.abort()
    act.settings = act.settings.model_copy(update={"approvers": ("bob",)})
    with pytest.raises(Forbidden, match="'ann' may not overrule"):
        act.start_rollout(version, override="it must go out")
    assert (overruled(act), len(state.history(act.journal, rolling.LINE))) == ([], 1)
    act.settings = act.settings.model_copy(update={"approvers": ("ann",)})
    act.start_rollout(version, override="it must go out")
    (event,) = overruled(act)
    (start,) = [item for item in act.journal.read(state.stream(rolling.LINE)) if item.seq == event.seq + 1]
    assert (start.type, event.data["reason"]) == ("RolloutStarted", "it must go out")
    assert versions.get(act.journal, rolling.LINE, version).cleared


def test_a_version_that_passed_needs_no_overruling(tmp_path: Path) -> None:
    act = rolling.actor(tmp_path / "p", PLAN)
    act.start_rollout("v2", override="to be sure")
    assert overruled(act) == []


# -- the plan as it was


def again(act: Actor, plan: Any) -> Actor:
    """The controller restarted with a changed pipeline.py."""
    act.close()
    return rolling.actor(act.settings.root, plan)


def test_a_plan_that_is_shortened_meanwhile_applies_from_the_next_rollout(tmp_path: Path) -> None:
    act = rolling.actor(tmp_path / "p", ct.Canary(25, 50, 75, 100, min_requests=5, guards=[ct.error_rate(max=0.2)]))
    act.start_rollout("v2")
    act.promote()
    act.promote()
    act = again(act, ct.Canary(10, min_requests=5))
    assert (last(act).step, act.route().weight) == (2, 7500)
    assert rolling.drive(act, turns=1) == ""
    assert (last(act).step, act.route().weight) == (3, 10_000), "the fourth step is still the plan's"
    assert rolling.drive(act, turns=1) == "promoted"
    act.start_rollout("v3")
    assert act.route().weight == 1000


def test_a_guard_that_is_loosened_meanwhile_lets_no_harm_pass(tmp_path: Path) -> None:
    act = rolling.actor(tmp_path / "p", PLAN)
    act.start_rollout("v2")
    act = again(act, ct.Canary(25, 100, min_requests=5, guards=[ct.error_rate(max=0.99)]))
    assert rolling.drive(act, errors=True) == "rolled_back"


def worth(row: Mapping[str, Any], score: float, label: float) -> float:
    return score


def other(row: Mapping[str, Any], score: float, label: float) -> float:
    return 1.0


def test_a_guard_whose_code_is_another_meanwhile_lets_nothing_pass(tmp_path: Path) -> None:
    def plan(value: Any) -> Any:
        return ct.Canary(50, min_requests=5, guards=[ct.business(value, low=0, high=1, name="profit")], deadline="1d")

    act = rolling.actor(tmp_path / "p", plan(worth))
    act.start_rollout("v2")
    thawed = frozen.thaw(last(act).plan or {}, plan(worth))
    assert thawed == plan(worth)
    act = again(act, plan(other))
    assert rolling.drive(act, turns=3) == ""
    lost = frozen.thaw(last(act).plan or {}, plan(other)).guards[0]
    assert "its code is no longer what it was" in lost.metric()
    rolling.drive(act, turns=8)
    assert (last(act).phase, act.route().weight) == ("holding", 5000)
    assert "profit (its code is no longer" in last(act).cause
