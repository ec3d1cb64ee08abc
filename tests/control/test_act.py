"""The actor's refusals."""

from __future__ import annotations

from pathlib import Path

import pytest

from ct import pipeline, settings
from ct.control import runs
from ct.control.act import Actor
from ct.control.decide import StartRun, decide
from ct.control.loop import observe
from ct.errors import NotFound, TrainingFailed
from ct.rollout import state
from tests.loop import project


@pytest.fixture
def act(tmp_path: Path) -> Actor:
    folder = project.write(tmp_path / "shop", 8000)
    return Actor(pipeline.load(str(folder / "pipeline.py")), settings.load(folder), actor="ann")


def test_a_run_of_a_pipeline_that_has_changed_since_is_ended_not_bent(act: Actor, ray_local: None) -> None:
    act.ingest("orders", project.shard_path(act.settings.root, 0))
    run = act.start_run("by hand")
    changed = Actor(act.pipeline.replace(holdout="4d"), act.settings)
    with pytest.raises(TrainingFailed, match="has changed since"):
        changed.train(run)
    assert [r.outcome for r in runs.all_runs(act.journal, "late-orders")] == ["failed"]
    assert observe(act, ask_endpoint=False).run is None


def test_the_loop_sees_landed_files_once_and_ignores_those_not_ready(act: Actor) -> None:
    folder = act.settings.root
    project.land(folder, 0)
    (folder / "landing" / "orders" / ".half.parquet").write_bytes(b"half")
    (arrival,) = observe(act, ask_endpoint=False).arrivals
    assert arrival.path.name == "orders-0.parquet"
    act.ingest(arrival.table, arrival.path)
    seen = observe(act, ask_endpoint=False)
    assert seen.arrivals == ()
    assert decide(act.pipeline, seen) == (StartRun("3,000 new rows (at least 2,500)"),)


def test_steering_without_a_rollout_or_a_deployment_says_so(act: Actor) -> None:
    for verb in (act.pause, act.resume, act.promote, act.abort):
        with pytest.raises(NotFound, match="no rollout in progress"):
            verb()
    with pytest.raises(NotFound, match="is not deployed"):
        act.undo()
    with pytest.raises(NotFound, match="no version has passed"):
        act.deploy()
    assert state.history(act.journal, "late-orders") == ()
