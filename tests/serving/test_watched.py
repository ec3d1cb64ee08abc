"""serve_configs/production.yaml on a real head: accepted, scaled up by load without a failed request, and scraped as one endpoint."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from tiny import ROW, Project

from ct import settings
from ct.governance import access
from ct.serving import local
from ct.store.artifacts import Artifacts
from ct.store.journal import Journal

ROOT = Path(__file__).parents[2]
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: prometheus)")
CLIENTS = 48


@dataclass
class Served:
    """The endpoint of production.yaml, with the tokens of a caller and of Prometheus. `sent` counts the answers of 200 to /predict."""

    place: settings.Settings
    predict: str
    read: str
    config: dict[str, Any]
    sent: int = 0

    def ask(self, body: dict[str, Any] | None = None, *, path: str = "/predict", seconds: float = 30.0) -> tuple[int, bytes]:
        """One request with the token that its door asks for."""
        connection = http.client.HTTPConnection("127.0.0.1", self.place.port, timeout=seconds)
        try:
            token = self.read if body is None else self.predict
            given = {"authorization": f"Bearer {token}", "content-type": "application/json"}
            connection.request("GET" if body is None else "POST", path, json.dumps(body) if body else None, given)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def scrape(self, seconds: float = 10.0) -> str:
        """The text of /metrics, from whichever replica the request comes to."""
        status, body = self.ask(path="/metrics", seconds=seconds)
        if status != 200:  # the replica that was asked hangs or has just died
            raise ConnectionError(f"{status} {body[:200]!r}")
        return body.decode()


def series(text: str, name: str) -> dict[str, float]:
    """A metric's values by replica, summed over its other labels; a histogram's counts."""
    found: defaultdict[str, float] = defaultdict(float)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name:
                found[sample.labels["replica"]] += sample.value
    return dict(found)


def up(text: str) -> set[str]:
    return {replica for replica, value in series(text, "ct_replica_up").items() if value == 1}


def adapted(place: settings.Settings) -> dict[str, Any]:
    """production.yaml for this machine: one project, one node, few cores, and a quicker hand on the scale."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "serve_configs" / "production.yaml").read_text())
    config["http_options"]["port"] = place.port
    (app,) = config["applications"]
    app["name"] = app["args"]["endpoint"] = "tiny"
    app["args"] |= {"root": str(place.root), "replicas": "1:2"}
    app["deployments"][0]["ray_actor_options"]["num_cpus"] = 0.5
    return config


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    place = settings.load(tmp_path_factory.mktemp("watched"), environ={}, port=local.free_port())
    project = Project(place, Artifacts(place.place("artifacts")), Journal(place.database))
    project.first()
    made = Served(
        place,
        access.create(project.journal, "caller", "predict")[1],
        access.create(project.journal, "prometheus", "read")[1],
        adapted(place),
    )
    try:
        begun = time.monotonic()
        local.start(place, dashboard=True, cpus=4)
        print(f"head after {time.monotonic() - begun:.1f} s")
        deploy(made)
        print(f"deployed after {time.monotonic() - begun:.1f} s")
        wait(lambda: made.ask(path="/v2/health/ready", seconds=5)[0] == 200, 120)
        print(f"ready after {time.monotonic() - begun:.1f} s")
        yield made
    finally:
        local.stop(place)


