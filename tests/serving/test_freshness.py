"""The endpoint and its online store: how fresh it is, on Redis as on a file, and what happens when it is away."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from tiny import FEATURES, ROW, Project

from ct import settings
from ct.data import predictions
from ct.features.online import OnlineStore
from ct.serving.endpoint import Endpoint
from ct.serving.replica import Replica
from ct.store.artifacts import Artifacts
from ct.store.journal import Journal

WINDOW = FEATURES[2].outputs()[0].name
PUSHED = {**ROW, "trip": "t0", "leaves": "2024-05-01T07:00:00Z", "late": 6.0, "arrives": "2024-05-01T08:00:00Z"}
Client = httpx.AsyncClient


def run(project: Project, act: Callable[[Client, Replica], Any]) -> Any:
    async def go() -> Any:
        replica = Replica(project.settings, "tiny")
        transport = httpx.ASGITransport(app=Endpoint(replica))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as made:
            return await act(made, replica)

    return asyncio.run(go())


@pytest.fixture
def shared(tmp_path: Any, redis_url: str) -> Project:
    """A project whose online store is on a server."""
    found = settings.load(tmp_path, environ={}, online_url=redis_url)
    return Project(found, Artifacts(found.place("artifacts")), Journal(found.database))


async def pushed_and_asked(made: Client, _: Replica) -> str:
    assert (await made.post("/observe/trips", json={"rows": [PUSHED]})).json() == {"stored": 1}
    assert (await made.post("/predict", json=ROW)).status_code == 200
    return (await made.get("/metrics")).text


def check(project: Project) -> None:
    project.first()
    text = run(project, pushed_and_asked)
    (record,) = predictions.read(project.settings.inbox)[0]
    assert record["features"][WINDOW] == 6.0
    source = 'endpoint="tiny",source="trips by bus: late known at arrives"'
    assert re.search(rf'ct_online_newest_timestamp_seconds{{{source},replica="\w+"}} 1714550400\n', text)
    assert re.search(rf'ct_online_filled_timestamp_seconds{{{source},replica="\w+"}} \d+', text)


def test_metrics_tell_how_fresh_the_file_is(project: Project) -> None:
    check(project)


def test_metrics_tell_how_fresh_the_server_is(shared: Project) -> None:
    check(shared)
    assert not shared.settings.online.exists()


def test_a_server_that_is_away_is_no_fault_of_a_version(shared: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """503, to be asked again; the canary is not blamed, and nothing is made up."""
    from ct.errors import Unavailable

    shared.first()

    def away(*_: Any) -> Any:
        raise Unavailable("the online store does not answer")

    async def act(made: Client, _: Replica) -> httpx.Response:
        monkeypatch.setattr(OnlineStore, "history", away)
        monkeypatch.setattr(OnlineStore, "freshness", away)
        found = await made.post("/predict", json=ROW)
        assert 'ct_faults_total{endpoint="tiny",kind="Unavailable",replica=' in (await made.get("/metrics")).text
        monkeypatch.undo()
        assert (await made.post("/predict", json=ROW)).status_code == 200
        return found

    found = run(shared, act)
    assert (found.status_code, found.headers["retry-after"]) == (503, "1")
    assert len(predictions.read(shared.settings.inbox)[0]) == 1
