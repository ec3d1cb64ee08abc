"""A cluster whose head dies and whose GCS keeps its state in Redis (F22): replicas on other nodes go on, follow the journal, and are found again.

Two nodes on one machine. The clients ask the replicas' own port (direct_port), for a proxy on each node would need a machine of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from bench.parts.asking import Clients
from ct import settings
from ct.registry import routes
from ct.serving import local
from ct.serving.local import free_port
from ct.store.artifacts import Artifacts
from ct.store.journal import Journal

from ..services import redis_with_password

REPLICAS = 2
RAY = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start", "--block", "--disable-usage-stats"]
DRIVER = """
import json, sys
import ray
from ct import settings
ray.init(address=sys.argv[1], namespace="ct", log_to_driver=False, logging_level="ERROR")
from ct.serving.client import Serving
serving = Serving(settings.load(sys.argv[2], environ={}), "tiny")  # sets what Serve reads at its import
from ray import serve
from ct.serving.app import AppArgs, build
if sys.argv[3] == "deploy":
    serve.start(proxy_location="Disabled")
    serve.run(build(AppArgs(endpoint="tiny", root=sys.argv[2], replicas=int(sys.argv[4]), direct_port=int(sys.argv[5]))), name="tiny")
print(json.dumps(serving.state()))
"""


@dataclass
class Cluster:
    """A head without CPUs and a node with two, of which the head can be killed and started again."""

    folder: Path
    environ: Mapping[str, str]
    password: str
    gcs: int
    head: subprocess.Popen[bytes] | None = None
    node: subprocess.Popen[bytes] | None = None

    def start_head(self) -> None:
        """The same command each time: what is kept in Redis tells the new head who it is."""
        # On a machine of its own the head would not find a living node there, which `ray start` takes for another head.
        (self.folder / "ray_current_cluster").unlink(missing_ok=True)
        self.head = self._start(
            *("--head", f"--port={self.gcs}", "--num-cpus=0", "--include-dashboard=False", f"--redis-password={self.password}"),
            f"--temp-dir={self.folder}",
        )
        until = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.gcs), 0.5):
                return
            assert self.head.poll() is None, self.said("head")
            assert time.monotonic() < until, self.said("head")
            time.sleep(0.1)

    def start_node(self) -> None:
        self.node = self._start(f"--address=127.0.0.1:{self.gcs}", "--num-cpus=2")

    def _start(self, *words: str) -> subprocess.Popen[bytes]:
        name = "head" if "--head" in words else "node"
        ports = (
            "--node-ip-address=127.0.0.1",
            f"--dashboard-agent-listen-port={free_port()}",
            "--object-store-memory=100000000",
        )
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [*RAY, *words, *ports],
                env=self.environ,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def said(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")[-2000:]

    def kill(self, which: subprocess.Popen[bytes] | None) -> None:
        """SIGKILL for all that a `ray start` has started."""
        if which is None:
            return
        for _ in range(3):
            for pid in local._session(which.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        which.wait()

    def do(self, root: Path, *words: str, seconds: float = 90.0) -> list[dict[str, Any]]:
        """What the replicas say to a driver, which is tried again until they do."""
        until = time.monotonic() + seconds
        command = [sys.executable, "-c", DRIVER, f"127.0.0.1:{self.gcs}", str(root), *words]
        while True:
            done = subprocess.run(command, env=self.environ, capture_output=True, text=True, timeout=120, check=False)
            if done.returncode == 0:
                return list(json.loads(done.stdout.splitlines()[-1]))
            assert time.monotonic() < until, done.stderr[-2000:] + self.said("head")
            time.sleep(0.5)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="ctk", dir="/tmp"))  # a socket's path must be short
    with redis_with_password() as (address, password):
        given = {"RAY_REDIS_ADDRESS": address, "RAY_SERVE_ENABLE_HA_PROXY": "0", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
        made = Cluster(folder, os.environ | given, password, free_port())
        try:
            made.start_head()
            made.start_node()
            yield made
        finally:
            made.kill(made.node)
            made.kill(made.head)
            shutil.rmtree(folder, ignore_errors=True)


def test_replicas_go_on_without_the_head_and_are_found_again(cluster: Cluster, tmp_path: Path) -> None:
    begun, port = time.monotonic(), free_port()
    place = settings.load(tmp_path, environ={})
    journal = Journal(place.database)
    tiny, project = _tiny(place, journal)
    first = project.first()
    before = cluster.do(tmp_path, "deploy", str(REPLICAS), str(port))
    print(f"two replicas after {time.monotonic() - begun:.1f} s")
    assert len(before) == REPLICAS
    with Clients(port, lambda key, number: {**tiny.ROW, "trip": key, "distance": float(number)}, 40.0, seed=22) as clients:
        time.sleep(1.0)
        cluster.kill(cluster.head)
        gone = time.monotonic()
        # There is no head to broadcast anything; the journal is enough.
        second = routes.put(journal, replace(first, stable=project.version("v2", 1.0), epoch=first.epoch + 1), cause="no head")
        while not any(call.version == "v2" for call in clients.calls):
            assert time.monotonic() < gone + 60, "the replicas do not follow the journal"
            time.sleep(0.1)
        print(f"the new route is in force {time.monotonic() - gone:.1f} s after the head's end")
        cluster.start_head()
        after = cluster.do(tmp_path, "state")
        print(f"the new head knows the replicas {time.monotonic() - gone:.1f} s after the old one's end")
        time.sleep(0.5)
    assert {state["pid"] for state in after} == {state["pid"] for state in before}, "none was replaced"
    assert {state["epoch"] for state in after} == {second.epoch}
    assert [call for call in clients.calls if call.failed] == []
    assert len(clients.calls) > 100
    journal.close()


def _tiny(place: settings.Settings, journal: Journal) -> tuple[Any, Any]:
    from bench.parts.served import _tiny as loaded

    tiny = loaded()
    return tiny, tiny.Project(place, Artifacts(place.place("artifacts")), journal)
