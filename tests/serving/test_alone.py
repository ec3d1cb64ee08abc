"""A replica left alone: without database, without store, with a candidate that cannot be loaded, with an order on its disk."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import ROW, Project

from ct.data import predictions
from ct.errors import Corrupt, Unavailable
from ct.registry import files, flags, pinned
from ct.registry.routes import WHOLE, Route
from ct.serving import replica as module
from ct.serving.replica import Replica
from ct.settings import Settings

UNITS = [f"u{at}" for at in range(30)]


def _away(project: Project) -> Settings:
    """The project with its store gone, and a database that does not answer."""
    shutil.rmtree(project.settings.place("artifacts"))
    return project.settings.model_copy(update={"database_url": "postgresql://nobody@127.0.0.1:1/none"})


def _canary(project: Project, weight: int = WHOLE) -> Route:
    route = project.first().with_canary(project.version("v2", 1.0), weight=weight)
    return project.put(route)


async def _versions(replica: Replica) -> set[str]:
    return {(await replica.predict([ROW], unit=unit)).version for unit in UNITS}


def _following(replica: Replica, work: Callable[[], Awaitable[Any]]) -> Any:
    """Do `work` while the replica polls."""

    async def run() -> Any:
        tasks = [asyncio.create_task(part) for part in (replica.keep_converging(), replica.keep_heeding())]
        try:
            return await work()
        finally:
            for task in tasks:
                task.cancel()

    return asyncio.run(run())


async def _until(true: Callable[[], bool], seconds: float = 30.0) -> None:
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.02)


def test_it_starts_from_the_last_known_good_without_database_and_store(project: Project) -> None:
    route = _canary(project)
    Replica(project.settings, "tiny")
    replica = Replica(_away(project), "tiny")
    assert replica.slots.route == route
    assert asyncio.run(_versions(replica)) == {"v2"}


def test_a_damaged_pin_or_file_makes_it_wait_not_lie(project: Project) -> None:
    _canary(project)
    Replica(project.settings, "tiny")
    away = _away(project)
    cache = pinned.cache(away)
    route = pinned.pinned(away, "tiny")
    assert route is not None
    assert route.canary is not None
    held = Path(cache.address(cache.manifest(route.canary.manifest)[files.ONNX]))
    held.write_bytes(held.read_bytes()[:-1])
    replica = Replica(away, "tiny")
    assert asyncio.run(_versions(replica)) == {"v1"}, "stable is whole"
    (pin,) = (away.home / "pinned").glob("*.json")
    pin.write_text("{}")
    with pytest.raises(Unavailable, match="no version is live"):
        Replica(away, "tiny").slots.require()


def test_a_candidate_that_cannot_be_loaded_costs_stable_nothing_and_is_journaled_once(project: Project) -> None:
    project.first()
    whole = project.version("v2", 1.0)
    stored = Path(project.artifacts.address(project.artifacts.manifest(whole.manifest)[files.ONNX]))
    bytes_ = stored.read_bytes()
    stored.write_bytes(b"no graph")
    route = project.put(Replica(project.settings, "tiny").slots.require().route.with_canary(whole, weight=WHOLE))
    replica = Replica(project.settings, "tiny")
    assert replica.slots.epoch == route.epoch
    assert asyncio.run(_versions(replica)) == {"v1"}
    refused = list(project.journal.read("audit/tiny"))
    assert [(event.type, event.data["version"]) for event in refused] == [("ArtifactRefused", "v2")]
    logged = predictions.read(project.settings.inbox)[0]
    assert {(record["version"], record["error"]) for record in logged} == {("v1", "")}
    stored.write_bytes(bytes_)  # it was restored: the replica finds that out by itself

    async def restored() -> set[str]:
        await _until(lambda: not replica.slots.missing)
        await _until(lambda: replica.slots.require().route == route)
        return await _versions(replica)

    assert _following(replica, restored) == {"v2"}


def test_a_candidate_whose_loading_breaks_is_told_as_such(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.first()
    arm, replica = project.version("v2", 1.0), Replica(project.settings, "tiny")

    def load(*_: object, **__: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr("ct.serving.slots.Predictor.load", load)
    for _ in range(2):
        with pytest.raises(Corrupt, match="v2 cannot be loaded: MemoryError"):
            replica.stage("v2", arm.manifest)
    (event,) = project.journal.read("audit/tiny")
    assert (event.type, event.data["error"]) == ("LoadFailed", "MemoryError")
    assert asyncio.run(_versions(replica)) == {"v1"}


def test_an_order_on_disk_stops_the_candidate_within_a_second_until_a_newer_route(project: Project) -> None:
    route = _canary(project)
    replica = Replica(project.settings, "tiny")
    assert asyncio.run(_versions(replica)) == {"v2"}

    async def stopped() -> set[str]:
        pinned.abort_offline(project.settings, "tiny", by="ann", cause="it lies")
        await _until(lambda: not replica.slots.require().route.candidates, 1.0)
        return await _versions(replica)

    assert _following(replica, stopped) == {"v1"}
    assert asyncio.run(_versions(Replica(project.settings, "tiny"))) == {"v1"}, "one that starts then obeys too"
    newer = project.put(route.with_canary(project.version("v3", 2.0), weight=WHOLE))

    async def newest() -> set[str]:
        await _until(lambda: replica.slots.require().route == newer)
        return await _versions(replica)

    assert _following(replica, newest) == {"v3"}


def test_half_an_order_stops_the_candidate_too(project: Project) -> None:
    _canary(project)
    place = pinned.order_place(project.settings, "tiny")
    place.parent.mkdir(parents=True)
    replica = Replica(project.settings, "tiny")
    place.write_text('{"epo')
    replica._heed()
    assert asyncio.run(_versions(replica)) == {"v1"}


def test_its_health_is_a_real_prediction_and_a_log_that_is_written(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    replica = Replica(project.settings, "tiny")
    asyncio.run(replica.check())
    project.first()
    replica.converge()
    asyncio.run(replica.check())
    predictor = replica.slots.require().stable.predictor
    with monkeypatch.context() as broken:
        broken.setattr(type(predictor), "_run", lambda *_: np.array([0.5]))
        with pytest.raises(Corrupt, match="golden rows"):
            asyncio.run(replica.check())
    asyncio.run(replica.check())
    monkeypatch.setattr(module, "CHECK_SECONDS", 0.2)
    replica._inbox.close()
    with pytest.raises(Unavailable, match="writer"):
        asyncio.run(replica.check())


def test_flags_are_obeyed_within_seconds_and_kept_for_a_day_without_database(project: Project) -> None:
    _canary(project)
    replica = Replica(project.settings, "tiny")

    async def switched() -> set[str]:
        flags.set_(project.journal, "tiny", "own.theme", {"dark": True})
        flags.set_(project.journal, "tiny", "canary", "off")
        await _until(lambda: not replica.flags.canary)
        return await _versions(replica)

    assert _following(replica, switched) == {"v1"}
    assert replica.flags.own == {"theme": {"dark": True}}
    away = _away(project)
    alone = Replica(away, "tiny")
    assert alone.flags == replica.flags
    assert asyncio.run(_versions(alone)) == {"v1"}
    (kept,) = (away.home / "pinned").glob("*.flags")
    kept.write_text('{"canary": "maybe"}')
    assert asyncio.run(_versions(Replica(away, "tiny"))) == {"v1"}, "what cannot be read permits nothing"
