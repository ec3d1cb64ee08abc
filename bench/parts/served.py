"""A tiny project on real Ray Serve, and everything of it that can be killed: its replicas, its proxy, Serve's controller, the control process.

The versions are those of tests/serving/tiny.py; the control process is tests/serving/driver.py, told what to do line by line.
"""

from __future__ import annotations

import base64
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ct import settings
from ct.registry import routes
from ct.registry.routes import Arm, Route
from ct.serving import local
from ct.store.artifacts import Artifacts
from ct.store.journal import Journal
from ct.store.signing import Keys

ROOT = Path(__file__).parents[2]
ENDPOINT = "tiny"
KINDS = {
    "replica": "ray::ServeReplica",
    "controller": "ray::ServeController",
    "proxy": "haproxy",
    "proxy_manager": "ray::HAProxyManager",
    "dashboard": "/ray/dashboard/dashboard.py",
}
"""What can be hurt, and how its process's command begins; the proxy's program, the dashboard's script."""


class Served:
    """A project whose endpoint runs. `journal` is its journal, which this process reaches at `database`, the project's own by default."""

    def __init__(self, place: settings.Settings, replicas: int, database: str = "") -> None:
        self.place, self.replicas = place, replicas
        self.artifacts, self.journal = Artifacts(place.place("artifacts")), Journal(database or place.database)
        self._tiny: Any = _tiny()
        self._project = self._tiny.Project(place, self.artifacts, self.journal)
        self._models: dict[str, Any] = {}
        self.arms: dict[str, Arm] = {}
        self._control: subprocess.Popen[str] | None = None

    @property
    def route(self) -> Route:
        """The journal's route."""
        found = routes.current(self.journal, ENDPOINT)
        assert found is not None
        return found

    def version(self, name: str, bias: float) -> Arm:
        """Store a version that gives sigmoid(its features' sum + bias)."""
        self.arms[name] = self._project.version(name, bias)
        return self.arms[name]

    def put(self, route: Route, *, cause: str) -> Route:
        """Record a route."""
        return routes.put(self.journal, route, cause=cause)

    def expected(self, version: str, row: Mapping[str, Any]) -> float:
        """What a version gives for a row, by this process's own copy of it."""
        if version not in self._models:
            from ct.serving.slots import Slots

            slots = Slots(Artifacts(self.place.place("artifacts"), Keys(self.place.trusted_keys)))
            slots.stage(version, self.arms[version].manifest)
            self._models[version] = slots.loaded[version].predictor
        from ct.data.columns import from_rows
        from ct.features import online

        predictor = self._models[version]
        columns = from_rows([row], predictor.spec.request)
        store = online.opened(self.place)
        scores, _ = predictor.score(columns, columns[predictor.spec.time], store.history(columns, predictor.lookups))
        return float(scores[0])

    def row(self, key: str, number: int) -> dict[str, Any]:
        """A request's row; `number` chooses one of six sets of features."""
        return {**self._tiny.ROW, "trip": key, "distance": (50.0, 120.0, 300.0)[number % 3], "line": "AB"[number % 2]}

    # -- the control process

    def do(self, what: str, **args: Any) -> Any:
        """Have the control process do something. Raises RuntimeError with the error it met, or when it is dead."""
        control = self._control
        try:
            assert control is not None
            assert control.stdin is not None
            assert control.stdout is not None
            control.stdin.write(json.dumps({"do": what, **args}) + "\n")
            control.stdin.flush()
            said = json.loads(control.stdout.readline() or '{"error": "the control process died"}')
        except OSError as error:
            said = {"error": f"the control process died: {error}"}
        if "error" in said:
            raise RuntimeError(said["error"])
        return said["ok"]

    def control(self) -> None:
        """Begin a control process, unless one runs, and connect it."""
        if self._control is not None and self._control.poll() is None:
            return
        script = str(ROOT / "tests" / "serving" / "driver.py")
        self._control = subprocess.Popen(
            [sys.executable, script, str(self.place.root), str(self.place.port), str(self.replicas)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.do("connect")

    def begin(self) -> None:
        """A first version, Ray, the control process, and the replicas."""
        self.put(routes.first(ENDPOINT, self.version("v1", 0.0)), cause="first")
        local.start(self.place)
        self.control()
        self.do("deploy")

    def switch(self, route: Route, *, cause: str) -> Route:
        """Record a route and tell every replica. A control process or endpoint that fails is made up for by the replicas' polling."""
        put = self.put(route, cause=cause)
        with suppress(RuntimeError):
            self.do("activate", route=put.to_json())
        return put

    # -- hurting it

    def processes(self, kind: str) -> list[int]:
        """The processes of a kind of KINDS, found under this project's own head; the control process for "control"."""
        if kind == "control":
            return [self._control.pid] if self._control is not None and self._control.poll() is None else []
        head = json.loads((self.place.home / "ray.json").read_text())
        listed = subprocess.run(["ps", "-A", "-ww", "-o", "pid=,args="], capture_output=True, text=True, check=True).stdout
        found = []
        for pid, args in (line.split(None, 1) for line in listed.splitlines()):
            with suppress(ProcessLookupError):
                if _is(kind, args) and os.getsid(int(pid)) == head["pid"]:
                    found.append(int(pid))
        return found

    def kill(self, kind: str, at: int = 0) -> int:
        """SIGKILL one process of a kind. Returns its number; 0 when there was none."""
        found = self.processes(kind)
        if not found:
            return 0
        pid = found[at % len(found)]
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        if kind == "control" and self._control is not None:
            self._control.wait()
        return pid

    def resident(self) -> dict[int, int]:
        """The replicas' resident memory in bytes, by process."""
        found = {}
        for pid in self.processes("replica"):
            with suppress(OSError, IndexError):
                found[pid] = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return found

    def whole(self, seconds: float = 90.0) -> list[dict[str, Any]]:
        """Wait until every replica answers with the journal's epoch. Returns their states. Raises TimeoutError."""
        until, met = time.monotonic() + seconds, ""
        while time.monotonic() < until:
            try:
                self.control()
                states = list(self.do("state"))
                if [state["epoch"] for state in states] == [self.route.epoch] * self.replicas:
                    return states
                met = str(states)
            except RuntimeError as error:
                met = str(error)
            time.sleep(0.3)
        raise TimeoutError(f"the replicas did not come to epoch {self.route.epoch} in {seconds:.0f} s: {met}")

    def end(self) -> None:
        """Stop all that was begun."""
        self.kill("control")
        local.stop(self.place)
        self.journal.close()


def _is(kind: str, args: str) -> bool:
    if kind == "proxy":
        return Path(args.split()[0]).name == KINDS[kind]
    if kind == "dashboard":
        return KINDS[kind] in args
    return args.startswith(KINDS[kind])


def _tiny() -> Any:
    folder = str(ROOT / "tests" / "serving")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module("tiny")


@contextmanager
def served(replicas: int, folder: Path | None = None, database: str = "") -> Iterator[Served]:
    """A served project in `folder`, a temporary one by default; stopped in the end. `database` is where this process reaches its journal."""
    with tempfile.TemporaryDirectory(prefix="cts", dir="/tmp", ignore_cleanup_errors=True) as made:
        place = settings.load(folder or made, environ={}, port=local.free_port(), replicas=replicas)
        found = Served(place, replicas, database)
        try:
            found.begin()
            yield found
        finally:
            found.end()


def replica_of(prediction_id: str) -> str:
    """The name of the replica that gave a prediction its id."""
    return base64.b32decode(prediction_id[2:].upper() + "======")[6:10].hex()
