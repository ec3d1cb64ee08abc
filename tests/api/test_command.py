"""The real command `ct api`: what it refuses to begin with, and one verb of a caller with a token."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from ct.cli import app
from ct.governance import access
from ct.rollout import state
from tests.api.served import BASE, commands
from tests.control import rolling


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in the middle of a rollout, without tokens."""
    found = tmp_path_factory.mktemp("command") / "p"
    act = rolling.actor(found, rolling.PLANS["canary"])
    act.start_rollout("v2")
    act.close()
    return found


def test_it_refuses_what_others_could_reach_and_a_port_that_is_taken(root: Path) -> None:
    line = [sys.executable, "-m", "ct.cli", "api", "--root", str(root), "--host", "0.0.0.0"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "the control API would listen on 0.0.0.0" in done.stderr
    assert "ct token create" in done.stderr
    assert done.stdout == ""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = CliRunner().invoke(app, ["api", "--root", str(root), "--port", str(port)])
        assert said.exit_code == 1
        assert f"127.0.0.1:{port}: Address already in use" in said.output


def test_a_token_opens_it_and_is_named_by_the_journal(root: Path) -> None:
    act = rolling.actor(root, rolling.PLANS["canary"])
    secrets = {role: access.create(act.journal, f"{role}-robot", role)[1] for role in ("read", "operate")}  # type: ignore[arg-type]
    with commands(root) as [(address, process)]:

        def ask(role: str) -> int:
            headers = {"authorization": f"Bearer {secrets[role]}"} if role else {}
            return httpx.post(f"{address}{BASE}/rollouts/r1:pause", headers=headers, trust_env=False, timeout=60).status_code

        assert [ask(role) for role in ("", "read", "operate")] == [401, 403, 200]
        found = httpx.get(f"{address}/healthz", headers={"host": "evil.example"}, trust_env=False)
        assert (found.status_code, found.json()["field"]) == (421, "host")
        process.terminate()
        assert process.wait(30) in (0, -15)
    last = list(act.journal.read(state.stream(rolling.LINE)))[-1]
    assert (last.type, last.actor) == ("RolloutPaused", "operate-robot (operate)")
    act.close()
