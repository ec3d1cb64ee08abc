"""The control API as tests ask it: an application in this process whose replicas are a file, or the real command `ct api` as a process."""

from __future__ import annotations

import os
import re
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from ct.api import listening
from ct.api.application import build
from ct.control.act import Actor
from ct.governance import access
from ct.serving.local import free_port
from tests.control import rolling

BASE = f"/v1/endpoints/{rolling.LINE}"
ROLES = ("read", "operate", "admin", "predict")
START_SECONDS = 120


class Api:
    """A served project and who may do what there; each role has a token of its name."""

    def __init__(self, act: Actor, *, tokens: bool = True) -> None:
        self.act = act
        self.secrets = {role: access.create(act.journal, role, role)[1] for role in ROLES} if tokens else {}
        held = listening.bound("127.0.0.1", 0)
        self.server, self.port = listening.server(build(act)), held.getsockname()[1]
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [held]}, daemon=True)
        self.thread.start()
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", trust_env=False, timeout=30)
        while not self.server.started:
            time.sleep(0.01)

    def ask(self, method: str, path: str, body: Any = None, role: str = "operate", **headers: str) -> httpx.Response:
        """The answer. A role without a token is the secret itself."""
        if role and (self.secrets or role not in ROLES):
            headers["authorization"] = f"Bearer {self.secrets.get(role, role)}"
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.request(method, path, json=body, headers=named)

    def close(self) -> None:
        """Listen no more."""
        self.client.close()
        self.server.should_exit = True
        self.thread.join(20)
        self.act.close()


@contextmanager
def commands(root: Path, count: int = 1) -> Iterator[list[tuple[str, subprocess.Popen[str]]]]:
    """`ct api` as so many processes, each on a port of its own: their addresses and processes. Killed in the end."""
    lines = [[sys.executable, "-m", "ct.cli", "api", "--root", str(root), "--port", str(free_port())] for _ in range(count)]
    environment = os.environ | {"USER": "ops"}
    made = [
        subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment) for line in lines
    ]
    try:
        yield [(_address(process), process) for process in made]
    finally:
        for process in made:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    with selectors.DefaultSelector() as waiting:
        waiting.register(process.stdout, selectors.EVENT_READ)
        assert waiting.select(START_SECONDS), "it does not say where it listens"
    said = process.stdout.readline()
    found = re.search(r"https?://\S+", said)
    assert found, said + process.stdout.read()
    return found[0]
