"""A served project loses what it leans on: a candidate that cannot be loaded (F17), a stuck replica (F20), database, store and dashboard (F23), the head (F22)."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest

from bench.parts.asking import Clients, Line
from bench.parts.served import ENDPOINT, Served, served
from ct import settings
from ct.registry import files, pinned
from ct.registry.routes import WHOLE, Arm
from ct.serving import local

from ..api.served import commands
from ..services import Postgres, postgres_server

LINE = """
import ct

trips = ct.Table("trips", key="trip", time="leaves")
pipeline = ct.Pipeline(
    name="tiny", table=trips, label=ct.Label("late", above=15, known_at="arrives"), features=[ct.numeric("distance")],
    model=ct.Torch("MLP"), gate=ct.Gate(beats=ct.auc(by=0.0), floors=[ct.auc(0.5)]), rollout=ct.Canary(100),
)
"""
CONTROLLER = str(Path(__file__).with_name("controlling.py"))
REPLICAS = 2
BUSY = 3.0
"""What is printed is the figure. The bound leaves room for a machine that does other things too."""
SWELL, HANG, CRASH = 888.0, 777.0, 666.0
HURTFUL = """
import os
import time

import ct
from near import BY

with open({marker!r}, "a") as file:
    file.write(f"{{os.getpid()}}\\n")


@ct.feature("distance")
def distance(values):
    if (values == 888).any():
        bytes(1 << 40)
    if (values == 777).any():
        time.sleep(60)
    if (values == 666).any():
        os._exit(1)
    return values * BY


