"""The endpoint on Ray Serve over HTTP: in-place upgrade under load, and replicas killed without losing an acknowledged row."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from listening import ask as ask_raw
from listening import head, status
from tiny import ROW, Project, model_files

from ct import settings
from ct.data import predictions
from ct.data.tables import Warehouse
from ct.registry import files, held, routes
from ct.registry.routes import Arm
from ct.serving import local
from ct.serving.grpc_messages import SERVICE, messages
from ct.store.artifacts import Artifacts
from ct.store.journal import Journal

REPLICAS = 2


@dataclass
class Live:
    """A project whose endpoint runs."""

    project: Project
    port: int
    child: subprocess.Popen[str]

    def do(self, what: str, **args: Any) -> Any:
        """Have the control plane do something. Raises RuntimeError with the error it met."""
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        self.child.stdin.write(json.dumps({"do": what, **args}) + "\n")
        self.child.stdin.flush()
        said = json.loads(self.child.stdout.readline() or '{"error": "the control plane died"}')
        if "error" in said:
            raise RuntimeError(said["error"])
        return said["ok"]


@dataclass
class Load:
    """Clients that ask as fast as they are answered until they are told to stop."""

    port: int
    threads: int = 3
    ids: list[str] = field(default_factory=list)
    by_version: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Load:
        self._running = [threading.Thread(target=self._ask, args=(at,), daemon=True) for at in range(self.threads)]
        for thread in self._running:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._running:
            thread.join(30)

    def _ask(self, number: int) -> None:
        connection, at = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30), 0
        while not self._stop.is_set():
            at += 1
            try:
                asked = json.dumps({**ROW, "trip": f"{number}-{at}"})
                connection.request("POST", "/predict", asked, {"content-type": "application/json"})
                answer = connection.getresponse()
                body = answer.read()
            except (OSError, http.client.HTTPException) as error:
                self.failed.append(repr(error))
                connection.close()
                continue
            if answer.status == 200:
                found = json.loads(body)
                self.by_version[found["model_version"]] += 1
                self.ids.append(found["predictions"][0]["prediction_id"])
            else:
                self.failed.append(f"{answer.status} {body[:200]!r}")


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    root = tmp_path_factory.mktemp("live")
    (root / "ct.toml").write_text(f"grpc_port = {local.free_port()}\nbody_seconds = 1\n")
    place = settings.load(root, environ={}, port=local.free_port())
    project = Project(place, Artifacts(place.place("artifacts")), Journal(place.database))
    project.first()
    script = str(Path(__file__).with_name("driver.py"))
    child = subprocess.Popen(
        [sys.executable, script, str(place.root), str(place.port), str(REPLICAS)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    made = Live(project, place.port, child)
    try:
        begun = time.monotonic()
        for step in ("start", "connect", "deploy"):
            made.do(step)
            print(f"{step} after {time.monotonic() - begun:.1f} s")
        yield made
    finally:
        child.kill()
        child.wait()
        local.stop(place)


def test_upgrades_in_place_fail_no_request(live: Live) -> None:
    project = live.project
    route = routes.current(project.journal, "tiny")
    assert route is not None
    with Load(live.port) as load:
        time.sleep(0.5)
        begun = time.monotonic()
        arm = project.version("v2", 1.0)
        live.do("stage", version="v2", manifest=arm.manifest)
        for weight in (1000, 5000, 0, 10_000):
            route = project.put(route.with_canary(arm, weight=weight))
            assert live.do("activate", route=route.to_json()) == [route.epoch] * REPLICAS
            time.sleep(0.4)
        route = project.put(route.promoted())
        live.do("activate", route=route.to_json())
        time.sleep(0.4)
        seconds = time.monotonic() - begun
    print(f"{len(load.ids) / seconds:.0f} requests/s, {dict(load.by_version)}")
    assert load.failed == []
    assert load.by_version["v1"] > 20
    assert load.by_version["v2"] > 20
    assert [state["epoch"] for state in live.do("state")] == [route.epoch] * REPLICAS
    assert [state["versions"] for state in live.do("state")] == [["v2"]] * REPLICAS
    with Load(live.port) as after:
        time.sleep(0.3)
    assert set(after.by_version) == {"v2"}


def test_a_damaged_version_is_refused_and_changes_nothing(live: Live) -> None:
    arm = live.project.version("v3", 2.0)
    stored = Path(live.project.artifacts.address(arm.manifest))
    stored.write_bytes(stored.read_bytes().replace(b"model", b"nodel"))
    with Load(live.port) as load:
        time.sleep(0.2)
        with pytest.raises(RuntimeError, match="stage"):
            live.do("stage", version="v3", manifest=arm.manifest)
        time.sleep(0.2)
    assert load.failed == []
    assert set(load.by_version) == {"v2"}


def test_a_version_that_torch_holds_comes_beside_a_graph_that_answers(live: Live) -> None:
    """The replicas load torch for it, while they answer."""
    from trained import small, without_graph

    project, route = live.project, routes.current(live.project.journal, "tiny")
    assert route is not None
    arm = Arm("v5", files.store(project.artifacts, without_graph(model_files("v5"), small("TabM"))))
    with Load(live.port) as load:
        live.do("stage", version="v5", manifest=arm.manifest)
        states = live.do("state")
        for changed in (route.with_canary(arm, weight=10_000), None):
            route = project.put(changed if changed is not None else route.without_canary())
            assert live.do("activate", route=route.to_json()) == [route.epoch] * REPLICAS
            time.sleep(0.6)
    assert [state["runtimes"] for state in states] == [{"v2": "onnx", "v5": "torch"}] * REPLICAS
    assert load.failed == []
    assert load.by_version["v5"] > 5
    until = time.monotonic() + 60
    while not (known := held.told(project.journal, "tiny")) and time.monotonic() < until:
        time.sleep(0.2)  # a replica tells with its next poll
    told = known[arm.manifest]
    assert (told.runtime, told.instead) == ("torch", "onnx: there is no graph: the module branches on a value")


def test_a_replica_follows_the_journal_when_no_broadcast_comes(live: Live) -> None:
    route = routes.current(live.project.journal, "tiny")
    assert route is not None
    route = live.project.put(route.with_canary(live.project.version("v4", 1.0), weight=10_000))
    until = time.monotonic() + 60
    while time.monotonic() < until and {state["epoch"] for state in live.do("state")} != {route.epoch}:
        time.sleep(0.2)
    assert {state["epoch"] for state in live.do("state")} == {route.epoch}


def test_killed_replicas_lose_no_acknowledged_row_and_come_back_to_the_same_route(live: Live) -> None:
    before = live.do("state")
    with Load(live.port) as load:
        time.sleep(1.0)
        for pid in _replicas(live.project.settings):
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.5)
    assert len(load.ids) > 20
    logged = predictions.read(live.project.settings.inbox, {})[0]
    assert set(load.ids) <= {record["id"] for record in logged}
    moved = predictions.commit(live.project.settings, Warehouse(live.project.settings))
    assert moved == len(logged)
    until = time.monotonic() + 60
    while time.monotonic() < until:
        with Load(live.port, threads=1) as again:
            time.sleep(0.3)
        if again.ids and not again.failed:
            break
    assert again.ids
    names = {state["replica"] for state in live.do("state")}
    assert not names & {state["replica"] for state in before}
    assert {state["epoch"] for state in live.do("state")} == {before[0]["epoch"]}


def _replicas(place: settings.Settings) -> list[int]:
    """The processes of this project's replicas, found under its own head."""
    head = json.loads((place.home / "ray.json").read_text())
    listed = subprocess.run(["ps", "-A", "-o", "pid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 1) for line in listed.splitlines()]
    return [int(pid) for pid, args in rows if "ServeReplica" in args and os.getsid(int(pid)) == head["pid"]]


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads Linux' table of sockets")
def test_every_protocol_and_every_limit_holds_behind_haproxy(live: Live) -> None:
    """gRPC by Serve's own server, an Arrow batch, and what the limits' layer answers: through HAProxy as without it."""
    known = messages()
    inputs = [
        {"name": name, "datatype": "FP64", "shape": [1], "contents": {"fp64_contents": [value]}}
        if isinstance(value, float)
        else {"name": name, "datatype": "BYTES", "shape": [1], "contents": {"bytes_contents": [str(value).encode()]}}
        for name, value in ROW.items()
    ]
    with grpc.insecure_channel(f"127.0.0.1:{live.project.settings.grpc_port}") as channel:
        ask = channel.unary_unary(
            f"/{SERVICE}/ModelInfer",
            request_serializer=known["ModelInferRequest"].SerializeToString,
            response_deserializer=known["ModelInferResponse"].FromString,
        )
        said = ask(known["ModelInferRequest"](model_name="tiny", inputs=inputs), timeout=20, wait_for_ready=True)
        assert {item.name for item in said.outputs} == {"score", "label", "prediction_id"}
        with pytest.raises(grpc.RpcError) as found:
            ask(known["ModelInferRequest"](model_name="tiny", inputs=inputs[1:]), timeout=20)
        assert found.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "Traceback" not in found.value.details()
    body = json.dumps(ROW).encode()
    whole = "content-type: application/json", f"content-length: {len(body)}"
    said = ask_raw(live.port, head("/predict", *whole) + body)
    assert status(said) == 200
    assert said.lower().count(b"x-request-id:") == 1  # the straight way: Serve's own layers would have added theirs
    slow = [head("/predict", *whole), *(body[at : at + 1] for at in range(30))]
    assert status(ask_raw(live.port, *slow, pause=0.1)) == 408
    endless = [b"4000\r\n" + b"x" * 0x4000 + b"\r\n"] * 400
    said = ask_raw(live.port, head("/predict", whole[0], "transfer-encoding: chunked"), *endless, pause=0.002)
    assert status(said) in (408, 413)
    assert json.loads(said.partition(b"\r\n\r\n")[2])["field"] == ""
    assert status(ask_raw(live.port, head("/predict", f"content-length: {len(body)}") + body)) == 415
    assert status(ask_raw(live.port, head("/predict", *whole, "transfer-encoding: chunked") + body)) in (400, 408)
    assert status(ask_raw(live.port, head("/v2/%2e%2e/predict", *whole) + body)) == 404
    assert status(ask_raw(live.port, head("/predict", *whole, "x-request-timeout-seconds: 0") + body)) == 400


def test_haproxys_own_pages_are_open_to_this_machine_only(live: Live) -> None:
    """Serve's template binds them to every interface; so would the port of the endpoint be, were it told to."""
    head = json.loads((live.project.settings.home / "ray.json").read_text())
    (config,) = Path(head["folder"]).rglob("haproxy.cfg")
    text = config.read_text()
    ports = {int(found) for found in re.findall(r"^ +bind \S*:(\d+)", text, re.MULTILINE)}
    assert len(ports) == 4
    assert live.port in ports
    assert "timeout http-request 10s" in text
    assert "be_conn,div(txn.up) gt 128" in text
    assert listening(ports) == {(port, "0100007F") for port in ports}


def listening(ports: set[int]) -> set[tuple[int, str]]:
    """Which of these ports are listened on, each with its address as Linux' table of sockets writes it."""
    found = set()
    for table in ("tcp", "tcp6"):
        for row in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            address, state = row.split()[1], row.split()[3]
            host, _, port = address.partition(":")
            if state == "0A" and int(port, 16) in ports:
                found.add((int(port, 16), host))
    return found