def deploy(served: Served) -> None:
    """`serve deploy`, as a person types it."""
    file = served.place.root / "production.yaml"
    file.write_text(yaml.safe_dump(served.config))
    head = json.loads((served.place.home / "ray.json").read_text())
    env = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(served.place.home / "ray.token")}
    command = [
        sys.executable,
        "-c",
        "from ray.serve.scripts import cli; cli()",
        "deploy",
        str(file),
        "--address",
        head["dashboard"],
    ]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def wait(for_it: Any, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if for_it():
                return
        except (OSError, http.client.HTTPException):
            pass
        time.sleep(0.2)
    raise AssertionError(f"not within {seconds} s")


def test_load_brings_a_second_replica_and_no_request_fails(served: Served) -> None:
    """Behind HAProxy requests pass no Serve handle: the replicas themselves must tell the autoscaler. A new one has its route before it is asked."""
    failed: list[str] = []
    answered: list[int] = []
    stop = threading.Event()

    def caller(number: int) -> None:
        while not stop.is_set():
            try:
                status, body = served.ask({**ROW, "trip": str(number)})
            except (OSError, http.client.HTTPException) as error:
                failed.append(repr(error))
                continue
            (answered.append(status) if status == 200 else failed.append(f"{status} {body[:200]!r}"))

    threads = [threading.Thread(target=caller, args=(number,), daemon=True) for number in range(CLIENTS)]
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    try:
        wait(lambda: len(up(served.scrape())) == 2, 90)
        print(f"a second replica answers after {time.monotonic() - begun:.1f} s")
        # The proxy learns of it a moment later; then it gets its part.
        wait(lambda: min(series(served.scrape(), "ct_predictions_total").values()) > 20, 30)
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    served.sent += len(answered)
    assert failed == []


def test_a_scrape_from_any_replica_tells_of_all(served: Served) -> None:
    for at in range(20):
        assert served.ask({"instances": [{**ROW, "trip": f"{at}-{row}"} for row in range(3)]})[0] == 200
    served.sent += 20
    seen = set()
    for _ in range(8):
        text = served.scrape()
        asked = series(text, "ct_requests_total")
        assert len(up(text)) == 2
        assert sum(asked.values()) == served.sent
        assert sum(series(text, "ct_request_duration_seconds_count").values()) == served.sent
        assert sum(series(text, "ct_predictions_total").values()) == served.sent + 40
        assert set(series(text, "ct_routing_epoch").values()) == {1}
        seen.add(frozenset(asked))
    assert len(seen) == 1
    assert sum(series(text, "ct_http_responses_total").values()) > served.sent


@needs_promtool
def test_promtool_finds_no_fault_with_a_real_scrape(served: Served) -> None:
    done = subprocess.run(
        [str(PROMTOOL), "check", "metrics"], input=served.scrape(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_board_and_rules_name_is_in_a_real_scrape(served: Served) -> None:
    """The control plane's own are in the families that it tells, see tests/control/test_exposed.py."""
    from ct.control.exposed import FAMILIES

    lines = re.findall(r"^# TYPE (\S+) ", served.scrape(), re.M)
    known = set(lines) | set(FAMILIES)
    parts = {f"{name}{ending}" for name in known for ending in ("_bucket", "_sum", "_count")}
    for file in ("grafana.json", "alerts.yml"):
        named = set(re.findall(r"\bct_[a-z_]+", (ROOT / "ops" / file).read_text()))
        assert len(named) > 5, file
        assert named - known - parts == set(), file


def test_a_hung_replica_is_told_and_not_waited_for(served: Served) -> None:
    victim = replicas(served.place)[0]
    os.kill(victim, signal.SIGSTOP)
    try:
        begun, text = 0.0, ""
        until = time.monotonic() + 20
        while not text and time.monotonic() < until:
            begun = time.monotonic()
            try:  # the one that hangs may be the one that is asked
                text = served.scrape(seconds=4)
            except OSError:
                continue
        assert time.monotonic() - begun < 4
        assert sorted(series(text, "ct_replica_up").values()) == [0, 1]
        assert len(series(text, "ct_requests_total")) == 1
    finally:
        os.kill(victim, signal.SIGCONT)
    wait(lambda: len(up(served.scrape())) == 2, 60)


def test_a_killed_replica_is_told_as_down_and_its_successor_counts_anew(served: Served) -> None:
    before = up(served.scrape())
    os.kill(replicas(served.place)[0], signal.SIGKILL)
    wait(lambda: 0 in series(served.scrape(seconds=4), "ct_replica_up").values(), 60)
    wait(lambda: len(up(served.scrape(seconds=4))) == 2, 60)
    text = served.scrape()
    (new,) = up(text) - before
    assert series(text, "ct_requests_total")[new] < served.sent
    assert series(text, "ct_routing_epoch")[new] == 1


def replicas(place: settings.Settings) -> list[int]:
    """The processes of this project's replicas, found under its own head."""
    head = json.loads((place.home / "ray.json").read_text())
    listed = subprocess.run(["ps", "-A", "-o", "pid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 1) for line in listed.splitlines()]
    return [int(pid) for pid, args in rows if "ServeReplica" in args and os.getsid(int(pid)) == head["pid"]]