trips = ct.Table("trips", key="trip", time="leaves")
pipeline = ct.Pipeline(
    name="tiny", table=trips, label=ct.Label("late", above=15, known_at="arrives"), features=[distance],
    model=ct.Torch("MLP"), gate=ct.Gate(beats=ct.auc(by=0.0), floors=[ct.auc(0.5)]), rollout=ct.Canary(100),
)
"""


@dataclass
class Alone:
    """The served project and its database."""

    found: Served
    server: Postgres

    def clients(self, seed: int, rate: float = 40.0) -> Clients:
        return Clients(self.found.place.port, self.found.row, rate, threads=8, seed=seed)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Alone]:
    folder: Path = tmp_path_factory.mktemp("alone")
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(postgres_server())
        (folder / "ct.toml").write_text(f'database_url = "{server.new()}"\n')
        local.start(settings.load(folder, environ={}), dashboard=True)  # so that it can die
        yield Alone(stack.enter_context(served(REPLICAS, folder)), server)


def test_a_candidate_that_cannot_be_loaded_costs_stable_nothing(alone: Alone) -> None:
    found = alone.found
    arm = found.version("f17", 1.75)  # a graph that no other version has: it is spoiled below
    held = Path(found.artifacts.address(found.artifacts.manifest(arm.manifest)[files.ONNX]))
    held.write_bytes(b"no graph")
    with alone.clients(17) as clients:
        with pytest.raises(RuntimeError, match="did not stage"):
            found.do("stage", version="f17", manifest=arm.manifest)
        # Someone puts it into the route all the same: the replicas hear of it and go on with stable.
        found.switch(found.route.with_canary(arm, weight=WHOLE), cause="f17")
        found.whole()
        time.sleep(1.0)
        found.switch(found.route.without_canary(), cause="f17 is out again")
        found.whole()
    assert [call for call in clients.calls if call.failed] == []
    assert {call.version for call in clients.calls} == {"v1"}
    told = [event.data["version"] for event in found.journal.read(f"audit/{ENDPOINT}", types=["ArtifactRefused"])]
    assert told == ["f17"] * len(told)
    assert 1 <= len(told) <= REPLICAS


def test_a_stuck_replica_gets_no_request_after_fifteen_seconds(alone: Alone) -> None:
    found = alone.found
    found.whole()
    stuck = found.processes("replica")[0]
    with alone.clients(20, rate=20.0) as clients:
        time.sleep(0.5)
        begun = time.monotonic()
        os.kill(stuck, signal.SIGSTOP)
        try:
            # A broadcast has a deadline for each replica: the other one is told, and answers for itself.
            told = found.do("activate", route=found.route.to_json())
            assert told == [found.route.epoch] * (REPLICAS - 1)
            found.whole()  # as many as there were answer, so another is in its place
            back = time.monotonic() - begun
            time.sleep(max(0.0, 16 - back))
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(stuck, signal.SIGKILL)
    held = [
        call.begun - begun for call in clients.calls if call.begun >= begun and (call.faults or call.ended - call.begun > 2)
    ]
    print(f"F20: the last request that met it came {max(held, default=0.0):.1f} s after; whole again after {back:.1f} s")
    assert max(held, default=0.0) <= 15 * BUSY
    assert [call for call in clients.calls if call.failed] == []


def test_a_rollback_with_database_and_store_dead_comes_from_the_nodes_disk(alone: Alone) -> None:
    found = alone.found
    arm = found.version("f23", 2.0)
    found.do("stage", version="f23", manifest=arm.manifest)
    route = found.switch(found.route.with_canary(arm, weight=WHOLE), cause="f23")
    found.whole()
    end = time.monotonic() + 60
    while (kept := pinned.pinned(found.place, ENDPOINT)) is None or kept.epoch != route.epoch:
        assert time.monotonic() < end
        time.sleep(0.1)
    store = Path(found.place.place("artifacts"))
    away = store.with_name("away")
    alone.server.stop("immediate")
    shutil.move(store, away)
    assert found.kill("dashboard"), "Ray's dashboard, which no request needs"
    try:
        killed = found.kill("replica")
        end = time.monotonic() + 90
        while len(set(found.processes("replica")) - {killed}) < REPLICAS:
            assert time.monotonic() < end
            time.sleep(0.2)
        with alone.clients(23) as clients:
            time.sleep(2.0)
            begun = time.monotonic()
            pinned.abort_offline(found.place, ENDPOINT, by="operator", cause="it lies")
            time.sleep(1.5)
        states = _states(found, 90)
        last = max(call.ended for call in clients.calls if call.version == "f23")
        print(f"F23: {last - begun:.2f} s from the order to the canary's last answer")
        assert last - begun <= 1.0 * BUSY
        assert [call for call in clients.calls if call.failed] == []
        assert {call.version for call in clients.calls if call.begun > last} == {"v1"}
        assert [state["epoch"] for state in states] == [route.epoch] * REPLICAS, "the new one began from the disk"
    finally:
        shutil.move(away, store)
        alone.server.start()
    # The database is back: the order is journaled as a route, and counts no longer.
    order = pinned.offline(found.place, ENDPOINT)
    assert order is not None
    assert order.epoch == found.route.epoch
    found.switch(found.route.without_canary(), cause=f"aborted offline by {order.by} at {order.at}: {order.cause}")
    found.whole()
    found.do("stage", version="f23", manifest=arm.manifest)
    found.switch(found.route.with_canary(arm, weight=WHOLE), cause="a new rollout")
    found.whole()
    with alone.clients(24) as clients:
        time.sleep(0.5)
    assert {call.version for call in clients.calls} == {"f23"}


def test_a_version_apart_may_swell_hang_and_crash(alone: Alone) -> None:
    """It runs code of its own in processes of its own. What it does there costs the caller a moment and stable nothing."""
    import test_archived

    found = alone.found
    stable = found.switch(found.route.without_canary(), cause="only stable").stable
    made, ran = test_archived.version(found._project, "apart", 1.0, text=HURTFUL)
    manifest = files.store(found.artifacts, made)
    begun = time.monotonic()
    app = found.do("deploy_arm", version="apart", manifest=manifest, most_bytes=16 << 30)
    print(f"apart: up after {time.monotonic() - begun:.1f} s")
    assert app == "tiny--apart"
    arm = Arm("apart", manifest, app)
    found.do("stage", version="apart", manifest=manifest, app=app)

    def whole() -> None:
        found.switch(found.route.with_canary(arm, weight=WHOLE), cause="apart")
        found.whole()

    whole()
    with alone.clients(9, rate=10.0) as clients:
        for hurt, seconds in ((SWELL, 3.0), (HANG, 3.0), (CRASH, 3.0)):
            time.sleep(1.0)
            line, asked = Line(found.place.port, ()), time.monotonic()
            status, body, _ = line.post("/predict", {**found.row(f"hurt-{hurt}", 1), "distance": hurt})
            took = time.monotonic() - asked
            said = json.loads(body)
            assert (status, said["arm"], said["model_version"]) == (200, "stable", stable.version)
            print(f"apart: {hurt:.0f} answered by stable after {took:.2f} s")
            assert took < seconds * BUSY
        time.sleep(2.0)
    assert [call for call in clients.calls if call.faults or call.failed] == []
    assert {call.version for call in clients.calls} == {"apart", stable.version}
    assert ran.exists(), "its code runs"
    assert not _imported(found, ran), "and in no replica of the endpoint"
    # It has come back, a new epoch trusts it again; then it becomes stable, and is taken away once nothing names it.
    end = time.monotonic() + 90
    while True:
        whole()
        with alone.clients(10, rate=20.0) as clients:
            time.sleep(0.7)
        if {call.version for call in clients.calls} == {"apart"}:
            break
        assert time.monotonic() < end
    found.switch(found.route.promoted(), cause="apart is good")
    found.whole()
    with alone.clients(11) as clients:
        time.sleep(1.0)
    assert {(call.version, call.arm, call.failed) for call in clients.calls} == {("apart", "stable", False)}
    # Its only process dies. Once there is another, as many as two replicas may have in work come at once, before they know how to reach it.
    os.kill(next(pid for pid in found.processes("replica") if str(pid) in ran.read_text().split()), signal.SIGKILL)
    met = _burst(found, 40)  # whatever they are told, they are told it in time
    assert max(took for _, took in met) < 12 * BUSY
    end = time.monotonic() + 90
    while _burst(found, 1)[0][0] != 200:
        assert time.monotonic() < end
        time.sleep(0.5)
    met = _burst(found, 200)
    print(f"apart, stable: 200 at once after its process died, the last after {max(took for _, took in met):.2f} s")
    assert {status for status, _ in met} == {200}
    where = {"version": "apart", "manifest": manifest, "app": app}
    with alone.clients(13, rate=40.0) as clients:
        assert found.do("scale_arm", **where, replicas=2)
        assert not found.do("scale_arm", **where, replicas=1), "nothing is taken from it"
    assert [call for call in clients.calls if call.faults or call.failed] == []
    assert found.do("arm_state", **where) == [2, ""]
    with pytest.raises(RuntimeError, match="the route names tiny--apart"):
        found.do("remove_arm", version="apart", manifest=manifest, app=app)
    found.do("stage", version=stable.version, manifest=stable.manifest)
    with alone.clients(12, rate=100.0) as clients:
        # No broadcast tells of this route: the replicas ask the old stable until they have read it, and so long its processes live.
        found.put(replace(found.route.without_canary(), stable=stable), cause="back")
        assert found.do("remove_arm", version="apart", manifest=manifest, app=app)
        assert {state["epoch"] for state in found.do("state")} == {found.route.epoch}
        assert not found.do("remove_arm", version="apart", manifest=manifest, app=app)
    assert [call for call in clients.calls if call.faults or call.failed] == []
    assert {call.version for call in clients.calls} == {"apart", stable.version}


def test_a_killed_head_is_started_again_with_the_last_known_good(alone: Alone) -> None:
    """The loop lives on, sees at its next turn that nobody answers, and starts another; what the old one left is ended first: it holds the port.

    `ct api` lives on too: what needs the endpoint is answered 503, and done with the same key once there is a head again.
    """
    found = alone.found
    before, arm = found.route.stable.version, found.version("f22", 1.0)
    found.do("stage", version="f22", manifest=arm.manifest)
    found.switch(replace(found.route.without_canary(), stable=arm), cause="f22 is good")
    found.whole()
    place = found.place
    (place.root / "pipeline.py").write_text(LINE)
    command = [sys.executable, CONTROLLER, str(place.root), str(place.port), str(REPLICAS), "watch"]
    with commands(place.root) as [(address, _)], subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as loop:  # fmt: skip

        def undo(to: str) -> int:
            asked = {"json": {"to": to}, "headers": {"idempotency-key": f"back to {to}".replace(" ", "-")}}
            return httpx.post(f"{address}/v1/endpoints/tiny:undo", trust_env=False, timeout=120, **asked).status_code  # type: ignore[arg-type]

        now = time.monotonic()
        assert undo(before) == 200
        print(f"F22: undo after {time.monotonic() - now:.1f} s")
        found.whole()
        print(f"F22: whole after {time.monotonic() - now:.1f} s")
        assert loop.stdin is not None
        assert loop.stdout is not None
        assert loop.stdout.readline() == "watching\n"
        os.kill(json.loads((place.home / "ray.json").read_text())["pid"], signal.SIGKILL)
        begun = time.monotonic()
        while local._running(place) is not None:
            time.sleep(0.05)
        now = time.monotonic()
        assert undo("f22") == 503
        print(f"F22: the control API refuses after {time.monotonic() - now:.1f} s")
        assert time.monotonic() - now < 20, "what Ray is asked without its head takes over half a minute"
        said, _ = loop.communicate("\n", 240)
        assert "the endpoint was down and is up again" in said
        print(f"F22: up again after {time.monotonic() - begun:.1f} s")
        with alone.clients(22) as clients:
            time.sleep(1.0)
        assert undo("f22") == 200
        assert found.route.stable == arm
    took = min(call.ended for call in clients.calls if not call.failed) - begun
    print(f"F22: answers after {took:.1f} s")
    assert took <= 60 * BUSY
    assert {(call.version, call.epoch) for call in clients.calls if not call.failed} == {(before, found.route.epoch - 1)}


def _burst(found: Served, count: int) -> list[tuple[int, float]]:
    """Status and seconds of so many requests, all begun at once."""

    def one(number: int) -> tuple[int, float]:
        line, begun = Line(found.place.port, ()), time.monotonic()
        status, _, _ = line.post("/predict", found.row(f"burst-{number}", 1))
        line.close()
        return status, time.monotonic() - begun

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(one, range(count)))


def _imported(found: Served, ran: Path) -> bool:
    """Has a replica of the endpoint run the code that left its process's number in `ran`?"""
    processes = {int(line) for line in ran.read_text().split()}
    endpoints = {int(str(state["pid"])) for state in found.do("state")}
    return bool(processes & endpoints)


def _states(found: Served, seconds: float) -> list[dict[str, object]]:
    """The states of all replicas; the journal is not asked."""
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(RuntimeError):
            states = list(found.do("state"))
            if len(states) == REPLICAS and all(state["epoch"] for state in states):
                return states
        assert time.monotonic() < end
        time.sleep(0.3)
