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

import pytest
from certificates import certificate
from test_live import Live, listening
from tiny import ROW, Project

from ct import settings
from ct.control import calls
from ct.errors import Forbidden, Unauthenticated
from ct.governance import access
from ct.serving import local
from ct.store.artifacts import Artifacts
from ct.store.journal import Journal


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    root = tmp_path_factory.mktemp("tls")
    certificate(root)
    (root / "ct.toml").write_text('host = "0.0.0.0"\ntls_cert = "cert.pem"\ntls_key = "key.pem"\n')
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


def _ask(live: Live, path: str, secret: str = "", *, scheme: str = "https", method: str = "GET") -> int:
    context = ssl.create_default_context(cafile=str(live.project.settings.root / "cert.pem"))
    body = json.dumps(ROW).encode() if method == "POST" else None
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {secret}"} if secret else {})
    request = urllib.request.Request(f"{scheme}://127.0.0.1:{live.port}{path}", body, headers, method=method)
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


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads Linux' table of sockets")
def test_beyond_loopback_only_the_endpoint_itself_listens(live: Live, admin: str) -> None:
    """Not the replicas, which speak plain HTTP, nor Serve's fallback proxy, nor HAProxy's own pages."""
    head = json.loads((live.project.settings.home / "ray.json").read_text())
    (config,) = Path(head["folder"]).rglob("haproxy.cfg")
    text = config.read_text()
    binds = {int(found) for found in re.findall(r"^ +bind \S*:(\d+)", text, re.MULTILINE)}
    behind = {int(found) for found in re.findall(r"^ +server \S+ \S+:(\d+)", text, re.MULTILINE)}
    assert live.port in binds
    assert behind
    found = listening(binds | behind)
    assert {port for port, _ in found} >= binds
    assert {port for port, host in found if host != "0100007F"} == {live.port}


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
