"""What maintenance asks of a table: files replaced in one commit, snapshots expired, refs, columns added, what is reachable."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ct.data import snapshots
from ct.data.tables import Warehouse
from ct.errors import Conflict, NotFound
from ct.store.files import Files, open_input

AT = pa.timestamp("us", tz="UTC")


def rows(first: int, n: int = 3) -> pa.Table:
    ids = [f"key-{first + i}" for i in range(n)]
    return pa.table({"id": pa.array(ids, pa.string()), "at": pa.array([first + i for i in range(n)], pa.int64()).cast(AT)})


def ids(warehouse: Warehouse, snapshot: int | None = None) -> list[str]:
    return sorted(warehouse.scan("t", columns=("id",), snapshot=snapshot)["id"].to_pylist())


@pytest.fixture
def place(anywhere):
    return anywhere


@pytest.fixture
def warehouse(place) -> Warehouse:
    for at in range(3):
        place.warehouse.append("t", rows(10 * at), attempt=f"shard-{at}")
    return place.warehouse


def test_files_are_replaced_in_one_commit_once(warehouse: Warehouse) -> None:
    before, old = warehouse.snapshot("t"), warehouse.files("t")
    merged = warehouse.stage("t", pa.concat_tables([rows(0), rows(10), rows(20)]), "compact")
    made = warehouse.rewrite("t", old, merged, attempt="c1", notes={"why": "small files"})
    assert warehouse.rewrite("t", old, merged, attempt="c1") == made == warehouse.snapshot("t")
    assert warehouse.files("t") == (merged.address,)
    assert len(ids(warehouse)) == 9
    assert warehouse.files("t", before) == old
    last = warehouse.history("t")[-1]
    assert (last.id, last.operation, last.rows, last.notes["why"]) == (made, "overwrite", 9, "small files")
    assert [attempt.attempt for attempt in warehouse.attempts("t")] == ["shard-0", "shard-1", "shard-2"]


def test_a_rewrite_of_files_that_are_gone_is_a_conflict(warehouse: Warehouse) -> None:
    old = warehouse.files("t")
    warehouse.rewrite("t", old[:1], None, attempt="e1")
    with pytest.raises(Conflict, match="not in the newest snapshot"):
        warehouse.rewrite("t", old, warehouse.stage("t", rows(0), "c"), attempt="c1")
    assert len(ids(warehouse)) == 6


def test_an_erased_row_does_not_come_back_by_a_slower_compaction(place, warehouse: Warehouse, monkeypatch) -> None:
    """Both have read the same files; the erasure commits between the compaction's look and its commit."""
    old = warehouse.files("t")
    other = Warehouse(place.settings)
    look = snapshots.rewrite

    def overtaken(table, *args):
        monkeypatch.setattr(snapshots, "rewrite", look)
        other.rewrite("t", old[:1], other.stage("t", rows(0, 2), "erased"), attempt="e1")
        return look(table, *args)

    monkeypatch.setattr(snapshots, "rewrite", overtaken)
    before = set(warehouse.files("t")[1:])
    with pytest.raises(Conflict):
        warehouse.rewrite("t", old, warehouse.stage("t", pa.concat_tables([rows(0), rows(10), rows(20)]), "c"), attempt="c1")
    assert len(ids(warehouse)) == 8
    assert before < set(warehouse.files("t"))


def test_a_shard_that_lands_during_a_compaction_stays(place, warehouse: Warehouse, monkeypatch) -> None:
    old, look, other = warehouse.files("t"), snapshots.rewrite, Warehouse(place.settings)

    def overtaken(table, *args):
        monkeypatch.setattr(snapshots, "rewrite", look)
        other.append("t", rows(90), attempt="late")
        return look(table, *args)

    monkeypatch.setattr(snapshots, "rewrite", overtaken)
    merged = warehouse.stage("t", pa.concat_tables([rows(0), rows(10), rows(20)]), "c")
    for _ in range(2):  # a Conflict is tried again
        try:
            warehouse.rewrite("t", old, merged, attempt="c1")
            break
        except Conflict:
            continue
    assert len(ids(warehouse)) == 12


def test_expiry_keeps_what_is_named_and_says_what_it_would_do(warehouse: Warehouse) -> None:
    first, middle = warehouse.attempts("t")[0].snapshot, warehouse.attempts("t")[1].snapshot
    warehouse.tag("t", first, "cursor/weekly")
    gone = warehouse.expire("t", keep=[middle])
    assert first not in gone
    assert middle not in gone
    assert warehouse.snapshot("t") not in gone
    assert len(warehouse.history("t")) == 4
    assert warehouse.expire("t", keep=[middle], dry_run=False) == gone
    assert {state.id for state in warehouse.history("t")} == {first, middle, warehouse.snapshot("t")}
    assert len(ids(warehouse, first)) == 3
    assert warehouse.tags("t") == {"cursor/weekly": first}
    warehouse.drop_ref("t", "cursor/weekly")
    warehouse.drop_ref("t", "cursor/weekly")
    assert warehouse.expire("t", older_than=datetime.now(UTC) - timedelta(hours=1), dry_run=False) == ()
    assert set(warehouse.expire("t", dry_run=False)) == {first, middle}
    assert len(ids(warehouse)) == 9
    with pytest.raises(NotFound):
        warehouse.tag("t", first, "again")
    with pytest.raises(Conflict):
        warehouse.drop_ref("t", "main")


