"""A replica's own listener: opens when it can answer, shares its port, answers what is in work before it closes."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import httpx
import pytest
from tiny import ROW, Project

from ct import settings
from ct.serving import door
from ct.serving.door import Door
from ct.serving.endpoint import Endpoint
from ct.serving.limits import Limits
from ct.serving.local import free_port
from ct.serving.replica import Replica
from ct.serving.runtime import Predictor


@pytest.fixture
def place(project: Project) -> settings.Settings:
    """The project's settings, with a port of its own."""
    return settings.load(project.settings.root, environ={}, direct_port=free_port())


def made(replica: Replica, place: settings.Settings, faults: list[str]) -> Door:
    app = Limits(Endpoint(replica), place, answered=replica.telemetry.limited)
    return Door(app, place, ready=lambda: replica.slots.live is not None, fault=faults.append)


async def answer(client: httpx.AsyncClient, trip: str = "t1", tries: int = 100) -> dict[str, Any]:
    for _ in range(tries):
        try:
            found = await client.post("/predict", json={**ROW, "trip": trip})
        except httpx.TransportError:
            await asyncio.sleep(0.05)
            continue
        assert found.status_code == 200, found.text
        return dict(found.json())
    raise AssertionError("nobody answered")


def test_it_opens_when_a_route_is_in_force_and_answers_what_is_in_work_before_it_closes(
    project: Project, place: settings.Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_go, score, begun = threading.Event(), Predictor.score, threading.Event()

    def slow(self: Predictor, rows: Any, times: Any, history: Any) -> Any:
        if rows["trip"][0] == "slow":
            begun.set()
            let_go.wait(30)
        return score(self, rows, times, history)

    async def act() -> None:
        faults: list[str] = []
        replica = Replica(place, "tiny")
        listener = made(replica, place, faults)
        open_ = asyncio.create_task(listener.keep_open())
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{place.direct_port}", timeout=20) as client:
            await asyncio.sleep(0.3)
            with pytest.raises(httpx.ConnectError):
                await client.get("/v2/health/live")
            route = project.first()
            project.put(route.with_canary(project.version("v2"), weight=0))
            replica.converge()
            assert (await answer(client))["model_version"] == "v1"
            monkeypatch.setattr(Predictor, "score", slow)
            replica.slots.loaded["v2"].proven = 0  # so it has a thread of its own, and the loop goes on meanwhile
            late = asyncio.create_task(client.post("/predict", json={**ROW, "trip": "slow"}, headers={"x-canary": "always"}))
            assert await asyncio.to_thread(begun.wait, 30)
            closing = asyncio.create_task(listener.close())
            await asyncio.sleep(0.2)
            async with httpx.AsyncClient() as other:
                with pytest.raises(httpx.ConnectError):
                    await other.get(str(client.base_url))
            let_go.set()
            assert (await late).status_code == 200
            await closing
        await asyncio.wait_for(open_, 30)
        assert not faults

    asyncio.run(act())


def test_two_share_the_port_and_one_goes_without_the_other(project: Project, place: settings.Settings) -> None:
    project.first()

    async def act() -> tuple[int, int]:
        replicas = [Replica(place, "tiny") for _ in range(2)]
        doors = [made(replica, place, []) for replica in replicas]
        tasks = [asyncio.create_task(one.keep_open()) for one in doors]

        async def ask(at: int) -> None:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{place.direct_port}") as client:  # a connection each
                await answer(client, f"t{at}")

        asked, both = 0, [0, 0]
        while not min(both):  # they open one after the other
            assert asked < 2_000, "one of them gets nothing"
            await asyncio.gather(*(ask(asked + at) for at in range(40)))
            asked += 40
            both = [sum(replica.telemetry.codes.values()) for replica in replicas]
        assert sum(both) == asked
        await doors[0].close()
        for at in range(5):
            await ask(at)
        assert sum(replicas[0].telemetry.codes.values()) == both[0]
        await doors[1].close()
        await asyncio.wait_for(asyncio.gather(*tasks), 30)
        return both[0], both[1]

    asyncio.run(act())


def test_a_port_that_another_program_holds_is_told_and_tried_again(
    project: Project, place: settings.Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.first()
    monkeypatch.setattr(door, "AGAIN_SECONDS", 0.2)

    async def act() -> None:
        taken = await asyncio.start_server(lambda *_: None, "127.0.0.1", place.direct_port)  # shares it with nobody
        faults: list[str] = []
        listener = made(Replica(place, "tiny"), place, faults)
        open_ = asyncio.create_task(listener.keep_open())
        until = time.monotonic() + 30
        while not faults and time.monotonic() < until:
            await asyncio.sleep(0.02)
        assert faults[0] == "door:OSError"
        taken.close()
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{place.direct_port}") as client:
            assert (await answer(client))["model_version"] == "v1"
        await listener.close()
        await asyncio.wait_for(open_, 30)

    asyncio.run(act())
