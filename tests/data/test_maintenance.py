"""Maintenance of real Iceberg tables: fewer files and the same rows, old rows gone, only what nothing needs removed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ct.data import catalog, erasure, maintenance, shards
from ct.data.arriving import Reader
from ct.data.maintenance import Limits, merges
from ct.data.publishing import Stores
from ct.errors import Conflict
from ct.pipeline import SchemaPolicy, Table
from tests.data.conftest import DAY, Place, sales

PLAIN = Table("sales", key="id", time="at", owner="shop", slices=["city"])
LIMITS = Limits(small=1000, least=3, most=2000)
NOW = datetime(2030, 1, 1, tzinfo=UTC)


def stores(place: Place) -> Stores:
    return Stores(place.settings, place.journal, place.warehouse, place.artifacts, Reader())


def filled(place: Place, months: range, n: int = 40) -> Place:
    for month in months:
        assert place.ingest(place.file(sales(month, n), f"m{month}.parquet"), PLAIN).kind == "published"
    return place


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with five published shards."""
    place = filled(Place.at(tmp_path_factory.mktemp("maintenance") / "project"), range(1, 6))
    place.journal.close()
    shutil.copytree(place.root, place.root.with_name("kept"))
    return place.root


@pytest.fixture
def place(kept: Path) -> Iterator[Place]:
    """The project as it was made; files hold absolute paths, so it is put back in its place."""
    shutil.rmtree(kept)
    shutil.copytree(kept.with_name("kept"), kept)
    made = Place.at(kept)
    yield made
    made.journal.close()


def rows_by_shard(place: Place) -> dict[str, list[dict]]:
    return {shard.shard: shards.read(shard).to_pylist() for shard in catalog.published(place.journal, "sales")}


def compacted(place: Place, limits: Limits = LIMITS) -> None:
    here = stores(place)
    for merge in merges(maintenance.sizes(here, "sales"), limits):
        assert maintenance.rewrite(here, PLAIN, merge.files, reason="compaction")


@given(st.lists(st.integers(1, 200), max_size=30), st.integers(2, 5))
def test_only_small_neighbours_are_merged(rows: list[int], least: int) -> None:
    limits = Limits(small=100, least=least, most=250)
    files = {f"f{at}": count for at, count in enumerate(rows)}
    found = merges(files, limits)
    places = {name: at for at, name in enumerate(files)}
    for merge in found:
        at = [places[name] for name in merge.files]
        assert at == list(range(at[0], at[0] + len(at)))
        assert len(at) >= least
        assert all(files[name] < 100 for name in merge.files)
        assert merge.rows == sum(files[name] for name in merge.files) <= 250
    assert len({name for merge in found for name in merge.files}) == sum(len(merge.files) for merge in found)


def test_compaction_changes_where_shards_lie_and_nothing_else(place: Place) -> None:
    before, known = rows_by_shard(place), catalog.published(place.journal, "sales")
    head = place.warehouse.snapshot("sales")
    compacted(place)
    after = catalog.published(place.journal, "sales")
    assert rows_by_shard(place) == before
    assert [shard.identity for shard in after] == [shard.identity for shard in known]
    assert len({shard.path for shard in after}) == 1 == len(place.warehouse.files("sales"))
    assert place.warehouse.scan("sales").num_rows == 200
    assert catalog.seen(place.journal, "sales") == {shard.sha256 for shard in known}
    assert place.ingest(place.root / "m1.parquet", PLAIN).kind == "duplicate"
    table = place.warehouse._table("sales")
    fresh = table.incremental_append_scan(
        from_snapshot_id_exclusive=head, to_snapshot_id_inclusive=table.current_snapshot().snapshot_id
    )
    assert fresh.to_arrow().num_rows == 0, "whoever reads on from before the compaction must see nothing twice"


def test_a_run_that_froze_some_of_the_merged_shards_still_reads_those_alone(place: Place) -> None:
    frozen = [shard.sha256 for shard in catalog.published(place.journal, "sales")][1:3]
    compacted(place)
    found = catalog.resolve(place.journal, "sales", frozen)
    assert [shard.shard for shard in found] == ["m2", "m3"]
    assert [row["id"] for row in shards.read(found[1]).to_pylist()] == [f"3-{i}" for i in range(40)]


def test_compacting_twice_merges_merged_files_with_new_ones(place: Place) -> None:
    compacted(place)
    filled(place, range(6, 9))
    before = rows_by_shard(place)
    compacted(place)
    assert len(place.warehouse.files("sales")) == 1
    assert rows_by_shard(place) == before


