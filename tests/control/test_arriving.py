"""The loop's looks at sources: what is new comes first, a source that cannot be read keeps nothing else from being done."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import deltalake
import pytest
from click.testing import Result
from typer.testing import CliRunner

import ct
from ct import pipeline, settings
from ct.cli import app
from ct.control.act import Actor
from ct.control.decide import Ingest, StartRun, decide
from ct.control.loop import observe, run
from ct.data import catalog
from ct.errors import InvalidShard, NotFound
from ct.roles import Source
from tests.loop import project


@pytest.fixture
def make_act(tmp_path: Path) -> Callable[[Source], Actor]:
    """An actor whose table `orders` has the source."""
    folder = project.write(tmp_path / "shop", 8000)

    def make(source: Source) -> Actor:
        line = pipeline.load(str(folder / "pipeline.py"))
        table = replace(line.table, source=source)
        return Actor(line.replace(table=table, features=[ct.numeric("amount")]), settings.load(folder), actor="ann")

    return make


def look(act: Actor) -> list[str]:
    return [arrival.path.name for arrival in observe(act, ask_endpoint=False).arrivals]


def test_the_loop_takes_what_a_delta_table_gains(make_act: Callable[[Source], Actor], tmp_path: Path) -> None:
    deltalake.write_deltalake(tmp_path / "theirs", project.shard(0))
    act = make_act(ct.DeltaTable(str(tmp_path / "theirs")))
    state = observe(act, ask_endpoint=False)
    (action,) = decide(act.pipeline, state)
    assert isinstance(action, Ingest)
    assert "published, 3,000 rows" in act.carry_out(action)
    assert act.carry_out(action) == "", "somebody else took it meanwhile"
    assert look(act) == []
    (shard,) = catalog.published(act.journal, "orders")
    assert shard.shard.startswith("version-0-")
    assert decide(act.pipeline, observe(act, ask_endpoint=False)) == (StartRun("3,000 new rows (at least 2,500)"),)


def test_a_distant_source_that_had_nothing_is_left_alone_for_a_while(
    make_act: Callable[[Source], Actor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deltalake.write_deltalake(tmp_path / "theirs", project.shard(0))
    act = make_act(ct.DeltaTable(str(tmp_path / "theirs")))
    act.looks.take(observe(act, ask_endpoint=False).arrivals[0])
    asked: list[str] = []
    plain = ct.DeltaTable.pending

    def counted(self: ct.DeltaTable, cursor: object) -> object:
        asked.append("once")
        return plain(self, cursor)  # type: ignore[arg-type]

    monkeypatch.setattr(ct.DeltaTable, "pending", counted)
    assert look(act) == look(act) == []
    assert asked == ["once"]
    deltalake.write_deltalake(tmp_path / "theirs", project.shard(1), mode="append")
    (new,) = act.looks.taker.pending(act.pipeline.table)  # as `ct ingest --new` does
    assert new.name.startswith("version-1-")


def test_a_source_that_cannot_be_read_is_told_and_keeps_nothing_from_being_done(
    make_act: Callable[[Source], Actor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deltalake.write_deltalake(tmp_path / "theirs", project.shard(0))
    act = make_act(ct.DeltaTable(str(tmp_path / "theirs")))
    act.looks.take(observe(act, ask_endpoint=False).arrivals[0])
    deltalake.DeltaTable(tmp_path / "theirs").delete("amount > 100")
    first, second = decide(act.pipeline, observe(act, ask_endpoint=False))
    assert isinstance(first, Ingest)
    with pytest.raises(InvalidShard, match=r"version 1 .* takes rows away"):
        act.carry_out(first)
    assert second == StartRun("3,000 new rows (at least 2,500)")

    said: list[str] = []
    monkeypatch.setattr(act, "start_ray_soon", lambda: None)
    monkeypatch.setattr(act, "commit_predictions", lambda: 0)
    act.pipeline = act.pipeline.replace(retrain=[])
    with pytest.raises(InvalidShard):
        run(act, every=0.01, once=True, say=said.append)
    alerts = [event.data for event in act.journal.read(types=["AlertRaised"])]
    assert [alert["tier"] for alert in alerts] == ["PAGE"], "three looks, one alert"
    assert "takes rows away" in alerts[0]["title"]


def test_a_source_that_is_not_there_is_an_error(make_act: Callable[[Source], Actor]) -> None:
    act = make_act(ct.DeltaTable("nowhere"))
    (action,) = decide(act.pipeline, observe(act, ask_endpoint=False))[:1]
    with pytest.raises(NotFound, match="there is no Delta table nowhere"):
        act.carry_out(action)


def command(folder: Path, *args: str) -> Result:
    """The `ct` command in this process: its start is most of the time."""
    return CliRunner().invoke(app, [*args, "--root", str(folder)])


def test_new_at_the_command_line(tmp_path: Path) -> None:
    folder = project.write(tmp_path / "shop", 8000)
    text = (folder / "pipeline.py").read_text()
    (folder / "pipeline.py").write_text(
        text.replace('owner="shop", checks', 'owner="shop", source=ct.DeltaTable("theirs"), checks')
    )
    theirs = folder / "theirs"
    deltalake.write_deltalake(theirs, project.shard(0))
    (dry,) = json.loads(command(folder, "ingest", "orders", "--new", "--dry-run", "--json").stdout)
    assert dry["name"].startswith("version-0-")
    assert not (folder / ".ct" / "incoming").exists()
    (done,) = json.loads(command(folder, "ingest", "orders", "--new", "--json").stdout)
    assert (done["kind"], done["rows"]) == ("published", 3000)
    deltalake.write_deltalake(theirs, project.shard(1), mode="append")
    deltalake.DeltaTable(theirs).delete("amount > 100")
    assert "Ingest" in command(folder, "plan").stdout
    stopped = command(folder, "ingest", "orders", "--new")
    assert stopped.exit_code == 1
    assert "published" in stopped.stdout, "what came before is taken"
    assert "--after 2" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert json.loads(command(folder, "ingest", "orders", "--new", "--after", "2", "--json").stdout) == []
    neither = command(folder, "ingest", "orders")
    assert neither.exit_code == 2
    assert "--new" in neither.stderr
