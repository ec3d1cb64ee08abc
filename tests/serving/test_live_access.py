"""The endpoint on Ray Serve beyond loopback: refused without a token, then over TLS with tokens; no secret in any log."""

from __future__ import annotations

import http.client
import json
import re
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from certificates import certificate
from test_live import Live, listening
from tiny import ROW, Project

from ct import settings
from ct.control import calls
from ct.errors import Forbidden, Unauthenticated
from ct.governance import access
from ct.serving import local
from ct.serving.grpc_messages import SERVICE, messages
from ct.store.artifacts import Artifacts
from ct.store.journal import Journal


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    root = tmp_path_factory.mktemp("tls")
    certificate(root)
    ports = f"grpc_port = {local.free_port()}\ndirect_port = {local.free_port()}\n"
    (root / "ct.toml").write_text(f'host = "0.0.0.0"\ntls_cert = "cert.pem"\ntls_key = "key.pem"\n{ports}')
    place = settings.load(root, environ={}, port=local.free_port())
    project = Project(place, Artifacts(place.place("artifacts")), Journal(place.database))
    project.first()
    script = str(Path(__file__).with_name("driver.py"))
    child = subprocess.Popen(
        [sys.executable, script, str(root), str(place.port), "1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=(root / "driver.log").open("w"),
        text=True,
    )
    made = Live(project, place.port, child)
    try:
        made.do("start")
        made.do("connect")
        yield made
    finally:
        child.kill()
        child.wait()
        local.stop(place)


@pytest.fixture(scope="module")
def admin(live: Live) -> str:
    """An admin's secret, on an endpoint that was refused before it existed and started after."""
    with pytest.raises(RuntimeError, match="no live token"):
        live.do("deploy")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", live.port), 1)
    secret = access.create(live.project.journal, "root", "admin")[1]
    live.do("deploy")
    return secret


def _ask(
    live: Live, path: str, secret: str = "", *, scheme: str = "https", method: str = "GET", port: int | None = None
) -> int:
    context = ssl.create_default_context(cafile=str(live.project.settings.root / "cert.pem"))
    body = json.dumps(ROW).encode() if method == "POST" else None
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {secret}"} if secret else {})
    request = urllib.request.Request(f"{scheme}://127.0.0.1:{port or live.port}{path}", body, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10, context=context if scheme == "https" else None) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_it_speaks_tls_alone_and_asks_for_tokens(live: Live, admin: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _ask(live, "/healthz") == 200
    assert _ask(live, "/predict", method="POST") == 401
    assert _ask(live, "/predict", admin, method="POST") == 200
    with pytest.raises((http.client.HTTPException, urllib.error.URLError, ConnectionError)):
        _ask(live, "/predict", admin, scheme="http", method="POST")
    place = live.project.settings
    monkeypatch.delenv("CT_TOKEN", raising=False)
    with pytest.raises(Unauthenticated, match="CT_TOKEN"):
        calls.post(place, "/predict", {"instances": [ROW]})
    monkeypatch.setenv("CT_TOKEN", admin)
    assert calls.post(place, "/predict", {"instances": [ROW]})["model_version"] == "v1"


def test_replicas_follow_new_and_revoked_tokens_within_two_seconds(
    live: Live, admin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = live.project.journal
    secret = access.create(journal, "shop", "read")[1]
    took = [_until(live, secret, 200)]
    assert _ask(live, "/predict", secret, method="POST") == 403
    monkeypatch.setenv("CT_TOKEN", secret)
    with pytest.raises(Forbidden, match="predict"):
        calls.post(live.project.settings, "/predict", {"instances": [ROW]})
    access.revoke(journal, "shop")
    took.append(_until(live, secret, 401))
    print(f"known after {took[0]:.1f} s, refused after {took[1]:.1f} s")
    assert max(took) < 15, took
    assert _ask(live, "/v2", admin) == 200


def _until(live: Live, secret: str, status: int) -> float:
    begun = time.monotonic()
    while (found := _ask(live, "/v2", secret)) != status:
        assert time.monotonic() - begun < 20, found
        time.sleep(0.1)
    return time.monotonic() - begun


def test_the_replicas_own_port_speaks_tls_and_asks_for_tokens_too(live: Live, admin: str) -> None:
    port = live.project.settings.direct_port
    reader = access.create(live.project.journal, "prometheus", "read")[1]
    _until(live, reader, 200)
    assert _ask(live, "/healthz", port=port) == 200
    for secret, posted, described in (("", 401, 401), ("ct_x", 401, 401), (reader, 403, 200), (admin, 200, 200)):
        assert _ask(live, "/predict", secret, method="POST", port=port) == posted
        assert _ask(live, "/v2", secret, port=port) == described
    assert _ask(live, "/predict", reader, method="POST", port=live.port) == 403, "as before Serve's port"
    with pytest.raises((http.client.HTTPException, urllib.error.URLError, ConnectionError)):
        _ask(live, "/predict", admin, scheme="http", method="POST", port=port)


def test_grpc_speaks_tls_and_asks_for_tokens(live: Live, admin: str) -> None:
    """A reader may not predict, nobody is answered in plain text, and nobody may send what has no bound."""
    place = live.project.settings
    reader = access.create(live.project.journal, "grpc-reader", "read")[1]
    _until(live, reader, 200)
    address, cert = f"127.0.0.1:{place.grpc_port}", (place.root / "cert.pem").read_bytes()
    with grpc.secure_channel(address, grpc.ssl_channel_credentials(cert)) as channel:
        assert _call(channel, "ServerLive")[0] is grpc.StatusCode.OK
        for secret, code in (
            ("", grpc.StatusCode.UNAUTHENTICATED),
            (reader, grpc.StatusCode.PERMISSION_DENIED),
            (admin, grpc.StatusCode.OK),
        ):
            found, trailer = _call(channel, "ModelInfer", secret, model_name="tiny", inputs=_tensors())
            assert found is code
            assert trailer["x-request-id"] == "r-1"
        huge = _call(channel, "ModelInfer", admin, model_name="tiny", raw_input_contents=[b"x" * (5 << 20)])
        assert huge[0] in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)
        assert _call(channel, "ServerLive")[0] is grpc.StatusCode.OK
    with grpc.insecure_channel(address) as channel:
        assert _call(channel, "ModelInfer", admin, model_name="tiny", inputs=_tensors())[0] is grpc.StatusCode.UNAVAILABLE


def _tensors() -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = [
        {"name": name, "datatype": "BYTES", "shape": [1], "contents": {"bytes_contents": [str(value).encode()]}}
        for name, value in ROW.items()
        if name != "distance"
    ]
    return [*made, {"name": "distance", "datatype": "FP64", "shape": [1], "contents": {"fp64_contents": [ROW["distance"]]}}]


def _call(channel: grpc.Channel, method: str, secret: str = "", **fields: Any) -> tuple[grpc.StatusCode, dict[str, str]]:
    """A gRPC call's code, and the metadata in its answer's trailer."""
    known = messages()
    ask = channel.unary_unary(
        f"/{SERVICE}/{method}",
        request_serializer=known[f"{method}Request"].SerializeToString,
        response_deserializer=known[f"{method}Response"].FromString,
    )
    metadata = [("x-request-id", "r-1"), *([("authorization", f"Bearer {secret}")] if secret else [])]
    try:
        _, done = ask.with_call(known[f"{method}Request"](**fields), metadata=metadata, timeout=20)
    except grpc.RpcError as error:
        return error.code(), dict(error.trailing_metadata() or ())
    return grpc.StatusCode.OK, dict(done.trailing_metadata())


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads Linux' table of sockets")
def test_beyond_loopback_only_the_endpoint_itself_listens(live: Live, admin: str) -> None:
    """Not the replicas, which speak plain HTTP, nor Serve's fallback proxy, nor HAProxy's own pages. Serve's own gRPC servers do, for which it has
    no setting: they answer this machine only, whatever token is shown."""
    place = live.project.settings
    head = json.loads((place.home / "ray.json").read_text())
    (config,) = Path(head["folder"]).rglob("haproxy.cfg")
    text = config.read_text()
    binds = {int(found) for found in re.findall(r"^ +bind \S*:(\d+)", text, re.MULTILINE)}
    behind = {int(found) for found in re.findall(r"^ +server \S+ \S+:(\d+)", text, re.MULTILINE)}
    replicas, fallback = {port for port in behind if 40_000 <= port <= 41_000}, _fallback(text)
    assert {live.port, place.grpc_port} < binds
    assert len(replicas) == len(fallback) == 1
    assert behind - replicas - fallback
    found = listening(binds | behind)
    assert {port for port, _ in found} >= binds
    assert {port for port, host in found if host != "0100007F"} - replicas - fallback == {live.port, place.grpc_port}
    infer: dict[str, Any] = {"model_name": "tiny", "inputs": _tensors()}
    for port in replicas | fallback:
        for host, code in (("127.0.0.1", grpc.StatusCode.OK), (_address(), grpc.StatusCode.PERMISSION_DENIED)):
            with grpc.insecure_channel(f"{host}:{port}") as channel:
                assert _call(channel, "ModelInfer", admin, **infer)[0] is code, host


def _fallback(text: str) -> set[int]:
    """The port of Serve's own gRPC proxy, which HAProxy asks for the list of applications."""
    section = text.partition("\nbackend grpc_fallback_backend\n")[2].partition("\nbackend")[0]
    return {int(port) for port in re.findall(r"^ +server \S+ \S+:(\d+)", section, re.MULTILINE)}


def _address() -> str:
    """This machine's address in its network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # nothing is sent
        return str(probe.getsockname()[0])


def test_no_secret_is_in_any_log(live: Live, admin: str) -> None:
    """I14, after the tests above have shown secrets in every way: the session's logs, HAProxy's, the driver's, the project's own files."""
    place = live.project.settings
    folder = Path(json.loads((place.home / "ray.json").read_text())["folder"])
    found = [path for base in (folder, place.root) for path in base.rglob("*") if path.is_file() and not path.is_symlink()]
    logs = [path for path in found if path.suffix in (".log", ".out", ".err", ".json")]
    assert any("replica" in path.name for path in logs), "there is no log of a replica"
    hidden = admin.rpartition("_")[2].encode()
    token = (place.home / "ray.token").read_bytes().strip()
    assert not [path for path in found if hidden in path.read_bytes()]
    assert not [path for path in found if path.name != "ray.token" and token in path.read_bytes()]