def test_files_from_before_and_after_a_new_column_become_one(make_place: Callable[[str], Place]) -> None:
    place, table = make_place("grown"), replace(PLAIN, policy=SchemaPolicy(added="accept"))
    for month in (1, 2):
        assert place.ingest(place.file(sales(month, 40), f"m{month}.parquet"), table).kind == "published"
    wider = sales(3, 40).append_column("note", pa.array([f"note {i}" for i in range(40)]))
    assert place.ingest(place.file(wider, "m3.parquet"), table).kind == "published"
    before = rows_by_shard(place)
    compacted(place)
    assert len(place.warehouse.files("sales")) == 1
    assert rows_by_shard(place) == before
    assert place.warehouse.scan("sales")["note"].null_count == 80


def test_a_stale_compaction_gives_way_and_loses_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    here, stage = stores(place), place.warehouse.stage

    def slow(*args, **kwargs):
        staged = stage(*args, **kwargs)
        monkeypatch.setattr(place.warehouse, "stage", stage)
        place.ingest(place.file(sales(9, 40), "m9.parquet"), PLAIN)
        return staged

    monkeypatch.setattr(place.warehouse, "stage", slow)
    merge = merges(maintenance.sizes(here, "sales"), LIMITS)[0]
    with pytest.raises(Conflict):
        maintenance.rewrite(here, PLAIN, merge.files, reason="compaction")
    assert place.warehouse.scan("sales").num_rows == 240 == sum(len(rows) for rows in rows_by_shard(place).values())
    assert maintenance.unsettled(here, "sales") == ()


def test_a_compaction_planned_before_one_of_its_files_was_rewritten_gives_way(place: Place) -> None:
    """Or its rewriting could never be carried out, and no later one either."""
    before, here = rows_by_shard(place), stores(place)
    merge = merges(maintenance.sizes(here, "sales"), LIMITS)[0]
    assert maintenance.rewrite(here, PLAIN, merge.files[:1], reason="erasure")
    with pytest.raises(Conflict, match="rewritten"):
        maintenance.rewrite(here, PLAIN, merge.files, reason="compaction")
    assert maintenance.unsettled(here, "sales") == ()
    compacted(place)
    assert rows_by_shard(place) == before
    assert len(place.warehouse.files("sales")) == 1


