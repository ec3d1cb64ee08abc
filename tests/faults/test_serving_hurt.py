"""A served project under load whose parts are killed or cut off (F18, F19, F21, F29), and a short soak; each history is checked whole.

Where PostgreSQL is at hand the project's journal lies behind a wire that can be cut. CT_FAULTS=all kills the controller at every change.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from bench.parts import history
from bench.parts.asking import PAUSES, Clients, Line
from bench.parts.served import ENDPOINT, Served, served
from bench.parts.soaking import soak
from ct.data import predictions
from ct.errors import Conflict
from ct.registry import routes, versions
from ct.rollout import state

from ..services import postgres_server
from .wire import Wire, wired

REPLICAS = 2
BUSY = 3.0
"""What is printed is the figure. The bound leaves room for a machine that does other things too."""
BUDGET = 0.001
RATE = 60.0
CONTROLLER = str(Path(__file__).with_name("controlling.py"))
# Else only once: when the journal has the route that promotes, and no replica has been told of it.
KILLS = [("", step) for step in range(1, 100)] if os.environ.get("CT_FAULTS") == "all" else [("activate", 3)]
UNROUTED = "Path '/predict' not found"


@dataclass
class Hurt:
    """The served project, and the wire to its database where there is one."""

    found: Served
    wire: Wire | None

    def clients(self, seed: int, pauses: tuple[float, ...] = PAUSES) -> Clients:
        return Clients(self.found.place.port, self.found.row, RATE, seed=seed, labels=True, pauses=pauses)

    def broken(self, clients: Clients) -> list[str]:
        """Contradictions in what these clients were told."""
        known = {live.route.epoch: live.route for live in routes.history(self.found.journal, ENDPOINT)}
        mine = f"{clients.seed}-"
        log = [r for r in predictions.everything(self.found.place) if r["kind"] == "label" or str(r["key"]).startswith(mine)]
        self.found.journal.verify()
        return history.broken(clients.calls, log, known, self.found.expected)

    def canary(self, name: str, bias: float = 0.5, weight: int = 5_000) -> None:
        arm = self.found.version(name, bias)
        self.found.do("stage", version=name, manifest=arm.manifest)
        self.found.switch(self.found.route.with_canary(arm, weight=weight), cause="test")


@pytest.fixture(scope="module")
def hurt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hurt]:
    folder: Path = tmp_path_factory.mktemp("hurt")
    with contextlib.ExitStack() as stack:
        wire, direct = None, ""
        try:
            server = stack.enter_context(postgres_server())
        except pytest.skip.Exception:
            print("PostgreSQL is not here: the journal is SQLite's, and the partition is left out")
        else:
            wire, direct = stack.enter_context(wired("127.0.0.1", server.port)), server.new()
            behind = direct.replace(f":{server.port}/", f":{wire.port}/")
            (folder / "ct.toml").write_text(f'database_url = "{behind}"\n')
        yield Hurt(stack.enter_context(served(REPLICAS, folder, direct)), wire)


@pytest.fixture
def controller(hurt: Hurt) -> Iterator[Callable[..., tuple[int, str]]]:
    """A controller's life: it rolls a version out, or is killed before its `step`-th durable change. Gives its exit code and what it said."""
    place = hurt.found.place
    command = [sys.executable, "-W", "ignore", CONTROLLER, str(place.root), str(place.port), str(hurt.found.replicas)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as script:

        def live(version: str, before: str = "", step: int = 0) -> tuple[int, str]:
            assert script.stdin is not None
            assert script.stdout is not None
            script.stdin.write(json.dumps({"version": version, "before": before, "step": step}) + "\n")
            script.stdin.flush()
            told = json.loads(script.stdout.readline())
            return told["code"], told["said"]

        yield live
        script.kill()


def test_a_killed_controller_is_followed_by_one_that_ends_its_rollout(
    hurt: Hurt, controller: Callable[..., tuple[int, str]]
) -> None:
    """Each time another version is rolled out; whoever comes after the killed one finds the journal and the replicas as they are."""
    found, ended = hurt.found, []

    def register(name: str, manifest: str) -> None:
        versions.register(
            found.journal, ENDPOINT, manifest=manifest, run=name, verdict="pass", metrics={"auc": 0.9}, version=name
        )

    register("v1", found.route.stable.manifest)
    with hurt.clients(18) as clients:
        for number, (before, step) in enumerate(KILLS, start=2):
            name = f"v{number}"
            register(name, found.version(name, 0.1 * number).manifest)
            code, said = controller(name, before, step)
            ended.append((name, "ended", "promoted"))
            if code == 0:  # there are no more changes than that
                break
            assert code == -signal.SIGKILL, said
            assert controller(name) == (0, "promoted"), step
            assert (found.route.stable.version, found.route.candidates) == (name, ())
            assert {tuple(live["shown"].items()) for live in found.whole()} == {(("stable", name),)}
    print(f"F18: {len(ended)} rollouts, {len(clients.calls)} calls")
    assert [(rollout.version, rollout.phase, rollout.outcome) for rollout in state.history(found.journal, ENDPOINT)] == ended
    assert [call for call in clients.calls if call.failed] == []
    assert hurt.broken(clients) == []


def test_a_killed_replica_costs_no_acknowledged_row_and_stays_in_the_budget(hurt: Hurt) -> None:
    found = hurt.found
    hurt.canary("f19")
    before = {state["replica"] for state in found.whole()}
    with hurt.clients(19) as clients:
        time.sleep(1.5)
        killed = found.kill("replica")
        assert killed
        states = found.whole()
        time.sleep(0.5)
    assert killed not in found.processes("replica")
    assert len(before & {state["replica"] for state in states}) == REPLICAS - 1, "one was replaced"
    failed = [call for call in clients.calls if call.failed]
    assert len(failed) <= BUDGET * len(clients.calls), failed[:3]
    assert {call.version for call in clients.calls} == {found.route.stable.version, "f19"}
    assert hurt.broken(clients) == []


def test_a_killed_proxy_is_back_in_ten_seconds_and_answers_are_never_wrong(hurt: Hurt) -> None:
    if not hurt.found.processes("proxy"):
        pytest.skip("HAProxy is not part of this installation")
    with hurt.clients(21, pauses=()) as clients:  # no second try: what a client sees is what there was
        time.sleep(1.0)
        killed = hurt.found.kill("proxy")
        gone = time.monotonic()
        end = gone + 30
        while time.monotonic() < end and not any(not call.failed and call.begun > gone + 0.05 for call in clients.calls):
            time.sleep(0.05)
        time.sleep(1.0)
    back = min((call.ended for call in clients.calls if not call.failed and call.begun > gone + 0.05), default=end)
    assert back - gone <= 10.0 * BUSY
    assert killed not in hurt.found.processes("proxy")
    print(f"back after {back - gone:.1f} s", Counter((call.status, *call.faults)[:2] for call in clients.calls))
    # Serve's new proxy answers 404 in its own words until it knows the routes; no answer of the model is ever wrong.
    other = [call for call in clients.calls if call.failed and call.status and not call.faults[-1].startswith(UNROUTED)]
    assert other == []
    assert not [call for call in clients.calls if call.failed and call.begun > back + 0.5]
    assert hurt.broken(clients) == []


def test_a_partition_from_the_database_stops_no_answer_and_heals(hurt: Hurt) -> None:
    if hurt.wire is None:
        pytest.skip("PostgreSQL is not on this machine: apt-get install postgresql")
    found = hurt.found
    stale = found.route
    with hurt.clients(29) as clients:
        time.sleep(0.5)
        hurt.wire.cut()
        # On this side of the cut someone decides; the replicas, on the other side, cannot hear of it.
        arm = found.version("f29", 1.5)
        decided = found.put(stale.with_canary(arm, weight=10_000), cause="decided behind a partition")
        time.sleep(3.0)
        cut_off = [call for call in clients.calls if call.epoch > stale.epoch]
        hurt.wire.mend()
        healed = time.monotonic()
        found.whole()
        took = time.monotonic() - healed
        time.sleep(0.5)
    assert not cut_off
    assert [call for call in clients.calls if call.failed] == []
    assert took < 15 * BUSY
    assert {call.version for call in clients.calls if call.epoch == decided.epoch} == {"f29"}
    assert hurt.broken(clients) == []
    with pytest.raises(Conflict):  # who still believes in the route from before can write nothing
        found.put(replace(stale.without_canary(), stable=stale.stable), cause="a writer from before")
    assert found.do("activate", route=stale.to_json()) == [decided.epoch] * REPLICAS, "nor can it tell the replicas"


def test_a_stopped_control_process_wakes_to_change_nothing(hurt: Hurt) -> None:
    """It held an order while another took over: its broadcast of the older route is refused by every replica."""
    found = hurt.found
    stale = found.route
    (control,) = found.processes("control")
    os.kill(control, signal.SIGSTOP)
    try:
        new = found.put(stale.without_canary(), cause="taken over")
        end = time.monotonic() + 90
        while _epoch(found) != new.epoch:
            assert time.monotonic() < end, "the replicas follow the journal without a control process"
            time.sleep(0.1)
    finally:
        os.kill(control, signal.SIGCONT)
    assert found.do("activate", route=stale.to_json()) == [new.epoch] * REPLICAS
    assert {state["epoch"] for state in found.whole()} == {new.epoch}


def _epoch(found: Served) -> int:
    """The lowest epoch that several answers over connections of their own name."""
    epochs = []
    for number in range(6):
        line = Line(found.place.port, PAUSES)
        status, body, _ = line.post("/predict", found.row(f"look-{random.random()}", number))
        line.close()
        assert status == 200, body
        epochs.append(json.loads(body)["epoch"])
    return min(epochs)


def test_a_short_soak_breaks_no_invariant(hurt: Hurt) -> None:
    result = soak(hurt.found, 20.0, seed=7, at_least=("upgrade", "kill_replica", "step", "kill_controller", "promote", "kill_control", "commit"))  # fmt: skip
    assert result.broken == []
    assert result.figures["calls"] > 200
    assert result.figures["epochs"] > 3
    assert result.figures["failed_fraction"] <= BUDGET, result.figures
    assert result.deeds["kill_replica"] + result.deeds["kill_controller"] + result.deeds["kill_control"] >= 2, result.deeds
