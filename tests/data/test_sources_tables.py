"""Iceberg and Delta tables of somebody else as sources: what a snapshot becomes, what stops the reading, and the process that reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import deltalake
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.catalog.sql import SqlCatalog

from ct.data.sources import delta
from ct.data.sources.cursor import cursor, position
from ct.data.sources.delta import DeltaTable
from ct.data.sources.iceberg import IcebergTable
from ct.errors import Conflict, Corrupt, CtError, InvalidPipeline, InvalidRequest, InvalidShard, NotFound, Unavailable
from tests.services import S3

from .source_worlds import InDelta, InIceberg, Project, in_process, rows

KINDS = [InIceberg, InDelta]
Make = Callable[..., Any]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    in_process(monkeypatch)


@pytest.fixture(params=KINDS)
def theirs(request: pytest.FixtureRequest, tmp_path: Path, here: None) -> Any:
    return request.param(tmp_path / "theirs")


@pytest.fixture
def ice(tmp_path: Path, here: None) -> InIceberg:
    return InIceberg(tmp_path / "theirs")


@pytest.fixture
def lake(tmp_path: Path, here: None) -> InDelta:
    return InDelta(tmp_path / "theirs")


def newest(world: Any) -> str:
    """The newest snapshot or version as a person would call it."""
    return str(world.table.current_snapshot().snapshot_id if isinstance(world, InIceberg) else world.table.version())


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_first_shard_is_the_table_as_it_stands(theirs: Any, tmp_path: Path) -> None:
    for at in range(3):
        theirs.add(rows([at]))
    theirs.table.delete("id = 1")
    project = Project(tmp_path / "ours", theirs.source)
    assert [outcome.rows for outcome in project.take()] == [2]
    assert sorted(project.ids) == [0, 2]
    theirs.add(rows([3]))
    assert newest(theirs) in project.take()[0].shard


def test_an_empty_table_has_nothing_yet(ice: InIceberg, tmp_path: Path) -> None:
    project = Project(tmp_path / "ours", ice.source)
    assert project.take() == []
    ice.add(rows([]))
    assert project.take() == []
    ice.add(rows([1]))
    assert [outcome.rows for outcome in project.take()] == [1]
    ice.add(rows([]))
    assert project.take() == []


def test_what_takes_rows_away_is_said_and_not_skipped(theirs: Any, tmp_path: Path) -> None:
    theirs.add(rows([1, 2]))
    project = Project(tmp_path / "ours", theirs.source)
    project.take()
    theirs.add(rows([3]))
    theirs.table.delete("id = 1")
    gone = newest(theirs)
    theirs.add(rows([4]))
    with pytest.raises(InvalidShard, match=f"(snapshot|version) {gone} .* takes rows away") as caught:
        project.take()
    assert f"--after {gone}" in caught.value.remedy
    assert project.ids == [1, 2, 3], "what came before it is taken"
    with pytest.raises(InvalidShard):
        project.take()
    project.taker.skip(project.table, gone)
    project.take()
    assert project.ids == [1, 2, 3, 4]
    where = position(project.journal, "orders")
    assert where is not None
    assert where["outcome"] == "published"


def test_a_position_that_does_not_exist_is_not_skipped_to(theirs: Any, tmp_path: Path) -> None:
    theirs.add(rows([1]))
    project = Project(tmp_path / "ours", theirs.source)
    for text in ("99", "-1", "newest", "", "1; drop table"):
        with pytest.raises(InvalidRequest):
            project.taker.skip(project.table, text)
    assert project.journal.head() == 0


def test_a_table_that_was_made_anew_is_not_taken_for_the_old_one(theirs: Any, tmp_path: Path) -> None:
    theirs.add(rows([1]))
    project = Project(tmp_path / "ours", theirs.source)
    project.take()
    other = type(theirs)(tmp_path / "other")
    other.add(rows([7]))
    again = Project(tmp_path / "ours", other.source)
    with pytest.raises(Conflict, match="another table"):
        again.take()
    again.taker.skip(again.table, newest(other))
    other.add(rows([8]))
    again.take()
    assert again.ids == [1, 8]


def test_the_start_is_settled_before_the_first_shard_is_published(theirs: Any, tmp_path: Path) -> None:
    """Killed after the first shard and before the cursor, while the table moved on: the first shard stays what it was."""
    theirs.add(rows([1]))
    project = Project(tmp_path / "ours", theirs.source)

    def killed(step: str) -> None:
        if step == "after ingest":
            raise KeyboardInterrupt

    project.kill = killed
    with pytest.raises(KeyboardInterrupt):
        project.take()
    theirs.add(rows([2]))
    project.kill = lambda _: None
    assert [outcome.kind for outcome in project.take()] == ["duplicate", "published"]
    assert project.ids == [1, 2]


def test_a_source_is_only_read(theirs: Any, tmp_path: Path) -> None:
    theirs.add(rows([1]))
    project = Project(tmp_path / "ours", theirs.source)
    project.take()
    theirs.add(rows([2]))
    before = everything(tmp_path / "theirs")
    project.take()
    assert everything(tmp_path / "theirs") == before


def test_rewritten_files_are_no_new_rows(lake: InDelta, tmp_path: Path) -> None:
    lake.add(rows([1]))
    project = Project(tmp_path / "ours", lake.source)
    project.take()
    lake.add(rows([2]))
    lake.table.optimize.compact()
    lake.add(rows([3]))
    project.take()
    assert project.ids == [1, 2, 3]


def test_a_replacing_snapshot_is_passed_over(ice: InIceberg, tmp_path: Path) -> None:
    """pyiceberg writes none; Spark's rewriting of files does. So one is made of an overwriting one."""
    ice.add(rows([1]))
    project = Project(tmp_path / "ours", ice.source)
    project.take()
    ice.table.overwrite(rows([1]))
    where = Path(ice.table.metadata_location.removeprefix("file://"))
    for old in ('"operation":"overwrite"', '"operation":"delete"'):
        where.write_text(where.read_text().replace(old, '"operation":"replace"'))
    one = [snapshot.summary.operation.value for snapshot in ice.table.snapshots()]
    assert one[:2] == ["append", "replace"]
    if one[-1] == "append":
        text = where.read_text()
        where.write_text('"operation":"replace"'.join(text.rsplit('"operation":"append"', 1)))
    assert project.take() == []
    ice.add(rows([2]))
    project.take()
    assert project.ids == [1, 2]


