"""The controller killed (SIGKILL) before each durable change of each plan (F18): the next one ends in the same place, with one stable version."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ct.control.act import Actor
from ct.errors import CtError
from ct.rollout import state
from tests.control import rolling

STRIDE = 1 if os.environ.get("CT_FAULTS") == "all" else 7


def go(act: Actor, harm: bool = False, apart: bool = False) -> None:
    """Start a rollout unless there was one, and follow it; a person helps a shadow on, once it holds."""
    if not state.history(act.journal, rolling.LINE):
        act.start_rollout(*(("v2", "v3") if act.pipeline.rollout == rolling.PLANS["a/b"] else ("v2",)), apart=apart)
    rolling.drive(act, errors=harm)
    rollout = state.active(act.journal, rolling.LINE)
    if rollout is not None and act.route().shadow:
        act.promote()
        rolling.drive(act, errors=harm)


def by_hand(act: Actor, verb: Callable[[Actor], object]) -> None:
    """Start, let a person say one thing, and follow what is left of it."""
    if not state.history(act.journal, rolling.LINE):
        act.start_rollout("v2")
    rollout = state.active(act.journal, rolling.LINE)
    if rollout is not None and rollout.step < 0:
        act.judge()
    rolling.turning.heed(act)
    if state.active(act.journal, rolling.LINE) is not None:
        verb(act)
    rolling.drive(act, turns=1)


def sweep(tmp_path: Path, plan: str, work: Callable[[Actor], None]) -> dict[str, object]:
    """Kill it before every change in turn. Returns where an undisturbed one ends."""
    start = tmp_path / "start"
    rolling.actor(start, rolling.PLANS[plan]).close()
    steps = 0

    def run(root: Path, kill: int) -> Callable[[], None]:
        def inside() -> None:
            act = rolling.actor(root, rolling.PLANS[plan])
            if kill:
                rolling.kill_at(kill)
            work(act)

        return inside

    plain = rolling.copied(start, tmp_path / "plain")
    assert rolling.forked(run(plain, 0)) == 0
    wanted = rolling.ended(rolling.actor(plain, rolling.PLANS[plan]))
    for kill in range(1, 200, STRIDE):
        root = rolling.copied(start, tmp_path / str(kill))
        code = rolling.forked(run(root, kill))
        assert code in (0, -9), kill
        if code == 0:
            break
        steps += 1
        assert rolling.forked(run(root, 0)) == 0, kill
        act = rolling.actor(root, rolling.PLANS[plan])
        found = rolling.ended(act)
        if not found["served"]:  # the loop's own first look: replicas behind the journal are brought to it
            act.serving.activate(act.route())
            found = rolling.ended(act)
        assert found == wanted, kill
        act.journal.verify()
        act.close()
    assert steps >= 2
    return wanted


@pytest.mark.parametrize(
    ("plan", "outcome", "stable"),
    [
        ("canary", "promoted", "v2"),
        ("blue-green", "promoted", "v2"),
        ("shadow, canary", "promoted", "v2"),
        ("a/b", "aborted", "v1"),
        ("at once", "promoted", "v2"),
    ],
)
def test_a_plan_ends_where_it_would_have(tmp_path: Path, plan: str, outcome: str, stable: str) -> None:
    wanted = sweep(tmp_path, plan, go)
    assert (wanted["stable"], wanted["shares"]["stable"]) == (stable, 10_000)  # type: ignore[index]
    assert wanted["rollouts"] == [("v2", "ended", outcome)]


@pytest.mark.parametrize(("plan", "apart"), [("canary", True), ("blue-green", False)])
def test_a_rollback_ends_where_it_would_have(tmp_path: Path, plan: str, apart: bool) -> None:
    wanted = sweep(tmp_path, plan, lambda act: go(act, harm=True, apart=apart))
    assert (wanted["stable"], wanted["rollouts"]) == ("v1", [("v2", "ended", "rolled_back")])
    assert (wanted["paged"], wanted["closed"], wanted["apps"]) == (["rollout r1 of v2: rolled back"], [True], {})


def test_harm_in_one_of_two_ends_that_one_wherever_it_is_killed(tmp_path: Path) -> None:
    def work(act: Actor) -> None:
        if not state.history(act.journal, rolling.LINE):
            act.start_rollout("v2", "v3", apart=True)
        rolling.drive(act, harm=("v2",))

    wanted = sweep(tmp_path, "a/b", work)
    assert (wanted["gone"], wanted["rollouts"], wanted["apps"]) == ([("v2",)], [("v2", "ended", "aborted")], {})
    assert wanted["paged"] == ["rollout r1 of v2, v3: v2 rolled back, others go on", "rollout r1 of v3: aborted"]


def test_an_abort_by_hand_is_told_as_one(tmp_path: Path) -> None:
    wanted = sweep(tmp_path, "canary", lambda act: by_hand(act, Actor.abort))
    assert wanted["rollouts"] == [("v2", "ended", "aborted")]


def test_an_order_without_database_is_journaled_later(tmp_path: Path) -> None:
    from ct.registry import pinned

    act = rolling.actor(tmp_path / "p", rolling.PLANS["canary"])
    act.start_rollout("v2")
    pinned.pin(act.settings, act.route())
    order = pinned.abort_offline(act.settings, rolling.LINE, by="ann", cause="the pager")
    act.pause()  # a paused one heeds it as well
    assert "aborted: the pager by ann" in rolling.turning.heed(act)
    assert (act.route().candidates, act.route().epoch > order.epoch) == ((), True)
    assert rolling.turning.heed(act) == ""
    with pytest.raises(CtError, match="no rollout in progress"):
        act.abort()
