"""From a verdict to the next route: epochs follow each other, salts stay, ends end."""

import pytest

import ct
from ct.registry.routes import Arm, first
from ct.rollout.steps import enter, follow
from ct.rollout.verdict import Verdict

PLAN = ct.Canary(10, 50, 100)
OLD, NEW = Arm("v1", "m1"), Arm("v2", "m2")


def test_a_whole_rollout() -> None:
    route, step = enter(PLAN, first("e", OLD), NEW, 0), 0
    assert (route.epoch, route.weight, route.share) == (2, 1000, 0.1)
    weights, salt = [route.weight], route.salt
    while True:
        move = follow(PLAN, route, step, Verdict("promote", "fine"))
        assert move.route is not None
        assert move.route.epoch == route.epoch + 1
        route, step = move.route, move.step
        if move.outcome:
            break
        weights.append(route.weight)
        assert route.salt == salt  # so that users stay on their arm
    assert (weights, move.outcome, route.stable, route.canary) == ([1000, 5000, 10000], "promoted", NEW, None)


@pytest.mark.parametrize("step", [0, 1, 2])
def test_rolling_back_gives_stable_everything(step: int) -> None:
    move = follow(PLAN, enter(PLAN, first("e", OLD), NEW, step), step, Verdict("roll_back", "harm"))
    assert move.outcome == "rolled_back"
    assert move.route is not None
    assert (move.route.stable, move.route.canary, move.route.weight) == (OLD, None, 0)


@pytest.mark.parametrize("decision", ["continue", "hold"])
def test_waiting_changes_nothing(decision: str) -> None:
    route = enter(PLAN, first("e", OLD), NEW, 1)
    move = follow(PLAN, route, 1, Verdict(decision, ""))  # type: ignore[arg-type]
    assert (move.route, move.step, move.outcome) == (None, 1, "")


def test_a_shadow_gets_no_weight_and_no_canary_no_move() -> None:
    route = enter(ct.Shadow(), first("e", OLD), NEW, 0)
    assert (route.weight, route.shadow) == (0, True)
    assert follow(PLAN, first("e", OLD), 0, Verdict("roll_back", "")).route is None