def test_a_base_that_expired_after_it_was_read_is_no_loss(ice: InIceberg, tmp_path: Path) -> None:
    ice.add(rows([1]))
    project = Project(tmp_path / "ours", ice.source)
    project.take()
    base = int(newest(ice))
    ice.add(rows([2]))
    ice.table.maintenance.expire_snapshots().by_id(base).commit()
    project.take()
    assert project.ids == [1, 2]


def test_a_snapshot_that_expired_before_it_was_read_is_said(ice: InIceberg, tmp_path: Path) -> None:
    ice.add(rows([1]))
    project = Project(tmp_path / "ours", ice.source)
    project.take()
    ice.add(rows([2]))
    lost = int(newest(ice))
    ice.add(rows([3]))
    ice.table.maintenance.expire_snapshots().by_id(lost).commit()
    with pytest.raises(Conflict, match="does not lead from snapshot") as caught:
        project.take()
    assert f"--after {newest(ice)}" in caught.value.remedy
    project.taker.skip(project.table, newest(ice))
    ice.add(rows([4]))
    project.take()
    assert project.ids == [1, 4]


def test_a_table_that_was_rolled_back_is_said(ice: InIceberg, tmp_path: Path) -> None:
    ice.add(rows([1]))
    before = int(newest(ice))
    ice.add(rows([2]))
    project = Project(tmp_path / "ours", ice.source)
    project.take()
    ice.table.manage_snapshots().rollback_to_snapshot(before).commit()
    with pytest.raises(Conflict, match="does not lead"):
        project.take()


def test_a_log_that_was_cleaned_up_is_said(lake: InDelta, tmp_path: Path) -> None:
    lake.add(rows([1]))
    project = Project(tmp_path / "ours", lake.source)
    project.take()
    lake.add(rows([2]))
    lake.add(rows([3]))
    lake.table.create_checkpoint()
    (tmp_path / "theirs" / "_delta_log" / f"{1:020d}.json").unlink()
    with pytest.raises(Conflict, match="does not hold version 1 any more") as caught:
        project.take()
    assert "ct ingest TABLE --new --after VERSION" in caught.value.remedy
    project.taker.skip(project.table, "1")
    project.take()
    assert project.ids == [1, 3]


def test_a_log_that_is_broken_is_said(lake: InDelta, tmp_path: Path) -> None:
    lake.add(rows([1]))
    project = Project(tmp_path / "ours", lake.source)
    project.take()
    lake.add(rows([2]))
    lake.table.create_checkpoint()
    (tmp_path / "theirs" / "_delta_log" / f"{1:020d}.json").write_bytes(b'{"add": \xff')
    with pytest.raises(Corrupt, match="version 1 in the log"):
        project.take()


def test_a_snapshot_keeps_its_own_columns_when_the_table_changes_later(ice: InIceberg, tmp_path: Path) -> None:
    """So that fetching again after a kill gives the same bytes."""
    ice.add(rows([1]))
    project = Project(tmp_path / "ours", ice.source)
    project.take()
    ice.add(rows([2]))
    (arrival,) = project.taker.pending(project.table)
    now = cursor(project.table, settings=project.settings, journal=project.journal)
    first = ice.source.fetch(arrival, now, tmp_path).read_bytes()
    with ice.table.update_schema() as change:
        change.add_column("city", iceberg_text())
        change.rename_column("at", "moment")
    assert ice.source.fetch(arrival, now, tmp_path).read_bytes() == first
    ice.add(rows([3], city=pa.array(["Oslo"])).rename_columns(["id", "moment", "city"]))
    later = project.taker.pending(project.table)[-1]
    assert pq.read_schema(ice.source.fetch(later, now, tmp_path)).names == ["id", "moment", "city"]


