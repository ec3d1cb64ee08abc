"""The limits on a real socket: sizes, types, slow senders, deadlines, too many at once, and bytes that are no proper HTTP (B23 to B34)."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from listening import ask, head, listening, status
from tiny import ROW, Project

from ct import settings
from ct.data import predictions
from ct.serving.endpoint import Endpoint
from ct.serving.limits import Limits
from ct.serving.replica import Replica
from ct.store.artifacts import Artifacts
from ct.store.journal import Journal

JSON = "content-type: application/json"
BODY = json.dumps(ROW).encode()


@dataclass
class Held:
    """An endpoint on a socket. `slow` seconds pass before what comes to /labels is answered."""

    project: Project
    port: int
    limits: list[Limits]
    slow: float = 0.0

    def post(self, body: bytes, *lines: str, path: str = "/predict") -> bytes:
        return ask(self.port, head(path, JSON, f"content-length: {len(body)}", *lines) + body)

    @property
    def logged(self) -> int:
        return len(predictions.read(self.project.settings.inbox)[0])


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Held]:
    given = {"max_body_bytes": 4096, "max_rows": 10, "max_in_work": 4, "request_seconds": 1.0, "body_seconds": 0.5}
    place = settings.load(tmp_path_factory.mktemp("held"), environ={}, **given)
    project = Project(place, Artifacts(place.place("artifacts")), Journal(place.database))
    project.first()
    made = Held(project, 0, [])

    def make() -> Any:
        replica = Replica(place, "tiny")
        inside = Endpoint(replica)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            async def late() -> Any:
                message = await receive()
                await asyncio.sleep(made.slow if scope["path"] == "/labels" else 0)
                return message

            await inside(scope, late, send)

        made.limits.append(Limits(app, place, answered=replica.telemetry.answered))
        return made.limits[0]

    with listening(make) as port:
        made.port = port
        yield made


@pytest.fixture(autouse=True)
def answers_afterwards(held: Held) -> Iterator[None]:
    """Whatever came: the endpoint is as healthy as before, and nothing is counted as in work."""
    held.slow = 0.0
    yield
    until = time.monotonic() + 30
    while held.limits[0].in_work and time.monotonic() < until:
        time.sleep(0.02)
    assert held.limits[0].in_work == 0
    assert status(held.post(BODY)) == 200


@pytest.mark.parametrize(
    ("lines", "body", "expected"),
    [
        (("content-length: 4097",), b"{" + b" " * 4096, 413),
        (("content-length: 99999999999999999999999",), b"{", 400),
        (("content-length: 1000000",), b"{}", 413),
        (("content-length: -1",), b"{}", 400),
        (("content-length: 2", "content-length: 3"), b"{}x", 400),
        (("content-length: 5", "transfer-encoding: chunked"), b"0\r\n\r\nGET / HTTP/1.1\r\n\r\n", 400),
        ((), b"", 400),
    ],
    ids=["a byte too many", "no number fits", "lying", "negative", "twice", "smuggled", "missing"],
)
def test_a_body_of_a_wrong_length(held: Held, lines: tuple[str, ...], body: bytes, expected: int) -> None:
    before = held.logged
    said = ask(held.port, head("/predict", JSON, *lines) + body, silence=0.2)
    assert status(said) == expected, said
    assert said.count(b"HTTP/1.1") == 1, "what follows a refused head is never a request of its own"
    assert held.logged == before


def test_an_endless_body_is_cut_off_at_the_bound(held: Held) -> None:
    """Chunks would come for ever; the answer is there when the bound is passed, and the connection ends."""
    chunks = [b"200\r\n" + b"x" * 512 + b"\r\n"] * 200
    begun = time.monotonic()
    said = ask(held.port, head("/predict", JSON, "transfer-encoding: chunked"), *chunks, pause=0.03)
    assert status(said) == 413
    assert b"connection: close" in said.lower()
    assert time.monotonic() - begun < 10, "the bound was passed after nine chunks"


@pytest.mark.parametrize(
    "lines",
    [
        (),
        ("content-type: text/plain",),
        ("content-type: multipart/form-data; boundary=x",),
        ("content-type: application/x-www-form-urlencoded",),
        ("content-type: application/json; charset=utf-16",),
        (JSON, "content-type: text/plain"),
        (JSON, "content-encoding: gzip"),
        (JSON, "content-encoding: br"),
    ],
)
def test_other_types_and_encodings(held: Held, lines: tuple[str, ...]) -> None:
    said = ask(held.port, head("/predict", *lines, f"content-length: {len(BODY)}") + BODY)
    assert status(said) == (400 if lines[:1] == (JSON,) and "text/plain" in lines[1] else 415), said


@pytest.mark.parametrize("form", ["application/json; charset=utf-8", 'Application/JSON; charset="UTF-8"'])
def test_json_in_other_words_is_json(held: Held, form: str) -> None:
    assert status(ask(held.port, head("/predict", f"content-type: {form}", f"content-length: {len(BODY)}") + BODY)) == 200


def test_a_slow_sender_is_told_and_closed_while_others_are_answered(held: Held) -> None:
    """One byte each 0.1 s: 408 when the body's time is over, long before the body would have come."""
    drops = [head("/predict", JSON, f"content-length: {len(BODY)}"), *(BODY[at : at + 1] for at in range(40))]
    said: list[bytes] = []
    slow = threading.Thread(target=lambda: said.append(ask(held.port, *drops, pause=0.1)))
    begun = time.monotonic()
    slow.start()
    took = []
    while slow.is_alive() and time.monotonic() < begun + 10:
        at = time.monotonic()
        assert status(held.post(BODY)) == 200
        took.append(time.monotonic() - at)
    slow.join()
    assert status(said[0]) == 408
    assert b"connection: close" in said[0].lower()
    assert len(took) > 3


