"""Versions side by side: what is not whole is not staged, what is newer wins, what is used stays."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import Project

from ct.errors import Conflict, Corrupt, NotFound, Unavailable
from ct.registry import files, routes
from ct.registry.routes import WHOLE, Arm, Route, Share
from ct.serving import slots as module
from ct.serving.router import assign
from ct.serving.slots import Slots


def test_upgrade_in_place_drains_what_is_in_flight(project: Project) -> None:
    slots = Slots(project.artifacts)
    one, two = project.version("v1"), project.version("v2", 1.0)
    with pytest.raises(Unavailable):
        slots.require()
    slots.stage(one.version, one.manifest)
    first = routes.first("tiny", one)
    assert slots.activate(first) == 1
    old = slots.require().stable
    old.in_flight += 1  # as a request does
    slots.stage(two.version, two.manifest)
    assert slots.activate(first.with_canary(two, weight=5000)) == 2
    slots.activate(slots.require().route.promoted())
    assert set(slots.loaded) == {"v1", "v2"}
    old.in_flight -= 1
    slots.drain()
    assert set(slots.loaded) == {"v2"}


def test_an_older_route_and_an_unstaged_version_change_nothing(project: Project) -> None:
    slots = Slots(project.artifacts)
    one = project.version("v1")
    first = routes.first("tiny", one)
    with pytest.raises(Unavailable, match="v1 is not loaded"):
        slots.activate(first)
    slots.stage(one.version, one.manifest)
    slots.activate(first)
    with pytest.raises(Unavailable):
        slots.activate(first.with_canary(Arm("v2", "0" * 64)))
    assert slots.activate(first) == 1
    assert slots.require().route == first


def test_damaged_missing_or_renamed_files_are_not_staged(project: Project) -> None:
    slots = Slots(project.artifacts)
    one, two = project.version("v1"), project.version("v2", 1.0)
    stored = Path(project.artifacts.address(two.manifest))
    stored.write_bytes(stored.read_bytes() + b" ")
    with pytest.raises(Corrupt):
        slots.stage("v2", two.manifest)
    with pytest.raises(NotFound):
        slots.stage("v3", "0" * 64)
    slots.stage("v1", one.manifest)
    with pytest.raises(Conflict):
        slots.stage("v1", two.manifest)
    assert set(slots.loaded) == {"v1"}


def test_a_staged_version_waits_for_its_route_but_not_for_ever(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    slots = Slots(project.artifacts)
    one, two = project.version("v1"), project.version("v2", 1.0)
    for arm in (one, two):
        slots.stage(arm.version, arm.manifest)
    slots.activate(routes.first("tiny", one))
    slots.drain()
    assert set(slots.loaded) == {"v1", "v2"}
    monkeypatch.setattr(module, "STAGED_SECONDS", 0.0)
    slots.drain()
    assert set(slots.loaded) == {"v1"}


def test_a_candidate_that_is_not_here_gets_nothing_until_it_is(project: Project) -> None:
    slots = Slots(project.artifacts)
    one, two, three = project.version("v1"), project.version("v2", 1.0), project.version("v3", 2.0)
    route = routes.first("tiny", one).with_candidates((Share(two, 2000), Share(three, 3000, shadow=True)))
    with pytest.raises(Unavailable, match="v1 is not loaded"):
        slots.activate(route, partly=True)
    slots.stage("v1", one.manifest)
    assert slots.activate(route, partly=True) == 2
    assert slots.missing == (two, three)
    assert slots.route == route
    assert slots.require().route.candidates == ()
    slots.stage("v3", three.manifest)
    slots.refresh()
    live = slots.require()
    assert live.route.shares == {"stable": 7000, "canary": 0, "canary-2": 3000}
    assert live.circuits["canary"].open, "stable stands in for it, and nobody gets stable under its name"
    assert not live.circuits["canary-2"].open
    live.circuits["canary-2"].record(False)
    slots.stage("v2", two.manifest)
    slots.refresh()
    assert slots.require().route == route
    assert [circuit.failures for circuit in slots.require().circuits.values()] == [0, 1], "what was counted stays"
    assert not slots.require().circuits["canary"].open
    assert slots.missing == ()


def test_one_of_several_that_is_dropped_is_let_go_and_the_others_keep_name_and_users(project: Project) -> None:
    slots = Slots(project.artifacts)
    one, two, three = project.version("v1"), project.version("v2", 1.0), project.version("v3", 2.0)
    for arm in (one, two, three):
        slots.stage(arm.version, arm.manifest)
    route = routes.first("tiny", one).with_candidates((Share(two, 2000), Share(three, 3000)))
    units = [f"u{at}" for at in range(300)]
    slots.activate(route)
    before = {unit: assign(slots.require().route, unit).arm for unit in units}
    assert set(before.values()) == {"stable", "canary", "canary-2"}
    slots.activate(Route.from_json(route.dropping("v2").to_json()))
    live = slots.require()
    assert {unit: assign(live.route, unit).arm for unit in units} == {
        unit: "stable" if arm == "canary" else arm for unit, arm in before.items()
    }
    assert (live.slot("canary-2").predictor.version, slots.missing) == ("v3", ())
    assert set(slots.loaded) == {"v1", "v3"}
    assert live.circuits["canary"].open, "nobody gets stable under its name"
    slots.activate(route.dropping("v2").promoted("v3"))
    assert slots.require().stable.predictor.version == "v3"


def test_an_order_stops_candidates_up_to_its_epoch(project: Project) -> None:
    slots = Slots(project.artifacts)
    one, two = project.version("v1"), project.version("v2", 1.0)
    for arm in (one, two):
        slots.stage(arm.version, arm.manifest)
    route = routes.first("tiny", one).with_canary(two, weight=WHOLE, shadow=True)
    slots.activate(route)
    slots.halt(route.epoch)
    assert slots.require().route == replace(route, candidates=())
    assert slots.epoch == route.epoch
    slots.drain()
    assert set(slots.loaded) == {"v1", "v2"}, "the route names it still"
    slots.halt(0)
    assert slots.require().route == route
    slots.halt(route.epoch)
    newer = route.with_canary(two, weight=100)
    slots.activate(newer)
    assert slots.require().route == newer


def test_no_version_is_loaded_beyond_the_bound_and_none_is_forgotten_for_one(project: Project) -> None:
    one, two = project.version("v1"), project.version("v2", 1.0)
    slots = Slots(project.artifacts, most_bytes=1 << 40)
    assert slots.stage("v1", one.manifest).size >= len(files.fetch(project.artifacts, one.manifest)[files.ONNX])
    slots = Slots(project.artifacts, most_bytes=10)
    with pytest.raises(Unavailable, match="max_model_bytes"):
        slots.stage("v1", one.manifest)
    slots = Slots(project.artifacts, most_bytes=1 << 40)
    slots.stage("v1", one.manifest)
    slots.activate(routes.first("tiny", one))
    slots._most = slots.size + 10
    with pytest.raises(Unavailable, match="v2 needs"):
        slots.stage("v2", two.manifest)
    assert set(slots.loaded) == {"v1"}
    assert slots.stage("v1", one.manifest) is slots.require().stable


def test_loading_holds_up_neither_what_is_loaded_nor_a_change_of_the_route(project: Project) -> None:
    one, two = project.version("v1"), project.version("v2", 1.0)
    begun, go = threading.Event(), threading.Event()

    def fetch(manifest: str) -> Mapping[str, bytes]:
        if manifest == two.manifest:
            begun.set()
            assert go.wait(30)
        return files.fetch(project.artifacts, manifest)

    slots = Slots(project.artifacts, fetch=fetch)
    slots.stage("v1", one.manifest)
    loading = threading.Thread(target=slots.stage, args=("v2", two.manifest))
    loading.start()
    assert begun.wait(30)
    slots.stage("v1", one.manifest)
    assert slots.activate(routes.first("tiny", one)) == 1
    go.set()
    loading.join(30)
    assert set(slots.loaded) == {"v1", "v2"}
