"""The control API over real HTTP: roles at every door, one answer for one key, epochs, conflicts, errors as JSON."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from ct.api import application
from ct.api.doors import DOORS, Door
from ct.registry import publishing, versions
from ct.rollout import state
from tests.api.served import BASE, Api
from tests.control import rolling
from tests.registry.made import made


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """One for tests after which nothing is changed."""
    found = Api(rolling.actor(tmp_path_factory.mktemp("quiet") / "p", rolling.PLANS["canary"]))
    yield found
    assert [event.type for event in found.act.journal.read(state.stream(rolling.LINE))] == []
    assert found.act.route().epoch == 1
    found.close()


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    found = Api(rolling.actor(tmp_path / "p", rolling.PLANS["canary"]))
    yield found
    found.close()


def test_every_door_asks_for_its_role(quiet: Api) -> None:
    def path(door: Door) -> str:
        return door.path.format(endpoint=rolling.LINE, rollout="r1", flag="canary")

    for door in DOORS:
        if not door.role:
            assert quiet.ask(door.method, path(door), role="").status_code == 200
            continue
        assert quiet.ask(door.method, path(door), role="").status_code == 401, door
        assert quiet.ask(door.method, path(door), role="ct_wrong").status_code == 401, door
        assert quiet.ask(door.method, path(door), role="predict").status_code == 403, door
        if door.role == "operate":
            assert quiet.ask(door.method, path(door), role="read").status_code == 403, door
        else:
            assert quiet.ask(door.method, path(door), role="read").status_code in (200, 404), door
    assert quiet.act.route().epoch == 1


def test_one_key_is_one_rollout(api: Api) -> None:
    begun = api.ask("POST", f"{BASE}/rollouts", {"versions": ["v2"]}, idempotency_key="k1")
    assert (begun.status_code, begun.json()["id"], begun.json()["state"]) == (202, "r1", "Progressing")
    again = api.ask("POST", f"{BASE}/rollouts", {"versions": ["v2"]}, idempotency_key="k1")
    assert (again.status_code, again.json()) == (202, begun.json())
    other = api.ask("POST", f"{BASE}/rollouts", {"versions": ["v3"]}, idempotency_key="k1")
    assert (other.status_code, "another request" in other.json()["found"]) == (409, True)
    second = api.ask("POST", f"{BASE}/rollouts", {"versions": ["v3"]}, idempotency_key="k2")
    assert (second.status_code, "in progress" in second.json()["found"]) == (409, True)
    again = api.ask("POST", f"{BASE}/rollouts", {"versions": ["v3"]}, idempotency_key="k2", x_request_id="mine")
    assert again.json() == second.json() | {"request_id": "mine"}
    other = api.ask("POST", f"{BASE}/rollouts", {"versions": ["v3"]}, role="admin", idempotency_key="k1")
    assert "in progress" in other.json()["found"], "a key is its caller's own"
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
    assert [told["events"][at]["type"] for at in (0, -1)] == ["RolloutStarted", "RolloutClosed"]
    assert api.ask("GET", f"{BASE}/history").json()["history"][-1]["cause"] == "undone by hand: back to v1"
    text = api.ask("GET", "/metrics", role="read").text
    assert f'ct_rollout_weight{{endpoint="{rolling.LINE}",arm="stable",version="v1"}} 1' in text
    assert f'ct_rollbacks_total{{endpoint="{rolling.LINE}",reason="by_hand"}} 1' in text


def test_flags(api: Api) -> None:
    assert api.ask("GET", f"{BASE}/flags").json()["canary"] is True
    assert api.ask("PUT", f"{BASE}/flags/canary", {"value": False, "reason": "a test"}).json()["canary"] is False
    wrong = api.ask("PUT", f"{BASE}/flags/canry", {"value": False})
    assert (wrong.status_code, "canary" in wrong.json()["remedy"]) == (422, True)


def test_who_did_it_is_whose_token_it_was(api: Api) -> None:
    api.ask("POST", f"{BASE}/rollouts", {"versions": ["v2"]}, idempotency_key="k1")
    api.ask("POST", f"{BASE}/rollouts/r1:pause", role="admin")
    api.ask("PUT", f"{BASE}/flags/canary", {"value": False})
    told = [(event.type, event.actor) for event in api.act.journal.read()]
    done = told[[kind for kind, _ in told].index("Asked") :]
    assert {who for kind, who in done if kind not in ("RolloutPaused", "FlagSet")} == {"operate (operate)"}
    assert {("Asked", "operate (operate)"), ("RolloutStarted", "operate (operate)"), ("RouteSet", "operate (operate)")} <= set(
        done
    )
    assert done[-2:] == [("RolloutPaused", "admin (admin)"), ("FlagSet", "operate (operate)")]
    assert api.ask("GET", f"{BASE}/rollouts/r1").json()["events"][-1]["by"] == "admin (admin)"
    api.act.pause()
    assert list(api.act.journal.read(state.stream(rolling.LINE)))[-1].actor == "ann", "a token speaks for its request only"


def test_a_gate_is_overruled_by_an_admin_only(api: Api) -> None:
    act = api.act
    publishing.publish(act.journal, act.artifacts, rolling.LINE, made("d"), run="d", verdict="fail", metrics={"auc": 0.4})
    asked = {"versions": ["v4"], "override": "we know better"}
    refused = api.ask("POST", f"{BASE}/rollouts", asked, idempotency_key="k1")
    assert (refused.status_code, "'operate'" in refused.json()["found"], "admin" in refused.json()["expected"]) == (
        403,
        True,
        True,
    )
    assert not versions.get(act.journal, rolling.LINE, "v4").override
    plain = api.ask("POST", f"{BASE}/rollouts", {"versions": ["v4"]}, role="admin")
    assert (plain.status_code, "verdict 'fail'" in plain.json()["found"]) == (409, True)
    assert api.ask("POST", f"{BASE}/rollouts", asked, role="admin", idempotency_key="k1").status_code == 202
    assert versions.get(act.journal, rolling.LINE, "v4").override == "admin (admin): we know better"


@pytest.mark.parametrize(
    ("path", "body", "status", "field"),
    [
        ("/rollouts", b"{", 400, ""),
        ("/rollouts", b"[]", 400, ""),
        ("/rollouts", b"{}", 422, "versions"),
        ("/rollouts", b'{"versions": [1]}', 422, "versions"),
        ("/rollouts", b'{"versions": []}', 422, "versions"),
        ("/rollouts", b'{"versions": "v2"}', 422, "versions"),
        ("/rollouts", b'{"version": "v2"}', 422, "version"),
        ("/rollouts", b'{"versions": ["v2"], "versions": ["v3"]}', 400, "versions"),
        ("/rollouts", b'{"versions": ["v9"]}', 404, ""),
        ("/rollouts", b'{"versions": ["v1"]}', 409, ""),
        ("/rollouts", b'{"versions": ["v2", "v3"]}', 409, ""),
        ("/rollouts", b" " * 70_000, 413, ""),
        ("/rollouts/r9:abort", b"{}", 404, ""),
        ("/rollouts/r9:retry", b"{}", 404, ""),
        ("/rollouts/r1:set-weight", b"{}", 422, "percent"),
        ("/rollouts/r1:set-weight", b'{"percent": true}', 422, "percent"),
        ("/rollouts/r1:set-weight", b'{"percent": 101}', 422, "percent"),
        ("/rollouts/r1:set-weight", b'{"percent": 1, "weights": {"v2": 1}}', 422, "percent"),
        ("/rollouts/r1:set-weight", b'{"weights": {}}', 422, "weights"),
        ("/rollouts/r1:set-weight", b'{"weights": {"v2": 1.5}}', 422, "weights"),
        ("/rollouts/r1:pause", b'{"percent": 3}', 422, "percent"),
        (":undo", b'{"to": "v3"}', 404, ""),
        (":undo", b"", 404, ""),
        ("/nowhere", b"{}", 404, ""),
        ("/flags", b"{}", 405, ""),
    ],
)
def test_bad_requests_are_answered_as_json(quiet: Api, path: str, body: bytes, status: int, field: str) -> None:
    headers = {"authorization": f"Bearer {quiet.secrets['operate']}", "x-request-id": "q1", "content-type": "application/json"}
    found = quiet.client.post(BASE + path, content=body, headers=headers)
    said = found.json()
    assert found.status_code == status, found.text
    assert set(said) == {"code", "error", "found", "expected", "remedy", "field", "request_id"}
    assert (said["code"], said["field"], said["request_id"], found.headers["x-request-id"]) == (status, field, "q1", "q1")
    assert said["found"]
    assert said["remedy"]


def test_nothing_is_read_of_who_may_not(quiet: Api) -> None:
    def sent(head: str, *parts: bytes, pause: float = 0.0) -> bytes:
        with socket.create_connection(("127.0.0.1", quiet.port), timeout=20) as line:
            line.sendall(head.encode())
            for part in parts:
                time.sleep(pause)
                line.sendall(part)
            return line.recv(65_536)

    head = f"POST {BASE}/rollouts HTTP/1.1\r\nhost: x\r\ncontent-length: 60000\r\ncontent-type: application/json\r\n"
    assert b" 401 " in sent(head + "\r\n"), "before a byte of the body came"
    long = head.replace("60000", "600000") + f"authorization: Bearer {quiet.secrets['operate']}\r\n\r\n"
    assert b" 413 " in sent(long)


def test_slow_senders_are_ended(quiet: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quiet.act, "settings", quiet.act.settings.model_copy(update={"body_seconds": 0.3}))
    monkeypatch.setattr("ct.serving.door.HEAD_SECONDS", 0.3)
    head = f"POST {BASE}/rollouts HTTP/1.1\r\nhost: x\r\ncontent-length: 60\r\ncontent-type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", quiet.port), timeout=20) as line:
        line.sendall((head + f"authorization: Bearer {quiet.secrets['operate']}\r\n\r\n{{").encode())
        said = line.recv(65_536)
        assert b" 408 " in said
        assert b"1 bytes of the body after 0.3 s" in said
        assert line.recv(100) == b"", "and closed"
    with socket.create_connection(("127.0.0.1", quiet.port), timeout=20) as line:
        begun = time.monotonic()
        with suppress(OSError):
            for letter in head:  # never still for long, and never whole
                line.sendall(letter.encode())
                time.sleep(0.05)
        assert time.monotonic() - begun < 0.05 * len(head)
    assert quiet.ask("GET", "/healthz").status_code == 200


def test_other_types_pages_and_crowds_are_refused(quiet: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    headers = {"authorization": f"Bearer {quiet.secrets['operate']}"}
    plain = quiet.client.post(
        f"{BASE}/rollouts", content=b'{"versions": ["v2"]}', headers=headers | {"content-type": "text/plain"}
    )
    assert (plain.status_code, plain.json()["field"]) == (415, "content-type")
    coded = quiet.client.post(f"{BASE}/rollouts", content=b"x", headers=headers | {"content-encoding": "gzip"})
    assert (coded.status_code, coded.json()["field"]) == (415, "content-encoding")
    page = quiet.ask("POST", f"{BASE}:undo", origin="http://127.0.0.1:8100")
    assert (page.status_code, "web page" in page.json()["found"]) == (403, True)
    monkeypatch.setattr(application, "MOST_IN_WORK", 0)
    crowd = quiet.ask("POST", f"{BASE}:undo")
    assert (crowd.status_code, crowd.headers["retry-after"]) == (503, "1")