def iceberg_text() -> Any:
    from pyiceberg.types import StringType

    return StringType()


def test_a_version_keeps_its_own_columns_and_partitions(lake: InDelta, tmp_path: Path) -> None:
    odd = ["a b", "ü/x", "50%", "x=1"]
    table = rows([1, 2, 3, 4], city=pa.array(odd))
    deltalake.write_deltalake(tmp_path / "theirs", table, partition_by=["city"])
    project = Project(tmp_path / "ours", lake.source)
    project.take()
    assert sorted(project.ids) == [1, 2, 3, 4]
    lake.add(rows([5, 6, 7, 8], city=pa.array(odd)))
    (arrival,) = project.taker.pending(project.table)
    now = cursor(project.table, settings=project.settings, journal=project.journal)
    first = lake.source.fetch(arrival, now, tmp_path).read_bytes()
    found = pq.read_table(tmp_path / arrival.name)
    assert dict(zip(found["id"].to_pylist(), found["city"].to_pylist(), strict=True)) == dict(
        zip([5, 6, 7, 8], odd, strict=True)
    )
    wider = rows([9], city=pa.array(["Oslo"]), more=pa.array([1.5]))
    deltalake.write_deltalake(tmp_path / "theirs", wider, mode="append", schema_mode="merge")
    assert lake.source.fetch(arrival, now, tmp_path).read_bytes() == first
    project.take()
    assert sorted(project.ids) == list(range(1, 10))


def test_tables_on_an_object_store(s3: S3, tmp_path: Path, here: None) -> None:
    uri = f"{s3.new()}/theirs"
    options = {"AWS_ALLOW_HTTP": "true"}
    deltalake.write_deltalake(uri, rows([1]), storage_options=options)
    project = Project(tmp_path / "ours", DeltaTable(uri))
    project.take()
    deltalake.write_deltalake(uri, rows([2]), mode="append", storage_options=options)
    project.take()
    assert project.ids == [1, 2]

    place = {"uri": f"sqlite:///{tmp_path / 'catalog.db'}"}
    catalog = SqlCatalog("theirs", **place, warehouse=s3.new(), **{"py-io-impl": "ct.store.tablefiles.TableFiles"})
    catalog.create_namespace("shop")
    table = catalog.create_table("shop.orders", rows([]).schema)
    table.append(rows([1]))
    project = Project(tmp_path / "ours too", IcebergTable("theirs", "shop.orders", place))
    project.take()
    table.append(rows([2]))
    project.take()
    assert project.ids == [1, 2]


def refuse(*_: object, **__: object) -> None:
    raise ValueError("could not parse postgresql://ann:pw@db/x")


def test_what_cannot_be_opened_says_so_without_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = InIceberg(tmp_path / "theirs").source
    with pytest.raises(NotFound, match=r"there is no Iceberg table shop\.nothing"):
        Project(tmp_path / "a", IcebergTable("theirs", "shop.nothing", gone.properties)).take()
    with pytest.raises(Unavailable, match="cannot be opened"):
        Project(tmp_path / "b", IcebergTable("theirs", "shop.orders", {"uri": "sqlite:////nowhere/at/all.db"})).take()
    with pytest.raises(NotFound, match="there is no Delta table"):
        Project(tmp_path / "c", DeltaTable("nowhere")).take()
    for properties in ({"uri": "postgresql://ann:pw@db/x"}, {"uri": "http://x", "token": "abc"}, {"s3.secret-access-key": "x"}):
        with pytest.raises(InvalidPipeline, match="hold a secret") as caught:
            IcebergTable("lake", "shop.orders", properties)
        assert "pw" not in str(caught.value)
        assert "abc" not in str(caught.value)
    with pytest.raises(InvalidPipeline, match=r"namespace\.name"):
        IcebergTable("lake", "orders")
    with pytest.raises(InvalidPipeline, match="is a URI") as caught:
        IcebergTable("postgresql://ann:pw@db/x", "shop.orders")
    assert "pw" not in str(caught.value)
    monkeypatch.setattr("pyiceberg.catalog.load_catalog", refuse)
    with pytest.raises(Unavailable) as hidden:
        IcebergTable("lake", "shop.orders").pending(cursor_of(tmp_path / "d"))
    assert "ann:pw" not in str(hidden.value)


def test_delta_needs_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "deltalake", None)
    with pytest.raises(CtError, match="deltalake is not installed"):
        delta.DeltaTable("x").pending(cursor_of(tmp_path))


def cursor_of(root: Path) -> Any:
    project = Project(root, None)
    return cursor(project.table, settings=project.settings, journal=project.journal)
