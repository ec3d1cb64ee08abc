"""`ct watch` killed in the middle of training and in the middle of a canary: started again, it ends where it would have ended."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ct import settings
from ct.control import runs
from ct.control.calls import post
from ct.errors import CtError
from ct.registry import routes
from ct.rollout import state as rollouts
from ct.serving import local
from ct.store.artifacts import Artifacts
from ct.store.journal import Journal
from tests.loop import project

NAME = "late-orders"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    made = project.write(tmp_path_factory.mktemp("watched"), local.free_port(), epochs=40)
    yield made
    project.ct(made, "deploy", "--down", check=False)


def until(what: str, folder: Path, found: Callable[[], bool], seconds: float = 150) -> None:
    end = time.monotonic() + seconds
    while not found():
        log = (folder / "output.log").read_text()[-3000:] if (folder / "output.log").exists() else ""
        assert time.monotonic() < end, f"{what} did not happen in {seconds} s:\n{log}"
        time.sleep(0.02)


class Traffic(threading.Thread):
    """Asks for the third shard's orders one by one and tells their truth; every failure is kept."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.place, self.failed, self.answers = settings.load(folder), [], []
        self.halted = threading.Event()
        self.failed: list[str]
        self.answers: list[dict[str, object]]

    def run(self) -> None:
        rows = project.requests(2)
        at = 0
        while not self.halted.is_set():
            row, truth = rows[at % len(rows)]
            at += 1
            try:
                answer = post(self.place, "/predict", {"instances": [row]})
                self.answers.append(answer)
                post(
                    self.place,
                    "/labels",
                    {"labels": [{"prediction_id": answer["predictions"][0]["prediction_id"], "value": truth}]},
                )
            except CtError as error:
                self.failed.append(str(error))
            time.sleep(0.01)

    def halt(self) -> None:
        self.halted.set()
        self.join()


def test_killed_in_training_and_in_a_canary(folder: Path, tmp_path: Path) -> None:
    place = settings.load(folder)
    journal = Journal(place.database)

    # In training: killed once the first epochs are done, started again until nothing is left to do.
    project.land(folder, 0)
    watch = project.start(folder, "watch")
    until("training", folder, lambda: any((place.home / "training").glob("*/progress.jsonl")))
    watch.kill()
    watch.wait()
    assert not runs.all_runs(journal, NAME)[0].outcome, "the run was to be killed before its end"
    project.ct(folder, "watch", "--once")
    (run,) = runs.all_runs(journal, NAME)
    assert (run.outcome, run.version) == ("registered", "v1")
    assert routes.current(journal, NAME).stable.version == "v1"  # type: ignore[union-attr]

    # The same data, undisturbed, in a project of its own: the same bytes.
    calm = project.write(tmp_path / "calm", local.free_port(), epochs=40)
    project.ct(calm, "ingest", "orders", str(project.shard_path(calm, 0)))
    project.ct(calm, "train")
    (other,) = runs.all_runs(Journal(settings.load(calm).database), NAME)
    assert other.facts["weights"] == run.facts["weights"]

    # In a canary: killed after the first step, started again under the same traffic.
    traffic = Traffic(folder)
    traffic.start()
    project.land(folder, 1)
    watch = project.start(folder, "watch")
    until("a canary", folder, lambda: any(r.step >= 0 for r in rollouts.history(journal, NAME)))
    watch.kill()
    watch.wait()
    watch = project.start(folder, "watch")
    until("an end", folder, lambda: bool(rollouts.history(journal, NAME)[0].outcome))
    time.sleep(1)
    watch.kill()
    watch.wait()
    traffic.halt()
    assert traffic.failed == []
    assert [r.outcome for r in rollouts.history(journal, NAME)] == ["promoted"]
    assert traffic.answers[-1]["model_version"] == "v2"
    assert {answer["model_version"] for answer in traffic.answers} == {"v1", "v2"}

    _asked_afterwards(folder, traffic, journal)


def _asked_afterwards(folder: Path, traffic: Traffic, journal: Journal) -> None:
    """What an auditor asks of the same project: status, why, history, and bytes that were changed."""
    status = json.loads(project.ct(folder, "status", "--verify", "--json").stdout)
    assert status["verified"]["events"] == journal.head()
    assert [(v["version"], v["alias"]) for v in status["versions"]] == [("v1", "retired"), ("v2", "champion")]
    last = traffic.answers[-1]["predictions"][0]["prediction_id"]  # type: ignore[index]
    why = json.loads(project.ct(folder, "why", last, "--json").stdout)
    assert why["prediction"]["version"] == "v2"
    assert len(why["rows"]) == 2
    assert "promoted" in why["route"]["because"]
    (live,) = json.loads(project.ct(folder, "drift", "--live", "--json").stdout)
    assert live["reference"] == "v2"
    assert live["rows"] > 25
    assert {row["column"] for row in live["features"]} == {"amount", "country", "days_late_mean_by_country_7d"}
    unknown = project.ct(folder, "why", "p-unknown", check=False)
    assert unknown.returncode == 1
    assert "there is no prediction" in unknown.stderr
    assert "Traceback" not in unknown.stderr
    history = json.loads(project.ct(folder, "rollout", "history", "--json").stdout)
    assert [(entry["stable"], entry["canary"], entry["share"]) for entry in history] == [
        ("v1", None, 0.0),
        ("v1", "v2", 0.5),
        ("v1", "v2", 1.0),
        ("v2", None, 0.0),
    ]
    artifacts = Artifacts(settings.load(folder).place("artifacts"))
    manifest = routes.current(journal, NAME).stable.manifest  # type: ignore[union-attr]
    victim = Path(artifacts.address(artifacts.manifest(manifest)["weights.safetensors"]))
    victim.write_bytes(victim.read_bytes()[:-1] + b"\x00")
    refused = project.ct(folder, "status", "--verify", check=False)
    assert refused.returncode == 1
    assert "has the hash" in refused.stderr
