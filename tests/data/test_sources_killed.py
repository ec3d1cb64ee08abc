"""Taking what a source has, killed (SIGKILL) at any step and started again: every row once, in every kind of source."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from ct.data import catalog
from ct.data.sources.cursor import Taker
from ct.store.journal import Journal

from .conftest import SALES, Place, sales
from .source_worlds import WORLDS, InDelta, Project, World, in_process, rows

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


@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_inside_the_real_ingest(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """The shard is in the Iceberg table and not in the journal, or in both and not in the cursor; then their table moves on."""
    in_process(monkeypatch)
    theirs = InDelta(tmp_path / "theirs")
    theirs.add(sales(1))
    table = replace(SALES, source=theirs.source)
    taker = Taker(place.settings, place.journal, lambda _, path: place.ingest(path, table))
    plain = Journal.append

    def killed(self: Journal, stream: str, *args: Any, **more: Any) -> Any:
        if stream == "table/sales":
            if moment == "after":
                plain(self, stream, *args, **more)
            raise KeyboardInterrupt
        return plain(self, stream, *args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", killed)
        with pytest.raises(KeyboardInterrupt):
            list(taker.take_new(table))
    assert place.warehouse.scan("sales").num_rows == 300
    theirs.add(sales(2))
    assert [outcome.kind for outcome in taker.take_new(table)] == [
        "duplicate" if moment == "after" else "published",
        "published",
    ]
    assert place.warehouse.scan("sales").num_rows == 600
    assert [shard.rows for shard in catalog.published(place.journal, "sales")] == [300, 300]
    assert list(taker.take_new(table)) == []
