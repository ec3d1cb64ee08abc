"""Versions side by side: what is not whole is not staged, what is newer wins, what is used stays."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import Project

from ct.errors import Conflict, Corrupt, NotFound, Unavailable
from ct.registry import routes
from ct.registry.routes import Arm
from ct.serving import slots as module
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
    with old.using():
        slots.stage(two.version, two.manifest)
        assert slots.activate(first.with_canary(two, weight=5000)) == 2
        slots.activate(slots.require().route.promoted())
        assert set(slots.loaded) == {"v1", "v2"}
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
