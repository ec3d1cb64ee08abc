"""How a rollout ends: watched while it is paused, at once where a circuit says so, one candidate of several, and finished by another process."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import ct
from ct.clock import TurnableClock
from ct.control import ending, exposed, loop, rollouts, turning
from ct.control.act import Actor
from ct.errors import Conflict, NotFound, Unavailable
from ct.rollout import state
from ct.serving.router import assign
from ct.store.journal import New
from tests.control import rolling
from tests.control.rolling import last, replicas, turn

PLAN = ct.Canary(25, ct.Step(50, pause="manual"), 100, min_requests=5, guards=[ct.error_rate(max=0.2)], deadline="1h")
SPLIT = ct.AB(30, 30, guards=[ct.error_rate(max=0.2)])
UNITS = [f"u{at}" for at in range(500)]


def alerts(act: Actor, tier: str) -> list[str]:
    told = act.journal.read(f"alert/{rolling.LINE}", types=["AlertRaised"])
    return [event.data["title"] for event in told if event.data["tier"] == tier]


def begun(folder: Path, plan: Any = PLAN, *names: str, apart: bool = False, **changed: Any) -> Actor:
    act = rolling.actor(folder / "p", plan, **changed)
    act.start_rollout(*(names or ("v2",)), apart=apart)
    return act


# -- paused


def test_harm_takes_a_paused_rollout_back(tmp_path: Path) -> None:
    act = begun(tmp_path)
    act.pause()
    rolling.traffic(act, errors=True, rows=200)
    assert "v2 rolled back" in turn(act)
    assert (last(act).outcome, act.route().candidates) == ("rolled_back", ())
    assert alerts(act, "PAGE") == ["rollout r1 of v2: rolled back"]


def test_a_pause_stops_the_deadline_and_the_steps(tmp_path: Path) -> None:
    act = begun(tmp_path, ct.Canary(25, 100, min_requests=5, deadline="1h", at_deadline="abort"))
    act.pause()
    assert turn(act, 7200) == "", "two hours in a pause are no deadline missed"
    rolling.traffic(act)
    assert (turn(act), last(act).phase, act.route().weight) == ("", "paused", 2500), "what is proven waits for the person"
    act.resume()
    assert "100 % of the traffic" in turn(act)
    act.pause()
    act.resume()
    assert turn(act, 3000) == "", "the deadline begins anew"
    assert "aborted: not proven within 1h" in turn(act, 700)
    assert last(act).reason == "deadline"


def test_a_split_that_breaks_in_a_pause_is_told_and_held_for_after_it(tmp_path: Path) -> None:
    act = begun(tmp_path)
    act.pause()
    rolling.traffic(act, rows=400)
    rolling.only(act, "canary", rows=1600)
    assert (turn(act), last(act).phase, last(act).cause) == ("", "paused", "paused by hand")
    assert any("the split is broken, while it is paused" in title for title in alerts(act, "WARN"))
    act.resume()
    assert "holds: the canary got" in turn(act)


def test_once_ends_with_a_paused_rollout_after_a_look_at_it(tmp_path: Path) -> None:
    act = begun(tmp_path)
    act.pause()
    act.start_ray_soon = lambda: None  # type: ignore[method-assign]
    said: list[str] = []
    loop.run(act, once=True, say=said.append)
    rolling.traffic(act, errors=True, rows=200)
    loop.run(act, once=True, say=said.append)
    assert any("v2 rolled back" in line for line in said)


# -- circuits


@pytest.mark.parametrize("paused", [False, True])
def test_a_circuit_that_is_open_on_most_replicas_ends_it_at_once(tmp_path: Path, paused: bool) -> None:
    act = begun(tmp_path)
    if paused:
        act.pause()
    there = replicas(act)
    there.count = 3
    states = there.state()
    states[0] = states[0] | {"circuits": {"canary": True}}
    there.state = lambda: states  # type: ignore[method-assign]
    assert turn(act) == "", "one of three is that replica's own trouble"
    states[2] = states[2] | {"circuits": {"canary": True}}
    states[1] = states[1] | {"epoch": 1, "circuits": {"canary": True}}
    assert "its circuit is open on 2 of 3 replicas" in turn(act)
    assert (last(act).outcome, last(act).reason, alerts(act, "PAGE")) == (
        "rolled_back", "circuit", ["rollout r1 of v2: rolled back"]
    )  # fmt: skip
    samples = {name: labels for name, labels, _ in exposed.samples(act.journal, rolling.LINE)}
    assert samples["ct_rollbacks_total"]["reason"] == "circuit"


def test_a_version_that_most_replicas_refuse_after_it_was_staged_ends_at_once(tmp_path: Path) -> None:
    act = begun(tmp_path)
    arm, there = act.route().candidates[0].arm, replicas(act)
    there.said = {"shown": {"stable": "v1", "canary": "v1"}}
    assert turn(act) == "", "a replica that has not loaded it yet has refused nothing"
    told = {"version": "v2", "manifest": arm.manifest, "found": "its golden rows differ by 0.3", "replica": "x"}
    act.journal.append(f"audit/{rolling.LINE}", [New("ArtifactRefused", told)])
    assert "1 of 1 replicas could not load it: its golden rows differ by 0.3" in turn(act)
    assert last(act).reason == "circuit"


def test_an_application_apart_in_a_crash_loop_ends_at_once(tmp_path: Path) -> None:
    act = begun(tmp_path, apart=True)
    there = replicas(act)
    for _ in range(2):
        there.down = "a process died"
        assert turn(act) == ""
        there.down = ""
        assert turn(act) == ""
    there.down = "a process died"
    assert "crash loop: down 3 times" in turn(act)
    assert (last(act).outcome, there.read()["apps"]) == ("rolled_back", {})
    rollouts.retry(act)
    there.down = "no process"
    assert turn(act) == "", "a process that died once is started again by Serve"
    assert "now for 30 s; no process" in turn(act, 30)


def test_nothing_is_known_of_replicas_that_do_not_answer(tmp_path: Path) -> None:
    act = begun(tmp_path)

    def silent() -> Any:
        raise Unavailable("the endpoint did not state", "replicas that answer")

    replicas(act).state = silent  # type: ignore[method-assign]
    rolling.traffic(act)
    assert "holds" in turn(act) or act.route().weight == 5000


# -- one of several


def test_harm_in_one_arm_ends_that_arm_and_the_others_keep_their_users(tmp_path: Path) -> None:
    told: list[Mapping[str, Any]] = []
    act = begun(tmp_path, SPLIT, "v2", "v3", apart=True, hooks=[ct.Hook("rollback", told.append)])
    before = {unit: assign(act.route(), unit).arm for unit in UNITS}
    rolling.traffic(act, harm=("v2",), rows=200)
    assert "v2 rolled back, v3 go on" in turn(act)
    assert (last(act).phase, last(act).gone, last(act).left) == ("progressing", ("v2",), ("v3",))
    assert act.route().shares == {"stable": 7000, "canary-2": 3000}
    assert replicas(act).read()["apps"] == {"apart-v3": 1}
    assert [(said["version"], said["outcome"]) for said in told] == [("v2", "rolled_back")]
    assert alerts(act, "PAGE") == ["rollout r1 of v2, v3: v2 rolled back, others go on"]
    after = {unit: assign(act.route(), unit).arm for unit in UNITS}
    assert after == {unit: "stable" if arm == "canary" else arm for unit, arm in before.items()}
    for _ in range(5):  # its share of what it and stable have is 30 of 100 now, and 30 of 70 before: neither is a broken split
        rolling.traffic(act, rows=400)
        assert turn(act) == ""
    with pytest.raises(Conflict, match="v2 was rolled back"):
        act.promote(version="v2")
    rolling.traffic(act, harm=("v3",), rows=400)
    assert "v3 rolled back: error_rate" in turn(act)
    assert (last(act).outcome, act.route().candidates, replicas(act).read()["apps"]) == ("rolled_back", (), {})


def test_the_arm_that_is_left_can_win(tmp_path: Path) -> None:
    act = begun(tmp_path, SPLIT, "v2", "v3")
    rolling.traffic(act, harm=("v3",), rows=200)
    assert "v3 rolled back, v2 go on" in turn(act)
    assert act.route().shares == {"stable": 7000, "canary": 3000}
    act.promote(version="v2")
    assert (act.route().stable.version, last(act).outcome) == ("v2", "promoted")


def test_weights_of_several_by_version_or_arm(tmp_path: Path) -> None:
    act = begun(tmp_path, SPLIT, "v2", "v3")
    with pytest.raises(Conflict, match="2 candidates"):
        act.set_weight(10)
    rollouts.set_weights(act, {"v2": 10, "canary-2": 20})
    assert (act.route().shares, last(act).shown) == ({"stable": 7000, "canary": 1000, "canary-2": 2000}, "Paused")
    rollouts.set_weights(act, {"v3": 90})
    assert act.route().shares == {"stable": 0, "canary": 1000, "canary-2": 9000}
    for wrong, found in (
        ({"v2": 20}, "110 % together"),
        ({"v2": 101}, "a weight of 101"),
        ({"v2": True}, "a weight of True"),
        ({}, "no weight"),
    ):
        with pytest.raises(Conflict, match=found):
            rollouts.set_weights(act, wrong)  # type: ignore[arg-type]
    with pytest.raises(NotFound, match="v9 is no candidate"):
        rollouts.set_weights(act, {"v9": 1})
    assert act.route().shares["canary-2"] == 9000
    act.resume()
    assert act.route().shares == {"stable": 4000, "canary": 3000, "canary-2": 3000}
    rolling.traffic(act, harm=("v2",), rows=200)
    turn(act)
    with pytest.raises(NotFound, match="v2 is no candidate"):
        rollouts.set_weights(act, {"v2": 5})
    rollouts.set_weights(act, {"v3": 100})
    assert act.route().shares == {"stable": 0, "canary-2": 10_000}
    act.resume()
    assert act.route().shares == {"stable": 7000, "canary-2": 3000}, "the plan's, without the one that was ended"


# -- finished by another process


class Dead(BaseException):
    """The process would be dead by now."""


def dies(*_: Any, **__: Any) -> None:
    raise Dead


@pytest.mark.parametrize("at", ["change", "note", "close"])
def test_a_rollback_that_another_process_finishes_pages_and_takes_the_application_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    told: list[Mapping[str, Any]] = []
    act = begun(tmp_path, PLAN, apart=True, hooks=[ct.Hook("rollback", told.append)])
    rolling.traffic(act, errors=True, rows=200)
    with monkeypatch.context() as patch:
        if at == "change":
            patch.setattr(Actor, "change", dies)
        elif at == "note":
            note = state.note
            patch.setattr(state, "note", lambda *args, **more: dies() if args[3] == "RolloutEnded" else note(*args, **more))
        else:
            patch.setattr(ending, "close", dies)
        with pytest.raises(Dead):
            turn(act)
    assert told == []
    other = rolling.actor(tmp_path / "p", PLAN, hooks=[ct.Hook("rollback", told.append)])
    assert turning.heed(other) == "", "who ended it may be at it still"
    if at != "close":
        assert "v2 rolled back: error_rate" in turn(other)
    assert alerts(other, "PAGE") == ["rollout r1 of v2: rolled back"], "that does not wait"
    assert isinstance(other.clock, TurnableClock)
    other.clock.turn(timedelta(seconds=turning.CLOSE_SECONDS))
    assert ("rollout r1 rolled back" in turning.heed(other)) == (at == "close")
    assert turning.heed(other) == ""
    assert (last(other).outcome, last(other).closed, other.route().candidates) == ("rolled_back", True, ())
    assert alerts(other, "PAGE") == ["rollout r1 of v2: rolled back"]
    assert (len(told), replicas(other).read()["apps"]) == (1, {})
    assert exposed.reason(last(other)).startswith("error_rate")


def test_an_end_that_another_process_was_quicker_with_is_told_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Mapping[str, Any]] = []
    act = begun(tmp_path, hooks=[ct.Hook("rollback", told.append)])
    note = state.note

    def then_the_loop_looks(*args: Any, **more: Any) -> None:
        note(*args, **more)
        if args[3] == "RolloutEnding":
            monkeypatch.setattr(state, "note", note)
            assert "v2 aborted" in act.judge()

    monkeypatch.setattr(state, "note", then_the_loop_looks)
    assert act.abort() == "v2 aborted: aborted by hand"
    assert ((last(act).outcome, last(act).closed), len(told)) == (("aborted", True), 1)


def test_an_abort_at_the_deadline_is_not_by_hand(tmp_path: Path) -> None:
    act = begun(tmp_path, ct.Canary(50, min_requests=9_000, deadline="1h", at_deadline="abort"))
    turn(act, 3601)
    assert (last(act).outcome, exposed.reason(last(act))) == ("aborted", "deadline")
    assert alerts(act, "PAGE") == ["rollout r1 of v2: aborted"]
    rollouts.retry(act)
    act.abort()
    assert (exposed.reason(last(act)), len(alerts(act, "PAGE"))) == ("by_hand", 1)


def test_an_end_in_work_cannot_be_steered_and_the_route_says_how_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    act = begun(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Actor, "change", dies)
        with pytest.raises(Dead):
            act.promote(full=True)
    assert last(act).shown == "Promoting"
    for verb in (act.pause, act.resume, act.promote, lambda: act.set_weight(5)):
        with pytest.raises(Conflict, match="is being ended"):
            verb()
    act.abort()  # this may still be said, as long as the route is not in force
    assert (last(act).outcome, act.route().stable.version) == ("aborted", "v1")


@pytest.mark.parametrize(("wins", "outcome"), [(True, "promoted"), (False, "aborted")])
def test_a_route_that_another_door_has_changed_ends_the_rollout_as_it_is(tmp_path: Path, wins: bool, outcome: str) -> None:
    act = begun(tmp_path)
    route = act.route()
    act.change(route.promoted() if wins else route.without_canary(), "by another door")
    assert f"v2 {outcome}: found" in turn(act)
    assert (last(act).outcome, last(act).closed) == (outcome, True)


def test_undo_ends_a_rollout_in_progress_with_one_change_of_the_route(tmp_path: Path) -> None:
    act = begun(tmp_path, ct.AllAtOnce())
    act.judge()
    act.start_rollout("v3")
    epoch = act.route().epoch
    assert act.undo() == "v1 is stable again"
    assert (act.route().stable.version, act.route().candidates, act.route().epoch) == ("v1", (), epoch + 1)
    assert (last(act).outcome, last(act).closed) == ("aborted", True)


# -- room before weight


@pytest.mark.parametrize("by_hand", [False, True])
def test_an_application_apart_grows_before_its_share_does(tmp_path: Path, by_hand: bool) -> None:
    act = rolling.actor(tmp_path / "p", ct.Canary(25, 50, 100, min_requests=5))
    replicas(act).count = 4
    act.start_rollout("v2", apart=True)
    sizes = [replicas(act).read()["apps"]["apart-v2"]]
    for _ in range(3):
        rolling.traffic(act)
        _ = act.promote() if by_hand else turn(act)  # the replicas' activate asserts that the room is there
        sizes.append(replicas(act).read()["apps"]["apart-v2"])
    assert (sizes, act.route().stable.app) == ([1, 2, 4, 4], "apart-v2")


def test_a_step_without_room_is_held_and_taken_once_there_is_some(tmp_path: Path) -> None:
    act = rolling.actor(tmp_path / "p", ct.Canary(25, 100, min_requests=5))
    replicas(act).count = 4
    act.start_rollout("v2", apart=True)
    scale = replicas(act).scale_arm

    def full(*_: Any) -> bool:
        raise Unavailable("apart-v2 did not start: no CPU is free", "a version that loads")

    replicas(act).scale_arm = full  # type: ignore[method-assign]
    rolling.traffic(act)
    assert "no room for the next step: apart-v2 did not start" in turn(act)
    assert (act.route().weight, last(act).phase) == (2500, "holding")
    replicas(act).scale_arm = scale  # type: ignore[method-assign]
    assert turn(act) == "", "tried again after a minute"
    assert "100 % of the traffic" in turn(act, 61)