@pytest.mark.parametrize("asked", ["0.2", "99", None])
def test_a_request_has_a_deadline(held: Held, asked: str | None) -> None:
    """The header shortens it and cannot make it longer than the setting, 1 s here."""
    held.slow, begun = 6.0, time.monotonic()
    said = held.post(b'{"labels": []}', *([f"x-request-timeout-seconds: {asked}"] if asked else []), path="/labels")
    took = time.monotonic() - begun
    assert status(said) == 504, said
    assert (0.15 if asked == "0.2" else 0.9) < took < 5.9


@pytest.mark.parametrize("asked", ["0", "-1", "nan", "inf", "1e999", "soon", ""])
def test_a_deadline_that_is_none(held: Held, asked: str) -> None:
    said = held.post(BODY, f"x-request-timeout-seconds: {asked}")
    assert status(said) == (200 if asked == "1e999" else 400), said


def test_too_many_at_once_are_refused_at_once_and_probes_are_not(held: Held) -> None:
    """Four are in work; what comes then is told when to come again, in much less time than the four take."""
    held.slow = 0.6
    answers: list[int] = []
    four = [
        threading.Thread(target=lambda: answers.append(status(held.post(b'{"labels": 7}', path="/labels")))) for _ in range(4)
    ]
    for one in four:
        one.start()
    until = time.monotonic() + 30
    while held.limits[0].in_work < 4 and time.monotonic() < until:
        time.sleep(0.01)
    begun = time.monotonic()
    said = held.post(BODY)
    ready = ask(held.port, head("/v2/health/ready", method="GET"))
    for one in four:
        one.join()
    assert status(said) == 503
    assert b"retry-after: 1" in said
    assert status(ready) == 200
    assert answers == [422] * 4
    assert time.monotonic() - begun < 15


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("POST", "//predict", 404),
        ("POST", "/predict/", 404),
        ("POST", "/predict;x=1", 404),
        ("POST", "/PREDICT", 404),
        ("POST", "/v2/%2e%2e/predict", 404),
        ("POST", "/v2/../predict", 404),
        ("POST", "/predict%00", 404),
        ("POST", "/predict%0a", 404),
        ("PUT", "/predict", 405),
        ("TRACE", "/predict", 405),
        ("POST", "/healthz", 405),
        ("OPTIONS", "/labels", 405),
        ("GET", "/v2/models/tiny/versions/v9", 404),
        ("GET", "/v2/models/other", 404),
        ("GET", "/-/anything", 404),
    ],
)
def test_other_doors(held: Held, method: str, path: str, expected: int) -> None:
    said = ask(held.port, head(path, JSON, f"content-length: {len(BODY)}", method=method) + BODY)
    assert status(said) == expected, said
    assert json.loads(said.partition(b"\r\n\r\n")[2])["code"] == expected


def test_what_is_no_http_is_refused(held: Held) -> None:
    for sent in (
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"POST /predict\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\0" * 64,
        b"A" * 100_000,
    ):
        said = ask(held.port, sent + b"\r\n\r\n", timeout=1.0)
        assert status(said) in (0, 400, 415), said[:200]
        assert b"Traceback" not in said


def test_pipelined_requests_are_answered_each_and_in_order(held: Held) -> None:
    before = held.logged
    ends = ((), (), ("connection: close",))  # after the last answer, so that nothing is waited for
    one = [
        head("/predict", JSON, f"x-request-id: r{at}", f"content-length: {len(BODY)}", *more) + BODY
        for at, more in enumerate(ends)
    ]
    said = ask(held.port, b"".join(one), timeout=30.0, silence=30.0)
    until = time.monotonic() + 30
    while held.logged < before + 3 and time.monotonic() < until:
        time.sleep(0.05)
    found = [said.find(f"x-request-id: r{at}".encode()) for at in range(3)]
    assert found == sorted(found)
    assert min(found) > 0
    assert held.logged == before + 3


def test_a_client_that_goes_away_in_the_middle_leaves_nothing(held: Held) -> None:
    before = held.logged
    for cut in (0, 1, len(BODY) - 1):
        with socket.create_connection(("127.0.0.1", held.port), 5) as line:
            line.sendall(head("/predict", JSON, f"content-length: {len(BODY)}") + BODY[:cut])
    time.sleep(0.3)
    assert held.logged == before


def test_idle_connections_hold_nobody_up(held: Held) -> None:
    """Some hundred that say nothing, and some that say their headers a byte at a time."""
    lines = [socket.create_connection(("127.0.0.1", held.port), 5) for _ in range(300)]
    try:
        connection, took = http.client.HTTPConnection("127.0.0.1", held.port, timeout=10), []
        for at in range(60):
            lines[at].send(b"P")
            begun = time.monotonic()
            connection.request("POST", "/predict", BODY, {"content-type": "application/json"})
            assert connection.getresponse().read()
            took.append(time.monotonic() - begun)
        assert sorted(took)[len(took) // 2] < 0.5
    finally:
        for line in lines:
            line.close()


def test_a_connection_that_was_used_is_closed_when_idle(held: Held) -> None:
    with socket.create_connection(("127.0.0.1", held.port), 8) as line:
        line.sendall(head("/healthz", method="GET"))
        begun, said = time.monotonic(), b""
        while more := line.recv(4096):
            said += more
        assert said.startswith(b"HTTP/1.1 200")
        assert 1 < time.monotonic() - begun < 20
