"""Routes: epochs, promotion, and what was live when."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ct.clock import TurnableClock
from ct.errors import Conflict, InvalidRequest, NotFound
from ct.registry import routes
from ct.registry.routes import Arm, Route, Share
from ct.store.journal import Journal

ONE, TWO = Arm("v1", "1" * 64), Arm("v2", "2" * 64)


def test_a_rollouts_routes_follow_each_other(tmp_path: Path) -> None:
    clock = TurnableClock(datetime(2020, 1, 1, tzinfo=UTC))
    journal = Journal(f"sqlite:///{tmp_path / 'j.db'}", clock=clock)
    route = routes.put(journal, routes.first("e", ONE), cause="first")
    clock.sleep(10)
    canary = routes.put(journal, route.with_canary(TWO, weight=1000), cause="step")
    assert canary.share == 0.1
    wider = routes.put(journal, canary.with_canary(TWO, weight=5000), cause="step")
    assert wider.salt == canary.salt, "a growing canary keeps its users"
    clock.sleep(10)
    done = routes.put(journal, wider.promoted(), cause="passed")
    assert (done.stable, done.canary, done.epoch, done.key) == (TWO, None, 4, route.key)
    assert routes.current(journal, "e") == done
    assert routes.at(journal, "e", datetime(2020, 1, 1, 0, 0, 5, tzinfo=UTC)).stable == ONE
    assert routes.at(journal, "e", datetime(2020, 1, 1, 0, 1, tzinfo=UTC)).stable == TWO
    with pytest.raises(NotFound):
        routes.at(journal, "e", datetime(2019, 1, 1, tzinfo=UTC))


def test_an_epoch_is_taken_once(tmp_path: Path) -> None:
    journal = Journal(f"sqlite:///{tmp_path / 'j.db'}")
    route = routes.put(journal, routes.first("e", ONE), cause="first")
    routes.put(journal, route.with_canary(TWO), cause="one process")
    with pytest.raises(Conflict):
        routes.put(journal, route.with_canary(TWO, weight=5), cause="another process")


def test_a_new_canary_draws_its_users_anew() -> None:
    route = routes.first("e", ONE).with_canary(TWO, weight=100)
    other = route.without_canary().with_canary(Arm("v3", "3" * 64), weight=100)
    assert other.salt != route.salt


def test_a_route_survives_json() -> None:
    route = routes.first("e", ONE).with_canary(TWO, weight=100, shadow=True)
    assert Route.from_json(json.loads(json.dumps(route.to_json()))) == route
    part = replace(route, only={"carrier": ("AA",)}, without={"origin": ("JFK", "LGA")}, override=("never",))
    assert Route.from_json(json.loads(json.dumps(part.to_json()))) == part


def test_a_route_of_an_earlier_time_is_still_read() -> None:
    """Before there could be several candidates a route named its canary, weight and shadow beside stable."""
    old = {"endpoint": "e", "epoch": 2, "stable": {"version": "v1", "manifest": "1"}, "salt": "s", "key": "k"}
    told = {**old, "canary": {"version": "v2", "manifest": "2"}, "weight": 100, "shadow": True}
    assert Route.from_json(told) == Route("e", 2, Arm("v1", "1"), (Share(Arm("v2", "2"), 100, True),), "s", "k")
    alone = {**old, "canary": None, "weight": 0, "shadow": False}
    assert Route.from_json(alone) == Route("e", 2, Arm("v1", "1"), salt="s", key="k")


@pytest.mark.parametrize(
    "candidates",
    [
        (Share(TWO, 10_001),),
        (Share(TWO, -1),),
        (Share(TWO, 6000), Share(Arm("v3", "3"), 5000)),
        (Share(TWO), Share(TWO)),
        (Share(ONE),),
    ],
)
def test_impossible_routes_are_refused(candidates: tuple[Share, ...]) -> None:
    with pytest.raises(InvalidRequest):
        Route("e", 1, ONE, candidates)


def test_any_of_several_candidates_can_become_stable() -> None:
    three = Arm("v3", "3" * 64)
    route = routes.first("e", ONE).with_candidates((Share(TWO, 100), Share(three, 200)))
    assert route.promoted().stable == TWO
    done = route.promoted("v3")
    assert (done.stable, done.candidates, done.epoch) == (three, (), 3)
    with pytest.raises(Conflict, match="no candidate v9"):
        route.promoted("v9")


def test_there_is_nothing_to_promote_without_a_canary() -> None:
    with pytest.raises(Conflict, match="no canary"):
        routes.first("e", ONE).promoted()
