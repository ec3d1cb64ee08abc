"""What every kind of source promises: each thing that arrives becomes one shard, once, whatever is killed and whenever one looks."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ct.data.sources.cursor import position
from ct.store.journal import Journal
from ct.testing import source_contract
from tests.services import S3

from .source_worlds import WORLDS, Project, World, in_process, rows


@pytest.fixture(params=sorted(WORLDS))
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    in_process(monkeypatch)
    if request.param == "ObjectStore":
        request.getfixturevalue("s3")
    return str(request.param)


@pytest.fixture
def make_world(kind: str, request: pytest.FixtureRequest) -> Callable[[Path], World]:
    def make(root: Path) -> World:
        server: S3 | None = request.getfixturevalue("s3") if kind == "ObjectStore" else None
        made: World = WORLDS[kind](server.new() if server else root / "theirs")  # type: ignore[arg-type]
        return made

    return make


@pytest.fixture
def world(make_world: Callable[[Path], World], tmp_path: Path) -> World:
    return make_world(tmp_path)


def test_what_arrives_is_taken_once_in_order(world: World, tmp_path: Path) -> None:
    world.add(rows([1, 2]))
    project = Project(tmp_path / "ours", world.source)
    assert position(project.journal, "orders") is None
    assert [outcome.kind for outcome in project.take()] == ["published"]
    assert project.take() == []
    world.add(rows([3]))
    world.add(rows([4, 5]))
    again = Project(tmp_path / "ours", world.source)  # another process
    assert [outcome.rows for outcome in again.take()] == [1, 2]
    assert again.ids == [1, 2, 3, 4, 5]
    assert len({name for name, _ in again.shards}) == 3
    assert again.take() == []
    where = position(again.journal, "orders")
    assert where is not None
    assert where["source"] == world.source.explain()
    assert (where["taken"], where["outcome"]) == (3, "published")
    assert not list((tmp_path / "ours" / ".ct" / "incoming" / ".fetched").glob("orders/*"))


def test_a_limit_leaves_the_rest_for_later(world: World, tmp_path: Path) -> None:
    project = Project(tmp_path / "ours", world.source)
    for at in range(4):
        world.add(rows([at]))
        project.take(limit=0 if at else 1)
    assert project.ids == [0]
    assert len(project.take(limit=2)) == 2
    assert project.ids == [0, 1, 2]
    assert len(project.take()) == 1
    assert project.ids == [0, 1, 2, 3]


def test_looking_reads_and_changes_nothing(world: World, tmp_path: Path) -> None:
    world.add(rows([1]))
    project = Project(tmp_path / "ours", world.source)
    found = project.taker.pending(project.table)
    assert [arrival.name for arrival in found] == [arrival.name for arrival in project.taker.pending(project.table)]
    assert project.journal.head() == 0
    assert not (tmp_path / "ours" / ".ct" / "incoming").exists()


def test_a_source_keeps_the_contract(world: World, tmp_path: Path) -> None:
    (tmp_path / "fetched").mkdir()
    ids = iter(range(100))
    source_contract(world.source, lambda: world.add(rows([next(ids), next(ids)])), tmp_path / "fetched")


def test_an_arrival_that_somebody_else_took_meanwhile_is_left(world: World, tmp_path: Path) -> None:
    world.add(rows([1]))
    project = Project(tmp_path / "ours", world.source)
    (arrival,) = project.taker.pending(project.table)
    assert len(Project(tmp_path / "ours", world.source).take()) == 1
    assert project.taker.take(project.table, arrival) is None
    assert project.ids == [1]


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ct catches it."""


STEPS = ("before ingest", "after ingest", "before append", "after append")
ACTIONS = st.lists(
    st.one_of(st.just(("arrive", "")), st.just(("look", "")), st.tuples(st.just("killed"), st.sampled_from(STEPS))),
    min_size=1,
    max_size=8,
)


class Dying(Journal):
    """A journal that is asked to kill before or after it appends to a source's stream."""

    kill: Callable[[str], None] = staticmethod(lambda _: None)

    def append(self, name: str, *args: Any, **more: Any) -> Any:
        if name.startswith("source/"):
            self.kill("before append")
        done = super().append(name, *args, **more)
        if name.startswith("source/"):
            self.kill("after append")
        return done


def turn(project: Project, action: str, step: str) -> None:
    """Take what is new; killed at the step, if it comes to that."""

    def kill(at: str) -> None:
        if (action, at) == ("killed", step):
            raise Killed

    project.kill = kill
    journal = Dying(project.settings.database)
    journal.kill = kill  # type: ignore[method-assign]
    project.journal = journal
    try:
        project.take()
    except Killed:
        pass
    finally:
        project.kill = lambda _: None
        journal.kill = project.kill  # type: ignore[method-assign]


def test_any_interleaving_of_arrivals_looks_and_kills_takes_each_once(make_world: Callable[[Path], World], kind: str) -> None:
    @settings(max_examples={"Folder": 30, "DeltaTable": 15}.get(kind, 8))
    @given(ACTIONS)
    def check(actions: list[tuple[str, str]]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            world = make_world(Path(folder))
            project = Project(Path(folder) / "ours", world.source)
            count = 0
            for action, step in actions:
                if action == "arrive" or count == 0:
                    world.add(rows([2 * count, 2 * count + 1]))
                    count += 1
                if action != "arrive":
                    turn(project, action, step)
            turn(project, "look", "")
            assert sorted(project.ids) == list(range(2 * count)), "each row once"
            assert project.taker.pending(project.table) == ()
            project.journal.close()

    check()


def test_two_machines_at_one_source_double_nothing(world: World, tmp_path: Path) -> None:
    """The lock holds on one machine; between machines the journal decides, and ingest knows the bytes."""
    world.add(rows([1]))
    one, two = (Project(tmp_path / "ours", world.source) for _ in range(2))
    two.settings = two.settings.model_copy(update={"state": Path("elsewhere"), "database_url": one.settings.database})

    def race(step: str) -> None:
        if step == "after ingest":
            one.kill = lambda _: None
            two.take()
            world.add(rows([2]))
            two.take()

    one.kill = race
    one.take()
    one.take()
    assert one.ids == [1, 2]
    assert one.taker.pending(one.table) == ()


@pytest.mark.parametrize("kind", ["Folder", "DeltaTable"], indirect=True)
def test_processes_side_by_side_take_each_once(world: World, kind: str, tmp_path: Path) -> None:
    project = Project(tmp_path / "ours", world.source)
    world.add(rows([0]))
    project.take()
    for at in range(1, 6):
        world.add(rows([at]))
    code = "import json, sys; from pathlib import Path; import ct; from tests.data import source_worlds as w; from tests.data import killed_taking as k\n"
    code += "w.iceberg.extract = w.delta.extract = k.here\n"
    code += "w.Project(Path(sys.argv[1]), getattr(ct, sys.argv[2])(**json.loads(sys.argv[3]))).take()"
    command = [sys.executable, "-c", code, str(project.root), kind, json.dumps(asdict(world.source))]
    running = [subprocess.Popen(command, cwd=Path(__file__).parents[2], stderr=subprocess.PIPE) for _ in range(2)]
    for process in running:
        assert process.communicate()[1] == b""
    assert project.ids == list(range(6))
    assert project.take() == []
