"""A version apart is ended when nobody asks it any more: not by the journal's route alone, but when every replica goes by it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from ray import serve
from tiny import Project

from ct.errors import Conflict, Unavailable
from ct.registry import routes
from ct.registry.routes import Arm
from ct.serving.client import Serving

APP = "tiny--apart"


class Cluster:
    """Serve as the control side sees it: `looks` are the states of the replicas that answer, one list a look; `running` how many there are."""

    def __init__(self, looks: list[list[dict[str, Any]]], running: int = 2) -> None:
        self.looks, self.running, self.deleted = looks, running, list[str]()

    def status(self) -> Any:
        states = {"RUNNING": self.running, "STARTING": 1, "STOPPING": 1}
        endpoint = SimpleNamespace(deployments={"endpoint": SimpleNamespace(replica_states=states)})
        apps = {APP: SimpleNamespace(status="DELETING" if self.deleted else "RUNNING", deployments={})}
        return SimpleNamespace(applications={**apps, **({"tiny": endpoint} if self.running else {})})

    def state(self) -> list[dict[str, Any]]:
        found = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        if not found:
            raise Unavailable("nobody answers")
        return found


def replica(epoch: int, in_flight: int = 0) -> dict[str, Any]:
    return {"epoch": epoch, "in_flight": {"apart": in_flight, "v1": 3}}


@pytest.fixture
def arm(project: Project) -> Iterator[Arm]:
    """A version apart that was stable in epoch 1 and is named no more in epoch 2."""
    found = replace(project.version("apart", 1.0), app=APP)
    route = project.put(routes.first("tiny", found))
    project.put(replace(route.without_canary(), stable=project.version("v1")))
    return found


def removing(project: Project, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Serving:
    monkeypatch.setattr(serve, "status", cluster.status)
    monkeypatch.setattr(serve, "delete", lambda name, _blocking: cluster.deleted.append(name))
    made = Serving(project.settings, "tiny")
    monkeypatch.setattr(made, "state", cluster.state)
    return made


def test_it_waits_for_every_replica_to_go_by_the_new_route_and_then_for_its_requests(
    project: Project, arm: Arm, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = [
        [replica(2)],  # one hangs
        [],
        [replica(2), replica(1)],  # one has not heard of it: nothing is in flight there at this moment
        [replica(2), replica(2, in_flight=1)],
        [replica(2), replica(2)],
    ]
    cluster = Cluster(looks)
    assert removing(project, cluster, monkeypatch).remove_arm(arm)
    assert cluster.deleted == [APP]
    assert cluster.looks == [[replica(2), replica(2)]], "all were looked at"
    assert not removing(project, cluster, monkeypatch).remove_arm(arm)


@pytest.mark.parametrize(
    ("look", "said"),
    [
        ([replica(2), replica(1)], "goes by epoch 1 of 2"),
        ([replica(2)], "1 of 2 replicas do not answer"),
        ([], "2 of 2 replicas do not answer"),
        ([replica(2), replica(2, in_flight=1)], "its requests have not ended"),
    ],
)
def test_it_lives_on_when_that_does_not_come_in_time(
    project: Project, arm: Arm, monkeypatch: pytest.MonkeyPatch, look: list[dict[str, Any]], said: str
) -> None:
    cluster = Cluster([look])
    with pytest.raises(Unavailable, match=said):
        removing(project, cluster, monkeypatch).remove_arm(arm, seconds=0.2)
    assert cluster.deleted == []


def test_a_route_that_names_it_anew_meanwhile_keeps_it(project: Project, arm: Arm, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster([[replica(2, in_flight=1), replica(2)], [replica(3), replica(3)]])
    looked = cluster.state

    def state() -> list[dict[str, Any]]:
        route = routes.current(project.journal, "tiny")
        assert route is not None
        if route.epoch == 2:
            project.put(route.with_canary(arm))
        return looked()

    monkeypatch.setattr(cluster, "state", state)
    with pytest.raises(Conflict, match="the route names tiny--apart"):
        removing(project, cluster, monkeypatch).remove_arm(arm)
    assert cluster.deleted == []


def test_without_an_endpoint_nobody_asks_it(project: Project, arm: Arm, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster([[]], running=0)
    assert removing(project, cluster, monkeypatch).remove_arm(arm)
