"""The cluster's doors: `ray job submit` of every job and `serve deploy` of a config, against a head that `ray start` started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from ct import settings
from ct.control import runs
from ct.control.calls import post
from ct.data import catalog
from ct.registry import routes, versions
from ct.serving import local
from ct.store.journal import Journal
from tests.loop import project

ROOT = Path(__file__).parents[2]
NAME = "late-orders"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    made = project.write(tmp_path_factory.mktemp("cluster"), local.free_port())
    place = settings.load(made)
    local.start(place, dashboard=True, cpus=4)
    yield made
    local.stop(place)


def environment(folder: Path) -> dict[str, str]:
    """What a person on that cluster has exported."""
    place = settings.load(folder)
    head = json.loads((place.home / "ray.json").read_text())
    return os.environ | {
        "RAY_API_SERVER_ADDRESS": head["dashboard"],
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(place.home / "ray.token"),
    }


def submit(folder: Path, job: str, *args: str) -> str:
    """Submit a job and wait for its end."""
    ray = str(Path(sys.executable).with_name("ray"))
    command = [ray, "job", "submit", "--", sys.executable, str(ROOT / "jobs" / f"{job}.py"), *args, "--root", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment(folder), check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    return done.stdout


def test_the_jobs_and_a_declared_endpoint(folder: Path) -> None:
    place = settings.load(folder)
    journal = Journal(place.database)

    submit(folder, "ingest", "orders", str(project.shard_path(folder, 0)))
    assert [shard.rows for shard in catalog.published(journal, "orders")] == [project.ROWS]

    submit(folder, "train", "--workers", "2")  # that one worker gives the same bytes is held by tests/training/test_trainer.py
    (run,) = runs.all_runs(journal, NAME)
    assert (run.facts["workers"], run.version) == (2, "v1")

    said = submit(folder, "sweep", "--trials", "2")
    assert "best:" in said
    tried = [event.type for event in journal.read(f"sweep/{NAME}")]
    assert tried == ["SweepStarted", "TrialReached", "TrialReached", "SweepEnded"]
    assert versions.all_versions(journal, NAME)[-1].run == runs.all_runs(journal, NAME)[-1].id

    config = yaml.safe_load((ROOT / "serve_configs" / "local.yaml").read_text())
    config["http_options"]["port"] = place.port
    config["applications"][0] |= {"name": NAME, "args": {"endpoint": NAME, "root": str(folder), "replicas": 1}}
    (folder / "serve.yaml").write_text(yaml.safe_dump(config))
    serve = str(Path(sys.executable).with_name("serve"))
    done = subprocess.run(
        [serve, "deploy", str(folder / "serve.yaml"), "--address", environment(folder)["RAY_API_SERVER_ADDRESS"]],
        capture_output=True, text=True, timeout=120, env=environment(folder), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr

    # The loop, as a job: it gives the declared endpoint its first route.
    submit(folder, "control", "--once")
    stable = routes.current(journal, NAME)
    assert stable is not None
    row, _ = project.requests(2)[0]
    answer = post(place, "/predict", {"instances": [row]})
    assert (answer["model_version"], answer["arm"]) == (stable.stable.version, "stable")

    assert f"stable {stable.stable.version}" in submit(folder, "rollout", "status")
