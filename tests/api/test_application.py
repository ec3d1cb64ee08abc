"""The control API over real HTTP: roles at every door, one answer for one key, epochs, conflicts, errors as JSON."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from ct.api.application import build
from ct.api.doors import DOORS, Door
from ct.control.act import Actor
from ct.governance import access
from tests.control import rolling

BASE = f"/v1/endpoints/{rolling.LINE}"


class Api:
    """A served project and who may do what there."""

    def __init__(self, root: Path) -> None:
        self.act: Actor = rolling.actor(root, rolling.PLANS["canary"])
        self.secrets = {role: access.create(self.act.journal, role, role)[1] for role in ("read", "operate", "predict")}
        held = socket.socket()
        held.bind(("127.0.0.1", 0))
        self.server = uvicorn.Server(uvicorn.Config(build(self.act), log_level="error"))
        threading.Thread(target=self.server.run, kwargs={"sockets": [held]}, daemon=True).start()
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{held.getsockname()[1]}", trust_env=False, timeout=30)
        while not self.server.started:
            time.sleep(0.01)

    def ask(self, method: str, path: str, body: Any = None, role: str = "operate", **headers: str) -> httpx.Response:
        if role:
            headers["authorization"] = f"Bearer {self.secrets.get(role, role)}"
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.request(method, path, json=body, headers=named)


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    made = Api(tmp_path / "p")
    yield made
    made.client.close()
    made.server.should_exit = True


def test_every_door_asks_for_its_role(api: Api) -> None:
    def path(door: Door) -> str:
        return door.path.format(endpoint=rolling.LINE, rollout="r1", flag="canary")

    for door in DOORS:
        if not door.role:
            assert api.ask(door.method, path(door), role="").status_code == 200
            continue
        assert api.ask(door.method, path(door), role="").status_code == 401, door
        assert api.ask(door.method, path(door), role="ct_wrong").status_code == 401, door
        assert api.ask(door.method, path(door), role="predict").status_code == 403, door
        if door.role == "operate":
            assert api.ask(door.method, path(door), role="read").status_code == 403, door
        else:
            assert api.ask(door.method, path(door), role="read").status_code in (200, 404), door
    assert api.act.route().epoch == 1


def test_one_key_is_one_rollout(api: Api) -> None:
    begun = api.ask("POST", f"{BASE}/rollouts", {"versions": ["v2"]}, idempotency_key="k1")
    assert (begun.status_code, begun.json()["id"], begun.json()["state"]) == (202, "r1", "Progressing")
    again = api.ask("POST", f"{BASE}/rollouts", {"versions": ["v2"]}, idempotency_key="k1")
    assert (again.status_code, again.json()) == (202, begun.json())
    other = api.ask("POST", f"{BASE}/rollouts", {"versions": ["v3"]}, idempotency_key="k1")
    assert (other.status_code, "another request" in other.json()["found"]) == (409, True)
    second = api.ask("POST", f"{BASE}/rollouts", {"versions": ["v3"]}, idempotency_key="k2")
    assert (second.status_code, "in progress" in second.json()["found"]) == (409, True)
    assert api.ask("POST", f"{BASE}/rollouts", {"versions": ["v3"]}, idempotency_key="k2").json() == second.json()
    assert len(api.ask("GET", f"{BASE}/rollouts").json()["rollouts"]) == 1


def test_steering_by_epoch_until_the_end(api: Api) -> None:
    api.ask("POST", f"{BASE}/rollouts", {"versions": ["v2"]})
    stale = api.ask("POST", f"{BASE}/rollouts/r1:promote", if_match='"1"')
    assert (stale.status_code, stale.json()["error"]) == (412, "Stale")
    moved = api.ask("POST", f"{BASE}/rollouts/r1:promote", if_match='"2"')
    assert (moved.status_code, moved.headers["etag"], moved.json()["route"]["shares"]["canary"]) == (200, '"3"', 10_000)
    assert "key" not in moved.json()["route"]
    for verb, body, shown in (
        ("pause", None, "Paused"), ("resume", None, "Progressing"), ("set-weight", {"percent": 5}, "Paused"), ("abort", None, "RolledBack")
    ):  # fmt: skip
        found = api.ask("POST", f"{BASE}/rollouts/r1:{verb}", body)
        assert (found.status_code, found.json()["rollout"]["state"]) == (200, shown), found.text
    assert api.ask("POST", f"{BASE}/rollouts/r1:abort").status_code == 409
    assert api.ask("POST", f"{BASE}/rollouts/r1:retry").json()["id"] == "r2"
    assert api.ask("POST", f"{BASE}/rollouts/r2:promote", {"full": True}).json()["route"]["stable"]["version"] == "v2"
    assert api.ask("POST", f"{BASE}:undo", {"to": "v1"}).json()["route"]["stable"]["version"] == "v1"
    told = api.ask("GET", f"{BASE}/rollouts/r1").json()
    assert [told["events"][at]["type"] for at in (0, -1)] == ["RolloutStarted", "RolloutEnded"]
    assert api.ask("GET", f"{BASE}/history").json()["history"][-1]["cause"] == "undone by hand: back to v1"
    text = api.ask("GET", "/metrics", role="read").text
    assert f'ct_rollout_weight{{endpoint="{rolling.LINE}",arm="stable",version="v1"}} 1' in text
    assert f'ct_rollbacks_total{{endpoint="{rolling.LINE}",reason="by_hand"}} 1' in text


def test_flags(api: Api) -> None:
    assert api.ask("GET", f"{BASE}/flags").json()["canary"] is True
    assert api.ask("PUT", f"{BASE}/flags/canary", {"value": False, "reason": "a test"}).json()["canary"] is False
    wrong = api.ask("PUT", f"{BASE}/flags/canry", {"value": False})
    assert (wrong.status_code, "canary" in wrong.json()["remedy"]) == (422, True)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/rollouts", b"{", 400),
        ("/rollouts", b"[]", 400),
        ("/rollouts", b"{}", 422),
        ("/rollouts", b'{"versions": [1]}', 422),
        ("/rollouts", b'{"version": "v2"}', 422),
        ("/rollouts", b'{"versions": ["v9"]}', 404),
        ("/rollouts", b" " * 70_000, 413),
        ("/rollouts/r9:abort", b"{}", 404),
        ("/rollouts/r1:set-weight", b'{"percent": true}', 422),
        ("/nowhere", b"{}", 404),
    ],
)
def test_bad_requests_are_answered_as_json(api: Api, path: str, body: bytes, status: int) -> None:
    headers = {"authorization": f"Bearer {api.secrets['operate']}"}
    found = api.client.post(BASE + path, content=body, headers=headers)
    assert (found.status_code, set(found.json())) == (status, {"error", "found", "expected", "remedy"}), found.text
