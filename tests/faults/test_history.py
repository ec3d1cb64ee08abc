"""The soak's checker: a history of replicas that follow their routes holds, and each lie told in it is found."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.parts import history
from bench.parts.asking import Call
from ct.data.naming import PredictionIds
from ct.registry import routes
from ct.registry.routes import Arm, Route
from ct.serving.router import assign

KEY = "ab" * 16


def expected(version: str, row: Any) -> float:
    return int(version[1:]) + row["distance"] / 1000


@dataclass
class World:
    """A history: calls, the log, the routes."""

    calls: list[Call]
    log: list[dict[str, Any]]
    known: dict[int, Route]

    def broken(self) -> list[str]:
        return history.broken(self.calls, self.log, self.known, expected)


def world(seed: int) -> World:
    """Three replicas that follow the routes some time after they changed; calls overlap, some were tried more than once."""
    chance, now = random.Random(seed), 0.0
    ids = [PredictionIds(KEY, f"{at:08x}") for at in range(3)]
    route = replace(routes.first("tiny", Arm("v1", "m1")), key=KEY, epoch=1)
    known, held, made = {1: route}, [route] * 3, World([], [], {})
    for number in range(60):
        now += chance.random()
        if chance.random() < 0.2:
            if route.canary is None:
                route = route.with_canary(Arm(f"v{len(known) + 1}", "m"), weight=chance.choice((1_000, 5_000)))
            else:
                route = chance.choice((route.promoted, route.without_canary))()
            known[route.epoch] = route
        replica = chance.randrange(3)
        if chance.random() < 0.5:
            held[replica] = route
        found = held[replica]
        key, row = f"k-{number}", {"trip": f"k-{number}", "distance": chance.choice((1.0, 2.0))}
        arm = assign(found, key).arm
        version = dict(zip(found.shares, found.arms, strict=True))[arm].version
        faults = ("503",) * chance.choice((0, 0, 0, 1))
        label = float(number) if chance.random() < 0.3 else None
        score = expected(version, row)
        name = ids[replica].new()
        call = Call(0, key, row, now, now, now + chance.random(), 200, version, arm, found.epoch, name, score, faults, label)
        made.calls.append(call)
        kept = {"kind": "prediction", "id": name, "key": key, "version": version, "arm": arm, "epoch": found.epoch}
        made.log.append(kept | {"score": score, "error": "", "weight": found.weight})
        if faults:  # the lost answer of a try before may be in the log
            made.log.append(made.log[-1] | {"id": ids[replica].new()})
        if label is not None:
            made.log.append({"kind": "label", "id": name, "value": label})
    made.known = known
    return made


@given(st.integers(0, 10_000))
def test_a_history_that_holds_is_not_blamed(seed: int) -> None:
    assert world(seed).broken() == []


def _last(made: World) -> Call:
    return made.calls[-1]


def _kept(made: World, call: Call) -> dict[str, Any]:
    return next(record for record in made.log if record["id"] == call.id)


def lose(made: World) -> None:
    made.log.remove(_kept(made, _last(made)))


def twice(made: World) -> None:
    made.log.append(dict(_kept(made, _last(made))))


def invent(made: World) -> None:
    made.log.append(_kept(made, _last(made)) | {"id": "p-new", "key": "nobody"})


def another_version(made: World) -> None:
    _kept(made, _last(made))["version"] = "v77"


def another_epoch(made: World) -> None:
    _kept(made, _last(made))["epoch"] += 1


def another_score(made: World) -> None:
    made.calls[-1] = replace(_last(made), score=_last(made).score + 0.01)
    _kept(made, _last(made))["score"] += 0.01


def wrong_stable(made: World) -> None:
    call = next(call for call in made.calls if call.arm == "stable")
    at = made.calls.index(call)
    made.calls[at] = replace(call, version="v99", score=expected("v99", call.row))
    _kept(made, call).update(version="v99", score=expected("v99", call.row))


def wrong_arm(made: World) -> None:
    """A unit that belongs to stable is given the canary."""
    at, call, route = next(
        (at, call, made.known[call.epoch])
        for at, call in enumerate(made.calls)
        if call.arm == "stable" and made.known[call.epoch].canary is not None
    )
    assert route.canary is not None
    version = route.canary.version
    made.calls[at] = replace(call, version=version, arm="canary", score=expected(version, call.row))
    _kept(made, call).update(version=version, arm="canary", score=expected(version, call.row))


def held_back(made: World, **said: Any) -> None:
    """A unit that belongs to the canary is answered by stable."""
    at, call = next((at, call) for at, call in enumerate(made.calls) if call.arm == "canary")
    version = made.known[call.epoch].stable.version
    made.calls[at] = replace(call, version=version, arm="stable", score=expected(version, call.row))
    _kept(made, call).update(version=version, arm="stable", score=expected(version, call.row), **said)


def back(made: World) -> None:
    """The last call's replica answers once more, later, as the first epoch would."""
    last = next(call for call in reversed(made.calls) if call.epoch > 1)
    ids = PredictionIds(KEY, history.replica_of(last.id))
    name, row = ids.new(), {"trip": "late", "distance": 1.0}
    then = max(call.ended for call in made.calls) + 1
    score = expected("v1", row)
    made.calls.append(Call(0, "late", row, then, then, then + 1, 200, "v1", "stable", 1, name, score))
    made.log.append({"kind": "prediction", "id": name, "key": "late", "version": "v1", "arm": "stable", "epoch": 1, "score": score, "error": "", "weight": 0})  # fmt: skip


def gap(made: World) -> None:
    del made.known[2]


def lost_label(made: World) -> None:
    made.log.remove(next(record for record in made.log if record["kind"] == "label"))


def same_id(made: World) -> None:
    made.calls[0] = replace(made.calls[0], id=made.calls[1].id)


@pytest.mark.parametrize(
    ("lie", "told"),
    [
        (lose, "in the log 0 times"),
        (twice, "in the log 2 times"),
        (invent, "was sent 0 times"),
        (another_version, "told otherwise than logged"),
        (another_epoch, "told otherwise than logged"),
        (another_score, "which gives"),
        (wrong_stable, "whose arms are"),
        (wrong_arm, "belongs to stable"),
        (held_back, "belongs to canary"),
        (back, "after one in"),
        (gap, "gaps"),
        (lost_label, "was acknowledged and is not in the log"),
        (same_id, "was given 2 times"),
    ],
)
def test_every_lie_is_found(lie: Callable[[World], None], told: str) -> None:
    made = world(11)
    assert made.broken() == []
    lie(made)
    assert any(told in line for line in made.broken()), made.broken()


@pytest.mark.parametrize("said", [{"error": "circuit open"}, {"weight": 0}], ids=str)
def test_stable_may_stand_in_where_the_log_says_so(said: dict[str, Any]) -> None:
    made = world(11)
    held_back(made, **said)
    assert made.broken() == []


def test_the_last_answer_after_a_decision_is_measured() -> None:
    made = world(11)
    call = next(call for call in made.calls if call.arm == "canary")
    mine = [one.ended for one in made.calls if one.version == call.version and one.epoch < 10**6]
    assert history.last_by(made.calls, call.version, 10**6, max(mine) - 2.5) == pytest.approx(2.5)
    assert history.last_by(made.calls, call.version, 10**6, max(mine) + 1) == 0.0
