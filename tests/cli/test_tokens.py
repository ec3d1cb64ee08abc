"""`ct token` as a person and a script meet it: the secret comes once, alone, and nowhere else; and how clients show it."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from typer.testing import CliRunner, Result

from ct import settings
from ct.cli import app
from ct.control import calls
from ct.errors import Forbidden, InvalidSettings, Unauthenticated
from ct.governance import access
from ct.serving.app import AppArgs, build
from ct.store.journal import Journal

SECRET = re.compile(r"ct_[0-9a-f]{12}_[0-9a-f]{64}")


def run(root: Path, *words: str) -> Result:
    return CliRunner().invoke(app, ["token", *words, "--root", str(root)])


def keeper(root: Path) -> access.Gatekeeper:
    return access.Gatekeeper(access.tokens(Journal(settings.load(root, environ={}).database)))


def test_a_tokens_life(tmp_path: Path) -> None:
    made = run(tmp_path, "create", "web", "--role", "predict", "--expires", "90d")
    secret = made.stdout.strip()
    assert made.exit_code == 0
    assert SECRET.fullmatch(secret), "the secret is alone on standard output"
    assert secret not in made.stderr
    assert keeper(tmp_path).caller(secret).name == "web"

    (shown,) = json.loads(run(tmp_path, "list", "--json").stdout)
    assert (shown["name"], shown["role"], shown["state"]) == ("web", "predict", "live")
    for text in (run(tmp_path, "list").output, json.dumps(shown)):
        assert secret.rpartition("_")[2] not in text
        assert keeper(tmp_path).caller(secret).digest not in text

    out = tmp_path / "web.token"
    rotated = run(tmp_path, "rotate", "web", "--overlap", "0", "--out", str(out))
    assert rotated.exit_code == 0
    assert not SECRET.search(rotated.output)
    assert out.stat().st_mode & 0o777 == 0o600
    assert keeper(tmp_path).caller(out.read_text().strip()).name == "web"
    with pytest.raises(Unauthenticated):
        keeper(tmp_path).caller(secret)

    assert run(tmp_path, "revoke", "web", "--reason", "left").exit_code == 0
    assert [row["state"] for row in json.loads(run(tmp_path, "list", "--json").stdout)] == ["expired", "revoked"]
    events = list(Journal(settings.load(tmp_path, environ={}).database).read(access.STREAM))
    assert [event.type for event in events] == ["TokenCreated", "TokenRotated", "TokenRevoked"]
    assert events[-1].data["reason"] == "left"
    assert not SECRET.search(json.dumps([event.data for event in events]))


def test_dry_runs_change_nothing(tmp_path: Path) -> None:
    run(tmp_path, "create", "web", "--role", "predict")
    before = run(tmp_path, "list", "--json").stdout
    for words in (("create", "b", "--role", "read"), ("rotate", "web"), ("revoke", "web")):
        done = run(tmp_path, *words, "--dry-run")
        assert done.exit_code == 0
        assert "would" in done.output
    assert run(tmp_path, "list", "--json").stdout == before


@pytest.mark.parametrize(
    "words",
    [
        ("create", "web", "--role", "root"),
        ("create", "We b", "--role", "read"),
        ("create", "web", "--role", "read", "--expires", "soon"),
        ("rotate", "nobody"),
        ("rotate", "nobody", "--overlap", "-1h"),
        ("revoke", "nobody"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = run(tmp_path, *words)
    assert done.exit_code == 1
    assert "error:" in done.output
    assert "Traceback" not in done.output


def test_an_app_beyond_loopback_is_not_built_without_a_token(tmp_path: Path) -> None:
    """What `serve deploy` calls."""
    args = AppArgs(endpoint="tiny", root=str(tmp_path), host="0.0.0.0")
    with pytest.raises(InvalidSettings, match="no live token"):
        build(args)
    run(tmp_path, "create", "web", "--role", "predict")
    assert build(args)
    run(tmp_path, "revoke", "web")
    with pytest.raises(InvalidSettings, match="no live token"):
        build(args)
    assert build(AppArgs(endpoint="tiny", root=str(tmp_path), host="127.0.0.1"))


class Asked(BaseHTTPRequestHandler):
    """Answers 401 without the header, 403 to one token, 200 to another."""

    seen: ClassVar[list[str | None]] = []

    def do_POST(self) -> None:
        shown = self.headers.get("authorization")
        self.seen.append(shown)
        self.rfile.read(int(self.headers["content-length"]))
        status = {None: 401, "Bearer ct_low": 403}.get(shown, 200)
        body = json.dumps({"found": f"{status}", "expected": "e", "remedy": "r"}).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[settings.Settings]:
    for name in ("CT_TOKEN", "CT_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    Asked.seen.clear()
    with HTTPServer(("127.0.0.1", 0), Asked) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield settings.load(tmp_path, environ={}, port=server.server_port)
        server.shutdown()
        thread.join()


def test_clients_show_their_token(asked: settings.Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unauthenticated, match="CT_TOKEN"):
        calls.post(asked, "/predict", {})
    monkeypatch.setenv("CT_TOKEN", "ct_low")
    with pytest.raises(Forbidden):
        calls.post(asked, "/predict", {})
    monkeypatch.delenv("CT_TOKEN")
    file = tmp_path / "web.token"
    file.write_text("ct_high\n")
    file.chmod(0o644)
    monkeypatch.setenv("CT_TOKEN_FILE", str(file))
    with pytest.raises(InvalidSettings, match="chmod 600"):
        calls.post(asked, "/predict", {})
    file.chmod(0o600)
    assert calls.post(asked, "/predict", {})["found"] == "200"
    done = CliRunner().invoke(app, ["predict", '{"a": 1}', "--root", str(tmp_path)], env={"CT_PORT": str(asked.port)})
    assert done.exit_code == 0, done.output
    assert Asked.seen == [None, "Bearer ct_low", "Bearer ct_high", "Bearer ct_high"]