def test_a_tag_that_is_set_during_expiry_holds_its_snapshot(place, warehouse: Warehouse, monkeypatch) -> None:
    first, plan = warehouse.attempts("t")[0].snapshot, snapshots.expirable

    def tagged(*args):
        monkeypatch.setattr(snapshots, "expirable", plan)
        Warehouse(place.settings).tag("t", first, "held")
        return plan(*args)

    monkeypatch.setattr(snapshots, "expirable", tagged)
    assert first not in warehouse.expire("t", dry_run=False)
    assert warehouse.tags("t") == {"held": first}
    assert len(ids(warehouse, first)) == 3


def test_what_is_reachable_is_all_that_is_needed(place, warehouse: Warehouse) -> None:
    files = Files(f"{place.settings.place('warehouse')}/ct/t")
    lost = warehouse.stage("t", rows(70), "nobody")
    old = warehouse.files("t")
    warehouse.rewrite("t", old, warehouse.stage("t", rows(0, 2), "erased"), attempt="e")
    assert set(old) < warehouse.reachable("t")
    warehouse.expire("t", dry_run=False)
    reachable = warehouse.reachable("t")
    assert lost.address not in reachable
    assert not set(old) & reachable
    kept = {files.address(entry.name) for entry in files.list()}
    assert reachable <= kept
    for address in kept - reachable:
        files.delete(address.removeprefix(files.address("")))
    fresh = Warehouse(place.settings)
    assert len(ids(fresh)) == 2
    fresh.append("t", rows(80), attempt="after")
    assert len(ids(fresh)) == 5


def test_no_key_is_in_the_metadata(place, warehouse: Warehouse) -> None:
    """Manifests and footers outlive the rows: only times may be in them."""
    files = Files(f"{place.settings.place('warehouse')}/ct/t")
    for entry in files.list():
        if "shards/" not in entry.name:
            assert b"key-" not in files.get(entry.name), entry.name
    footer = pq.ParquetFile(open_input(warehouse.files("t")[0])).metadata.row_group(0)
    assert footer.column(0).statistics is None
    assert footer.column(1).statistics.has_min_max
    manifest = warehouse._table("t").current_snapshot().manifests(warehouse._table("t").io)[0]
    (entry, *_) = manifest.fetch_manifest_entry(warehouse._table("t").io)
    assert set(entry.data_file.lower_bounds) == {2}


def test_added_columns_are_null_in_older_files(place, warehouse: Warehouse) -> None:
    wider = rows(50).append_column("city", pa.array(["Oslo"] * 3)).append_column("seen", rows(50)["at"])
    warehouse.add_columns("t", wider.schema)
    warehouse.add_columns("t", wider.schema)
    warehouse.create("t", rows(0).schema)
    warehouse.create("t", wider.schema)
    warehouse.append("t", wider, attempt="wide")
    warehouse.append("t", rows(60), attempt="narrow")
    found = warehouse.scan("t").sort_by("id").to_pylist()
    assert [row["city"] for row in found] == [None] * 9 + ["Oslo"] * 3 + [None] * 3
    with pytest.raises(Conflict):
        warehouse.add_columns("t", pa.schema({"city": pa.int64()}))
    with pytest.raises(Conflict):
        warehouse.create("t", pa.schema({"id": pa.string(), "zone": pa.string()}))


def test_two_who_expire_the_same_snapshots_do_no_harm(warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slower one finds them gone and looks again."""
    found, slow = snapshots.expirable, iter([True, False])

    def overtaken(*args):
        ids = found(*args)
        if next(slow, False):
            assert warehouse.expire("t", dry_run=False) == ids
        return ids

    monkeypatch.setattr(snapshots, "expirable", overtaken)
    assert warehouse.expire("t", dry_run=False) == ()
    assert len(warehouse.history("t")) == 1


def test_the_snapshots_that_reach_a_file(warehouse: Warehouse) -> None:
    states, files = [state.id for state in warehouse.history("t")], warehouse.files("t")
    merged = warehouse.stage("t", pa.concat_tables([rows(0), rows(10)]), "compact")
    last = warehouse.rewrite("t", files[:2], merged, attempt="c1")
    for file in (*files, merged.address):
        reached = [state for state in (*states, last) if file in warehouse.files("t", state)]
        assert list(warehouse.reaching("t", [file])) == reached != []
    assert warehouse.reaching("t", []) == ()