def test_finishing_a_rewriting_waits_for_whoever_commits_meanwhile(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    here, commit = stores(place), place.warehouse.rewrite
    overtaken = iter([True, False])

    def rewrite(*args, **kwargs):
        if next(overtaken):
            raise Conflict("the table has changed meanwhile", "the files as they were read", "read it again")
        return commit(*args, **kwargs)

    monkeypatch.setattr(place.warehouse, "rewrite", rewrite)
    compacted(place)
    assert maintenance.unsettled(here, "sales") == ()
    assert len(place.warehouse.files("sales")) == 1


def test_a_compaction_killed_before_its_commit_is_finished_by_the_next_look(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, here = rows_by_shard(place), stores(place)
    with monkeypatch.context() as patch:
        patch.setattr(place.warehouse, "rewrite", _killed)
        with pytest.raises(KeyboardInterrupt):
            compacted(place)
    assert rows_by_shard(place) == before, "readers go by the journal and need not wait"
    assert len(maintenance.unsettled(here, "sales")) == 1
    assert maintenance.settle(here, "sales") == 1
    assert maintenance.settle(here, "sales") == 0
    assert rows_by_shard(place) == before
    assert place.warehouse.scan("sales").num_rows == 200


def _killed(*_args, **_kwargs):
    raise KeyboardInterrupt


def test_rows_past_retention_go_and_the_rest_stays(place: Place) -> None:
    here, cutoff = stores(place), 2 * 30 * DAY + 5 * DAY  # in the middle of the second shard
    planned = maintenance.cuts(catalog.published(place.journal, "sales"), "at", cutoff)
    assert [(cut.shards, cut.rows, cut.whole) for cut in planned] == [(("m1",), 40, True), (("m2",), 20, False)]
    known = {shard.shard: shard for shard in catalog.published(place.journal, "sales")}
    for cut in planned:
        maintenance.rewrite(here, PLAIN, [cut.file], reason="retention", before=cut.before)
    left = {shard.shard: shard for shard in catalog.published(place.journal, "sales")}
    assert {name: shard.rows for name, shard in left.items()} == {"m2": 20, "m3": 40, "m4": 40, "m5": 40}
    assert left["m2"].identity != known["m2"].identity
    assert left["m3"].identity == known["m3"].identity
    assert left["m2"].time_min >= cutoff
    assert left["m2"].time_max == known["m2"].time_max
    assert place.warehouse.scan("sales").num_rows == 140
    assert place.ingest(place.root / "m1.parquet", PLAIN).kind == "duplicate", "what was dropped does not come back"
    assert maintenance.cuts(catalog.published(place.journal, "sales"), "at", cutoff) == ()


def test_a_table_whose_event_time_is_a_date(make_place: Callable[[str], Place]) -> None:
    """Rows past retention go, and a key's rows, as in one of moments."""
    place, dated = make_place("dated"), Table("days", key="person", time="day", retention="30d")
    days = pa.table({"person": [f"person-{i}" for i in range(60)], "day": pa.array(range(60), pa.int32()).cast(pa.date32())})
    assert place.ingest(place.file(days, "d.parquet"), dated).kind == "published"
    here = stores(place)
    (cut,) = maintenance.cuts(catalog.published(place.journal, "days"), "day", 20 * DAY)
    assert maintenance.rewrite(here, dated, [cut.file], reason="retention", before=cut.before)
    (shard,) = catalog.published(place.journal, "days")
    assert (cut.rows, shard.rows, shard.time_min, shard.time_max) == (20, 40, 20 * DAY, 59 * DAY)
    erasure.request(here, erasure.subject(place.journal, dated, ["person-59"]))
    erasure.write_out(here, dated)
    (shard,) = catalog.published(place.journal, "days")
    assert (shard.rows, shard.time_max, shard.tags["spans"]["day"]) == (39, 58 * DAY, [20 * DAY, 58 * DAY])


def test_retention_inside_a_merged_file_and_of_held_shards(place: Place) -> None:
    compacted(place)
    here, cutoff = stores(place), 2 * 30 * DAY + 5 * DAY
    known = catalog.published(place.journal, "sales")
    assert maintenance.cuts(known, "at", cutoff, held=[known[4].sha256]) == (), "a running run reads that file"
    (cut,) = maintenance.cuts(known, "at", cutoff)
    assert cut.rows == 60
    assert not cut.whole
    maintenance.rewrite(here, PLAIN, [cut.file], reason="retention", before=cutoff)
    assert {name: len(rows) for name, rows in rows_by_shard(place).items()} == {"m2": 20, "m3": 40, "m4": 40, "m5": 40}
    table = place.warehouse.scan("sales")
    assert table.num_rows == 140
    assert pc.min(pc.cast(table["at"], "int64")).as_py() >= cutoff


def test_snapshots_expire_but_for_those_that_somebody_needs(place: Place) -> None:
    here, history = stores(place), place.warehouse.history("sales")
    place.warehouse.tag("sales", history[1].id, "release")
    found = maintenance.expiries(here, "sales", {history[2].id: "run-1 is unfinished"}, Limits(keep=2, age=timedelta(0)), NOW)
    why = {item.snapshot: item.why for item in found}
    assert why[history[0].id] == ""
    assert why[history[1].id] == "named release"
    assert why[history[2].id] == "run-1 is unfinished"
    assert why[history[-1].id] == "published"
    assert why[history[-2].id] == "one of the newest 2"
    young = maintenance.expiries(here, "sales", {}, Limits(keep=1), datetime.now(UTC))
    assert {item.why for item in young} == {"young", "published", "named release"}


def aged(place: Place, days: int = 3) -> None:
    old = datetime.now(UTC).timestamp() - days * 86_400
    for path in place.root.rglob("*"):
        if path.is_file():
            os.utime(path, (old, old))


def test_only_files_that_nothing_reaches_are_strays(place: Place) -> None:
    here = stores(place)
    staged = place.warehouse.stage("sales", sales(7, 40), "lost")
    half = Path(staged.address).with_name(".part-abc")
    half.write_bytes(b"half")
    assert maintenance.strays(here, "sales", datetime.now(UTC) - timedelta(days=1)) == (), "younger than the safety age"
    aged(place)
    found = maintenance.strays(here, "sales", datetime.now(UTC) - timedelta(days=1))
    assert {(Path(stray.address).name, stray.what) for stray in found} >= {
        (Path(staged.address).name, "no snapshot reaches it"),
        (".part-abc", "half written"),
    }
    needed = {shard.path for shard in catalog.published(place.journal, "sales")} | place.warehouse.reachable("sales")
    assert not needed & {stray.address for stray in found}


def test_what_a_rewriting_replaced_stays_for_those_who_read_it(place: Place) -> None:
    old = set(place.warehouse.files("sales"))
    compacted(place)
    aged(place)
    here, every = stores(place), [state.id for state in place.warehouse.history("sales")][:-1]
    lately = maintenance.strays(here, "sales", datetime.now(UTC) - timedelta(days=1), besides=every)
    later = maintenance.strays(here, "sales", datetime.now(UTC) + timedelta(days=1), besides=every)
    assert not old & {stray.address for stray in lately}
    assert old <= {stray.address for stray in later}
    assert pq.read_metadata(catalog.published(place.journal, "sales")[0].path).num_rows == 200
