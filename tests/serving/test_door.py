"""A replica's own listener: opens when it can answer, shares its port, answers what is in work before it closes."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import httpx
import pytest
from listening import head, status
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
    ready, refused = (lambda: replica.slots.live is not None), replica.telemetry.limited
    return Door(app, place, ready=ready, fault=faults.append, refused=refused)


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


def opened(project: Project, place: settings.Settings, act: Callable[[Replica], Awaitable[Any]]) -> Any:
    """`act` while the listener of a replica with a route is open."""

    async def go() -> Any:
        replica = Replica(place, "tiny")
        listener = made(replica, place, [])
        open_ = asyncio.create_task(listener.keep_open())
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{place.direct_port}") as client:
            await answer(client)
        try:
            return await act(replica)
        finally:
            await listener.close()
            await asyncio.wait_for(open_, 30)

    project.first()
    return asyncio.run(go())


async def drip(place: settings.Settings, *parts: bytes, first: bytes = b"", every: float = 0.1) -> tuple[bytes, float]:
    """What comes back, and after how many seconds the other side closes, when `parts` are sent one after the other, again and again."""
    reader, writer = await asyncio.open_connection("127.0.0.1", place.direct_port)
    begun = time.monotonic()

    async def send() -> None:
        writer.write(first)
        for part in itertools.cycle(parts):
            await asyncio.sleep(every)
            writer.write(part)

    sending = asyncio.create_task(send())
    said = b""
    try:
        async with asyncio.timeout(20):
            while more := await reader.read(65536):
                said += more
    except ConnectionError:
        pass
    sending.cancel()
    took = time.monotonic() - begun
    writer.close()
    return said, took


POST = head("/predict", "content-type: application/json", f"content-length: {len(json.dumps(ROW))}")
WHOLE = POST + json.dumps(ROW).encode()


def test_a_request_s_head_must_come_in_time(
    project: Project, place: settings.Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slow headers, a connection that says nothing, empty lines after an answer, a body that goes on after its refusal: closed after a second,
    while a request whose body takes longer is not."""
    monkeypatch.setattr(door, "HEAD_SECONDS", 1.0)

    async def act(replica: Replica) -> tuple[list[tuple[bytes, float]], int]:
        cases = [
            drip(place, b"x-more: 1\r\n", first=b"POST /predict HTTP/1.1\r\nhost: localhost\r\n"),
            drip(place, b"", every=5),
            drip(place, b"\r\n", first=WHOLE),
            drip(place, b"x", first=WHOLE + b"GET /v2/"),
            drip(place, b"x", first=head("/nowhere", "content-length: 1000000")),
        ]
        found = await asyncio.gather(*cases)
        assert replica.telemetry.codes[408] == replica.telemetry.rejections["slow_sender"] == 2
        return found, await patient()

    async def patient() -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", place.direct_port)
        body = json.dumps(ROW).encode()
        writer.write(POST)
        for at in range(0, len(body), 20):  # for longer than a head may take
            await asyncio.sleep(0.25)
            writer.write(body[at : at + 20])
        line = await asyncio.wait_for(reader.readline(), 10)
        writer.close()
        return status(line)

    (head_, silent, lines, partly, refused), waited = opened(project, place, act)
    assert status(head_[0]) == 408
    assert json.loads(head_[0].partition(b"\r\n\r\n")[2])["found"] == "no whole head after 1 s"
    assert silent[0] == b""
    assert status(lines[0]) == status(partly[0]) == 200
    assert lines[0].count(b"HTTP/1.1") == 1
    assert partly[0].count(b"HTTP/1.1") == 2, "an answer, and then that the next head did not come"
    assert status(refused[0]) == 404
    for _, took in (head_, silent, lines, partly, refused):
        assert 0.5 < took < 15
    assert waited == 200


def test_a_head_has_a_size_and_a_replica_so_many_connections(
    project: Project, place: settings.Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "HEAD_BYTES", 4096)
    monkeypatch.setattr(door, "MOST_CONNECTIONS", 3)

    async def act(replica: Replica) -> tuple[bytes, bytes]:
        before = replica.telemetry.codes[200]
        long, _took = await drip(place, b"x-more: " + b"y" * 500 + b"\r\n", first=b"GET / HTTP/1.1\r\n", every=0.01)
        held = [await asyncio.open_connection("127.0.0.1", place.direct_port) for _ in range(3)]
        await asyncio.sleep(0.1)
        refused, _took = await drip(place, b"", every=5)
        assert (replica.telemetry.codes[431], replica.telemetry.rejections["busy"]) == (1, 1)
        for _, writer in held:
            writer.close()
        async with asyncio.timeout(20):
            while replica.telemetry.codes[200] < before + 1:
                with suppress(httpx.TransportError):
                    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{place.direct_port}") as client:
                        await client.get("/v2/health/live")
        return long, refused

    long, refused = opened(project, place, act)
    assert status(long) == 431
    assert status(refused) == 503
    assert b"retry-after: 1" in refused
    assert json.loads(refused.partition(b"\r\n\r\n")[2])["found"] == "too many connections"
