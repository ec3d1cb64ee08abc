"""Taking what a source has, killed (SIGKILL) at any step and started again: every row once, in every kind of source."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from .source_worlds import WORLDS, Project, World, in_process, rows

SCRIPT = Path(__file__).with_name("killed_taking.py")


@pytest.mark.parametrize("kind", sorted(WORLDS))
def test_killed_at_any_step_and_started_again(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_process(monkeypatch)
    place = request.getfixturevalue("s3").new() if kind == "ObjectStore" else tmp_path / "theirs"
    world: World = WORLDS[kind](place)
    for ids in ([1, 2], [3]):
        world.add(rows(ids))
    command = [sys.executable, "-W", "ignore", str(SCRIPT), kind, json.dumps(asdict(world.source)), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    steps = int(done.stdout)
    assert steps >= (14 if kind in ("Folder", "ObjectStore") else 10)  # tables bring both snapshots as one shard
    for step in range(1, steps + 1):
        if step == steps // 2:
            world.add(rows([4]))  # from here on, the source has moved on before the second start
        project = Project(tmp_path / str(step), world.source)
        project.take()
        assert sorted(project.ids) == ([1, 2, 3] if step < steps // 2 else [1, 2, 3, 4]), step
        assert project.taker.pending(project.table) == (), step
        assert not list((project.settings.home / "incoming" / ".fetched").glob("orders/*")), step
        project.journal.verify()
        project.journal.close()
