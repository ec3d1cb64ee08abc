"""Who is asked by bench/serving.py: ct's endpoint, the applications beside it on the same Serve, and the peers, each in an environment of its own."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PARTS = Path(__file__).parent
ROOT = PARTS.parents[1]
PEERS = ROOT / "build" / "peers"
NAMES = ("mlflow", "bentoml", "litserve", "fastapi")
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Side:
    """A path that scores rows: how it wants a row, and where its score stands."""

    port: int
    path: str
    wrap: Callable[[Row], Any] = dict
    score: Callable[[Any], float] = lambda said: float(said["score"])
    headers: Mapping[str, str] = field(default_factory=dict)

    def ask(self, row: Row) -> float:
        """The score of one row. Raises OSError or RuntimeError."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(
                "POST", self.path, json.dumps(self.wrap(row)), {"content-type": "application/json", **self.headers}
            )
            answer = connection.getresponse()
            said = answer.read()
        finally:
            connection.close()
        if answer.status != 200:
            raise RuntimeError(f"{self.path} said {answer.status}: {said[:300].decode(errors='replace')}")
        return self.score(json.loads(said))

    def load(self, rows: Sequence[Row], connections: int, seconds: float, rate: float = 0.0, *, seed: int = 7) -> Loading:
        """Begin to load it."""
        job = {
            "port": self.port,
            "path": self.path,
            "bodies": [json.dumps(self.wrap(row)) for row in rows],
            "headers": dict(self.headers),
            "connections": connections,
            "seconds": seconds,
            "rate": rate,
            "seed": seed,
        }
        return Loading(job)


class Loading:
    """A job of parts/load.py in its own process."""

    def __init__(self, job: Mapping[str, Any]) -> None:
        command = [sys.executable, str(PARTS / "load.py")]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job))
        self._process.stdin.close()
        self._process.stdin = None

    def result(self) -> dict[str, Any]:
        """What it measured."""
        out, _ = self._process.communicate()
        return dict(json.loads(out))


def first(said: Any) -> float:
    """The score in ct's answer."""
    return float(said["predictions"][0]["score"])


@contextmanager
def peer(name: str, port: int, model: Path, folder: Path) -> Iterator[Side | None]:
    """A peer with two worker processes; None where its environment is not there (see bench/serving.py) or does not come up."""
    home = PEERS / name / "bin"
    if not (home / "python").exists():
        print(f"{name}: no environment in {PEERS.name}/{name}, so no figure", flush=True)
        yield None
        return
    parts = PARTS / "peers"
    quiet = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "BENTOML_DO_NOT_TRACK": "True",
        "DO_NOT_TRACK": "1",
        "LIT_SKIP_UPDATE_CHECK": "1",
    }
    env = {**os.environ, **quiet, "CT_BENCH_MODEL": str(model), "PYTHONPATH": str(ROOT)}
    env["PATH"] = f"{home}{os.pathsep}{env['PATH']}"
    commands = {
        "fastapi": [
            home / "uvicorn",
            "bench.parts.peers.over_fastapi:app",
            "--workers",
            "2",
            "--port",
            port,
            "--no-access-log",
        ],
        "litserve": [home / "python", parts / "over_litserve.py", port],
        "bentoml": [home / "bentoml", "serve", "bench.parts.peers.over_bentoml:Score", "--port", port, "--host", "127.0.0.1"],
        "mlflow": [
            *(home / "mlflow", "models", "serve", "-m", folder / "mlflow", "-p", port, "-w", 2),
            *("--env-manager", "local", "-h", "127.0.0.1"),
        ],
    }
    wraps: dict[str, Side] = {
        "fastapi": Side(port, "/predict"),
        "litserve": Side(port, "/predict"),
        "bentoml": Side(port, "/predict", lambda row: {"row": dict(row)}),
        "mlflow": Side(
            port, "/invocations", lambda row: {"dataframe_records": [row]}, lambda said: float(said["predictions"][0])
        ),
    }
    with (folder / f"{name}.log").open("w") as log:
        options: dict[str, Any] = {"env": env, "cwd": folder, "stdout": log, "stderr": subprocess.STDOUT}
        if name == "mlflow":
            subprocess.run([home / "python", parts / "over_mlflow.py", folder / "mlflow"], check=True, **options)
        server = subprocess.Popen(list(map(str, commands[name])), start_new_session=True, **options)
        try:
            yield _up(name, wraps[name], server, Path(log.name))
        finally:
            for sign in (signal.SIGTERM, signal.SIGKILL):
                with suppress(ProcessLookupError):
                    os.killpg(server.pid, sign)
                time.sleep(0.5)
            server.wait()


def _up(name: str, side: Side, server: subprocess.Popen[bytes], log: Path) -> Side | None:
    until = time.monotonic() + 90
    while time.monotonic() < until and server.poll() is None:
        with suppress(OSError, http.client.HTTPException, RuntimeError):
            side.ask({"line": "A", "distance": 1.0})
            return side
        time.sleep(0.5)
    print(f"{name} did not come up: {log.read_text(errors='replace')[-600:]}", flush=True)
    return None
