"""Who gets through each door: every path of the table without a token, with a wrong one, with each role. Over ASGI, no Ray."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import httpx
import pytest
from tiny import ROW, Project

from ct import settings
from ct.errors import Unavailable
from ct.governance import access
from ct.governance.access import ROLES, may
from ct.serving import paths
from ct.serving.access import COPY, Access, Gate, hosts
from ct.serving.endpoint import Endpoint
from ct.serving.limits import Limits
from ct.serving.paths import PATHS
from ct.serving.replica import Replica
from ct.serving.replies import App
from ct.store.journal import Journal

PARTS = {"model": "tiny", "version": "v1", "table": "trips"}
DOORS = [pytest.param(path, method, id=f"{method} {path.template}") for path in PATHS for method in path.methods]


class Guarded:
    """A project with a token of each role, and the endpoint behind its access layer."""

    def __init__(self, project: Project) -> None:
        self.project = project
        project.first()
        self.secrets = {role: access.create(project.journal, f"a-{role}", role)[1] for role in ROLES}
        past = datetime.now(UTC) + timedelta(milliseconds=30)
        self.expired = access.create(project.journal, "an-expired", "admin", expires=past)[1]
        self.revoked = access.create(project.journal, "a-revoked", "admin")[1]
        access.revoke(project.journal, "a-revoked")
        self.replica, self.gate = Replica(project.settings, "tiny"), Gate(project.settings)
        self.access = Access(Endpoint(self.replica), self.gate, paths.found, answered=self.replica.telemetry.answered)
        self.app = Limits(self.access, project.settings)

    def ask(self, method: str, path: str, token: str | None = None, **options: Any) -> httpx.Response:
        async def go() -> httpx.Response:
            transport = httpx.ASGITransport(app=self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as made:
                headers = {"authorization": f"Bearer {token}"} if token is not None else {}
                return await made.request(method, path, headers=headers | options.pop("headers", {}), **options)

        return asyncio.run(go())


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Guarded:
    from ct.store.artifacts import Artifacts

    place = settings.load(tmp_path_factory.mktemp("guarded"), environ={}, max_body_bytes=4096, max_rows=100)
    made = Guarded(Project(place, Artifacts(place.place("artifacts")), Journal(place.database)))
    while datetime.now(UTC) < access.tokens(made.project.journal)[len(ROLES)].expires:  # type: ignore[operator]
        pass
    return made


def _address(path: paths.Path) -> str:
    return path.template.format(**PARTS)


@pytest.mark.parametrize(("path", "method"), DOORS)
def test_every_door_asks_for_its_role(guarded: Guarded, path: paths.Path, method: str) -> None:
    address, changed = _address(path), guarded.project.journal.head()
    body = {"json": {}} if method == "POST" else {}
    wrong = {
        "absent": None,
        "malformed": "ct_x",
        "unknown": f"ct_{'0' * 12}_{'0' * 64}",
        "expired": guarded.expired,
        "revoked": guarded.revoked,
    }
    if not path.role:
        assert guarded.ask(method, address, **body).status_code == 200
        return
    for name, token in wrong.items():
        answer = guarded.ask(method, address, token, **body)
        assert answer.status_code == 401, name
        assert answer.headers["www-authenticate"] == "Bearer"
    for role, secret in guarded.secrets.items():
        answer = guarded.ask(method, address, secret, **body)
        if may(role, path.role):
            assert answer.status_code not in (401, 403), role
        else:
            assert answer.status_code == 403, role
            assert method == "HEAD" or answer.json()["error"] == "Forbidden"
    assert guarded.project.journal.head() == changed


def test_refusals_cannot_be_told_apart(guarded: Guarded) -> None:
    """B31: the same bytes for every kind of wrong token; and the body is not parsed."""
    near = guarded.secrets["predict"][:-1] + ("0" if guarded.secrets["predict"][-1] != "0" else "1")
    shown = [None, "", "ct_x", near, guarded.expired, guarded.revoked, guarded.secrets["predict"].upper(), "x" * 10_000]
    answers = [guarded.ask("POST", "/predict", token, json=ROW, headers={"x-request-id": "r1"}) for token in shown]
    assert {answer.status_code for answer in answers} == {401}
    assert len({answer.content for answer in answers}) == 1
    assert len({tuple(sorted(answer.headers.items())) for answer in answers}) == 1
    bad = guarded.ask("POST", "/predict", None, content=b"[" * 4000, headers={"content-type": "application/json"})
    assert bad.status_code == 401


def test_only_one_bearer_header_counts(guarded: Guarded) -> None:
    secret = guarded.secrets["admin"]
    for options in (
        {"params": {"token": secret, "access_token": secret}},
        {"headers": {"cookie": f"token={secret}; authorization=Bearer {secret}"}},
        {"headers": {"x-api-key": secret, "proxy-authorization": f"Bearer {secret}"}},
        {"headers": {"authorization": secret}},
        {"headers": {"authorization": f"Basic {secret}"}},
    ):
        assert guarded.ask("GET", "/metrics", **options).status_code == 401, options

    async def twice() -> int:
        transport = httpx.ASGITransport(app=guarded.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as made:
            header = ("authorization", f"Bearer {secret}")
            return (await made.get("/metrics", headers=[header, header])).status_code

    assert asyncio.run(twice()) == 401
    assert guarded.ask("GET", "/metrics", secret).status_code == 200


@pytest.mark.parametrize(
    "path", ["/predict/", "//predict", "/PREDICT", "/predict;x", "/v2/../predict", "/%2e%2e/predict", "/docs"]
)
def test_what_is_not_in_the_table_is_not_there(guarded: Guarded, path: str) -> None:
    for token in (None, guarded.secrets["admin"]):
        scope = {"type": "http", "method": "POST", "path": path, "headers": _raw(token)}
        assert asyncio.run(_status(guarded.app, scope)) == 404


def test_browsers_get_no_cross_origin_answer_and_no_socket(guarded: Guarded) -> None:
    asked = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    answer = guarded.ask("OPTIONS", "/predict", guarded.secrets["admin"], headers=asked)
    assert answer.status_code == 405
    answers = [answer, guarded.ask("GET", "/healthz", headers=asked), guarded.ask("GET", "/metrics", headers=asked)]
    assert not [name for found in answers for name in found.headers if name.startswith("access-control")]
    assert not [name for found in answers for name in found.headers if name == "set-cookie"]
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "websocket", "path": "/predict", "headers": []}
    asyncio.run(guarded.app(scope, None, send))  # type: ignore[arg-type]
    assert sent == [{"type": "websocket.close", "code": 1008}]


def _raw(token: str | None, host: str = "127.0.0.1") -> list[tuple[bytes, bytes]]:
    shown = [(b"authorization", f"Bearer {token}".encode())] if token else []
    return [(b"host", host.encode()), *shown]


async def _status(app: App, scope: dict[str, Any]) -> int:
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return int(sent[0]["status"])


@pytest.mark.parametrize(
    ("bound", "named", "host", "status"),
    [
        ("127.0.0.1", (), "127.0.0.1:8000", 200),
        ("127.0.0.1", (), "LocalHost:8000", 200),
        ("127.0.0.1", (), "[::1]:8000", 200),
        ("127.0.0.1", (), "evil.example:8000", 421),
        ("127.0.0.1", (), "127.0.0.1.evil.example", 421),
        ("127.0.0.1", (), "", 421),
        ("127.0.0.1", ("models.example",), "models.example", 200),
        ("0.0.0.0", (), "anything.example", 200),
        ("0.0.0.0", ("models.example",), "anything.example", 421),
    ],
)
def test_a_name_made_to_point_here_is_not_answered(
    guarded: Guarded, bound: str, named: tuple[str, ...], host: str, status: int
) -> None:
    place = guarded.project.settings.model_copy(update={"hosts": named})
    app = Access(Endpoint(guarded.replica), guarded.gate, paths.found, hosts=hosts(place, bound))
    scope = {"type": "http", "method": "GET", "path": "/healthz", "headers": _raw(None, host)}
    assert asyncio.run(_status(app, scope)) == status


def test_a_gate_learns_of_new_and_revoked_tokens(project: Project) -> None:
    gate = Gate(project.settings)
    assert gate.admit("", "admin") is None
    _, secret = access.create(project.journal, "shop", "predict")
    gate.refresh()
    assert gate.admit(secret, "predict") is not None
    access.revoke(project.journal, "shop")
    gate.refresh()
    for shown in (secret, ""):
        with pytest.raises(access.Unauthenticated):
            gate.admit(shown, "predict")


def test_beyond_loopback_a_gate_is_never_open(project: Project) -> None:
    """A node that was away since before the first token holds an empty copy, and may start while the database is away."""
    assert Gate(project.settings).admit("", "admin") is None
    beyond = project.settings.model_copy(update={"host": "0.0.0.0"})
    away = beyond.model_copy(update={"database_url": "postgresql+psycopg://nobody@127.0.0.1:1/none"})
    for place in (beyond, away):
        with pytest.raises(access.Unauthenticated):
            Gate(place).admit("", "predict")
        assert Gate(place).admit("", "") is None


def test_a_gate_polls_by_itself(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ct.serving.access.POLL_SECONDS", 0.02)
    gate = Gate(project.settings)

    async def act() -> None:
        task = asyncio.create_task(gate.keep_current())
        _, secret = access.create(project.journal, "shop", "predict")
        await _until(lambda: _opens(gate, secret) and not _opens(gate, ""))
        access.revoke(project.journal, "shop")
        await _until(lambda: not _opens(gate, secret))
        task.cancel()

    asyncio.run(act())


async def _until(true: Callable[[], bool]) -> None:
    for _ in range(3_000):
        if true():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come to pass within 30 s")


def _opens(gate: Gate, secret: str) -> bool:
    try:
        gate.admit(secret, "predict")
    except access.Unauthenticated:
        return False
    return True


def test_without_its_database_a_replica_keeps_the_tokens_it_knew(project: Project) -> None:
    _, secret = access.create(project.journal, "shop", "predict")
    known = Gate(project.settings)
    away = project.settings.model_copy(update={"database_url": "postgresql+psycopg://nobody@127.0.0.1:1/none"})
    copy = project.settings.home / COPY
    assert copy.stat().st_mode & 0o777 == 0o600
    assert secret.rpartition("_")[2] not in copy.read_text()
    known._settings, known._journal = away, None
    with pytest.raises(Unavailable):
        known.refresh()
    assert _opens(known, secret)
    started = Gate(away)
    assert _opens(started, secret)
    assert not _opens(started, "")
    copy.chmod(0o644)
    for closed in (Gate(away),):
        for shown in (secret, ""):
            with pytest.raises(Unavailable):
                closed.admit(shown, "predict")


def test_asking_costs_microseconds(guarded: Guarded) -> None:
    scope = {"path": "/predict", "headers": [(b"content-type", b"application/json"), *_raw(guarded.secrets["predict"])]}
    times = []
    for _ in range(3000):
        begun = perf_counter_ns()
        guarded.access._admit(scope)
        times.append(perf_counter_ns() - begun)
    middle = sorted(times)[len(times) // 2] / 1000
    print(f"{middle:.1f} microseconds a request")
    assert middle < 50


def test_no_secret_is_in_a_log_an_answer_or_a_file(guarded: Guarded, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    shown = {**guarded.secrets, "expired": guarded.expired, "revoked": guarded.revoked}
    said = []
    for secret in shown.values():
        for method, path in (
            ("POST", "/predict"),
            ("GET", "/metrics"),
            ("POST", "/labels"),
            ("GET", "/nowhere"),
            ("PUT", "/v2"),
        ):
            answer = guarded.ask(method, path, secret, json=ROW)
            said.append(answer.text + json.dumps(dict(answer.headers)))
    said.append(guarded.ask("GET", "/metrics", guarded.secrets["read"]).text)
    said.append(caplog.text)
    stored = b"".join(path.read_bytes() for path in Path(guarded.project.settings.root).rglob("*") if path.is_file())
    assert len(stored) > 10_000
    for secret in shown.values():
        hidden = secret.rpartition("_")[2]
        assert not [text for text in said if hidden in text]
        assert hidden.encode() not in stored
