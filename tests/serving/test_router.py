"""Assignment is sticky, monotone and as large as the weight; the circuit opens and stays open."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ct.errors import InvalidRequest
from ct.registry.routes import WHOLE, Arm, Route, Share
from ct.serving.router import CANARY, STABLE, Assignment, Circuit, assign, bucket

weights = st.integers(0, WHOLE)


def route(weight: int, salt: str = "s") -> Route:
    return Route("e", 2, Arm("v1", "a"), (Share(Arm("v2", "b"), weight),), salt=salt)


@given(st.text(min_size=1), st.text(max_size=100), weights, weights)
def test_a_unit_keeps_the_canary_while_the_weight_grows(unit: str, salt: str, one: int, other: int) -> None:
    low, high = sorted((one, other))
    if assign(route(low, salt), unit).arm == CANARY:
        assert assign(route(high, salt), unit).arm == CANARY
    assert assign(route(low, salt), unit) == assign(route(low, salt), unit)


@given(st.text())
def test_the_ends_of_the_weight_are_exact(unit: str) -> None:
    assert assign(route(0), unit).arm == STABLE
    assert assign(route(WHOLE), unit).arm == CANARY


def test_the_share_is_the_weight_and_salts_draw_anew() -> None:
    units = [f"u{at}" for at in range(20_000)]
    chosen = {unit for unit in units if assign(route(1000), unit).arm == CANARY}
    other = {unit for unit in units if assign(route(1000, "t"), unit).arm == CANARY}
    assert 1850 < len(chosen) < 2150
    assert 130 < len(chosen & other) < 270
    assert all(0 <= bucket("s", "") < WHOLE for _ in range(100))


def test_a_header_forces_an_arm_and_is_marked() -> None:
    assert assign(route(0), "u", "always") == Assignment(CANARY, forced=True)
    assert assign(route(WHOLE), "u", "never") == Assignment(STABLE, forced=True)
    assert assign(Route("e", 1, Arm("v1", "a")), "u", "always") == Assignment(STABLE, forced=True)
    with pytest.raises(InvalidRequest, match="x-canary"):
        assign(route(0), "u", "maybe")


def test_an_override_that_the_route_does_not_allow_is_refused() -> None:
    closed = replace(route(5000), override=("never",))
    assert assign(closed, "u", "never") == Assignment(STABLE, forced=True)
    with pytest.raises(InvalidRequest, match="x-canary"):
        assign(closed, "u", "always")


def test_several_candidates_share_the_traffic_as_their_weights_say() -> None:
    shares = (Share(Arm("v2", "b"), 2000), Share(Arm("v3", "c"), 3000))
    three = Route("e", 2, Arm("v1", "a"), shares, salt="s")
    arms = Counter(assign(three, f"u{at}").arm for at in range(20_000))
    assert {arm: round(count / 20_000, 1) for arm, count in arms.items()} == {"stable": 0.5, "canary": 0.2, "canary-2": 0.3}
    assert three.shares == {"stable": 5000, "canary": 2000, "canary-2": 3000}


def test_only_the_segments_asked_for_get_a_candidate() -> None:
    part = replace(route(WHOLE), only={"carrier": ("AA", "UA")}, without={"origin": ("JFK",)})
    assert assign(part, "u", context={"carrier": "AA", "origin": "LGA"}) == Assignment(CANARY)
    assert assign(part, "u", context={"carrier": "DL", "origin": "LGA"}) == Assignment(STABLE, forced=True)
    assert assign(part, "u", context={"carrier": "AA", "origin": "JFK"}) == Assignment(STABLE, forced=True)
    assert assign(part, "u") == Assignment(STABLE, forced=True)


def test_the_circuit_opens_after_failures_in_a_row_and_stays_open() -> None:
    circuit = Circuit(limit=3)
    for ok in (False, False, True, False, False):
        circuit.record(ok)
    assert not circuit.open
    circuit.record(False)
    circuit.record(True)
    assert circuit.open
