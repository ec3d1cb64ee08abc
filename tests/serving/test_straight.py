"""The straight way past Serve's wrapper: for the endpoint's requests in a process that holds one, and for nothing else."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from ct.serving import straight
from ct.serving.straight import Straight


def answering(name: str, heard: list[str]) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        heard.append(f"{name} {scope['type']} {scope.get('path', '')}")

    return app


def test_the_endpoints_requests_go_straight_and_serves_own_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []
    held: list[Any] = []
    monkeypatch.setattr(straight, "running", lambda: SimpleNamespace(straight=held[0]) if held else None)
    wrapped = Straight(answering("serve", heard))

    def ask(path: str, kind: str = "http") -> None:
        asyncio.run(wrapped({"type": kind, "path": path}, None, None))  # type: ignore[arg-type]

    ask("/predict")
    held.append(answering("endpoint", heard))
    for path in ("/predict", "/-/healthz", "/-/routes", "/metrics"):
        ask(path)
    ask("/predict", "websocket")
    assert heard == [
        "serve http /predict",
        "endpoint http /predict",
        "serve http /-/healthz",
        "serve http /-/routes",
        "endpoint http /metrics",
        "serve websocket /predict",
    ]


def test_another_applications_requests_go_on_to_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []
    monkeypatch.setattr(straight, "running", object)
    wrapped = Straight(answering("serve", heard))
    for _ in range(2):
        asyncio.run(wrapped({"type": "http", "path": "/bare"}, None, None))  # type: ignore[arg-type]
    assert heard == ["serve http /bare"] * 2


def test_where_no_replica_is_nothing_is_held() -> None:
    assert straight.running() is None


def test_serve_takes_what_the_variable_names() -> None:
    """Serve reads it at import, and refuses to start a replica whose function gives something else."""
    code = "from ray.serve._private.http_util import configure_http_middlewares as c; from ray.serve.config import HTTPOptions as H; print([m.cls.__name__ for m in c(H(middlewares=[])).middlewares])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={straight.VARIABLE: straight.PATH},
    )
    assert done.stdout.strip().endswith("['Straight']"), done.stderr[-2000:]
