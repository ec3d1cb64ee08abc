"""Maintenance over a whole project: what it would do, what it does, and what it never touches."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ct.control import keeping
from ct.control.act import Actor
from ct.data import catalog, predictions, shards
from ct.data.maintenance import Limits
from ct.errors import NotFound
from ct.features import build
from tests.control import killed, shop

LIMITS = Limits(small=1000, least=2, keep=1, age=timedelta(0), safety=timedelta(hours=1))


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Actor]]:
    made: list[Actor] = []

    def opened(**changes: str) -> Actor:
        made.append(shop.opened(tmp_path / "shop", shop.pipeline(**changes)))
        return made[-1]

    yield opened
    for act in made:
        act.close()


def age(act: Actor, hours: float = 2) -> None:
    old = time.time() - hours * 3600
    for path in act.settings.home.rglob("*"):
        if path.is_file():
            os.utime(path, (old, old))


def files(act: Actor) -> set[str]:
    return {
        str(path)
        for path in act.settings.home.rglob("*")
        if path.is_file() and path.suffix not in (".db", ".db-wal", ".db-shm")
    }


def rows(act: Actor) -> dict[str, list]:
    return {shard.shard: shards.read(shard).to_pylist() for shard in catalog.published(act.journal, "sales")}


def test_a_plan_changes_nothing_and_doing_it_leaves_nothing_to_do(make: Callable[..., Actor]) -> None:
    act = make()
    shop.land(act, 1, 2, 3)
    age(act)
    before, there, head = rows(act), files(act), act.journal.head()
    planned = keeping.plan(act, limits=LIMITS)
    assert (files(act), act.journal.head()) == (there, head)
    (table,) = planned.tables
    assert [(len(merge.files), merge.rows) for merge in table.merges] == [(3, 120)]
    assert len(table.expiring) == 3
    keeping.carry_out(act, planned, limits=LIMITS)
    assert rows(act) == before
    assert len(act.warehouse.files("sales")) == 1
    after = keeping.plan(act, limits=LIMITS)
    assert after.tables[0].merges == ()
    events = [event for event in act.journal.read("maintenance/sales")]
    assert [event.type for event in events] == ["MaintenanceDone"]
    assert events[0].data["merged_files"] == 3


def test_in_the_end_only_what_is_needed_is_left(make: Callable[..., Actor]) -> None:
    act = make()
    shop.land(act, 1, 2, 3)
    keeping.carry_out(act, keeping.plan(act, limits=LIMITS), limits=LIMITS)
    at_once = Limits(keep=1, age=timedelta(0), safety=timedelta(seconds=-1))
    keeping.carry_out(act, keeping.plan(act, limits=at_once), limits=at_once)
    (shard_file,) = {shard.path for shard in catalog.published(act.journal, "sales")}
    left = [path for path in files(act) if "/warehouse/" in path]
    assert {path for path in left if path.endswith(".parquet")} == {shard_file}
    assert set(left) == act.warehouse.reachable("sales")
    assert act.warehouse.scan("sales").num_rows == 120


def test_killed_at_any_durable_operation_it_loses_nothing(
    make: Callable[..., Actor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    act = make()
    shop.land(act, 1, 2, 3)
    before, root = rows(act), act.settings.root
    act.close()
    shutil.copytree(root, tmp_path / "kept")
    at_once = Limits(small=1000, least=2, keep=1, age=timedelta(0), safety=timedelta(seconds=-1))
    step, through = 1, False
    while not through:
        shutil.rmtree(root)
        shutil.copytree(tmp_path / "kept", root)
        act = make()
        with monkeypatch.context() as patch:
            killed.at(patch, step)
            try:
                keeping.carry_out(act, keeping.plan(act, limits=at_once), limits=at_once)
                through = True
            except killed.Killed:
                pass
        assert rows(act) == before, step
        for _ in range(2):
            keeping.carry_out(act, keeping.plan(act, limits=at_once), limits=at_once)
        assert rows(act) == before, step
        assert act.warehouse.scan("sales").num_rows == 120, step
        assert len(act.warehouse.files("sales")) == 1, step
        act.close()
        step += killed.STRIDE
    assert step > 13


def test_what_an_unfinished_run_froze_is_never_touched(make: Callable[..., Actor]) -> None:
    act = make(retention="30d")
    shop.land(act, 1, 2)
    run, made = shop.run(act), shop.features(act)
    work = act.settings.home / "work" / f"{run.id}-train"
    work.mkdir(parents=True)
    (work / "numeric.npy").write_bytes(b"rows")
    shop.land(act, 3)
    age(act, hours=100)
    planned = keeping.plan(act, limits=LIMITS)
    assert [cut.shards for cut in planned.tables[0].cuts] == [("m3",)], "the others belong to the run"
    why = {item.snapshot: item.why for item in planned.tables[0].snapshots}
    assert why[run.snapshots["sales"]] == f"{run.id} is unfinished"
    keeping.carry_out(act, planned, limits=LIMITS)
    assert [shard.shard for shard in catalog.resolve(act.journal, "sales", run.shards["sales"])] == ["m1", "m2"]
    assert build.read(made).num_rows == 80
    assert (work / "numeric.npy").exists()


def test_features_and_training_sets_of_the_past_go(make: Callable[..., Actor]) -> None:
    act = make()
    shop.land(act, 1)
    needed = {Path(name).name for part in shop.features(act).parts for name in part.files}
    old = shop.opened(act.settings.root, shop.pipeline().replace(features=shop.pipeline().features[:1], segments=[]))
    shop.features(old)
    old.close()
    work = act.settings.home / "work" / "run-0-train"
    work.mkdir(parents=True)
    (work / "numeric.npy").write_bytes(b"rows")
    assert keeping.plan(act, limits=LIMITS).strays == (), "younger than the safety age"
    age(act)
    keeping.carry_out(act, keeping.plan(act, limits=LIMITS), limits=LIMITS)
    assert {path.name for path in (act.settings.home / "features").iterdir()} == needed
    assert not (work / "numeric.npy").exists()


def test_quarantine_past_retention_and_half_written_files_go(make: Callable[..., Actor]) -> None:
    act = make(retention="30d")
    refused = act.settings.root / "refused.csv"
    refused.write_text("customer,at\nann,yesterday\n")
    assert act.ingest("sales", refused).kind == "quarantined"
    (act.settings.home / "artifacts").mkdir(parents=True, exist_ok=True)
    half = act.settings.home / "artifacts" / ".part-abc"
    half.write_bytes(b"half")
    age(act, hours=29 * 24)
    assert {stray.what for stray in keeping.plan(act, limits=LIMITS).strays} == {"half written"}
    age(act, hours=31 * 24)
    planned = keeping.plan(act, limits=LIMITS)
    assert {stray.what for stray in planned.strays} == {"half written", "quarantine past retention"}
    keeping.carry_out(act, planned, limits=LIMITS)
    assert not half.exists()
    assert not any((act.settings.home / "quarantine").rglob("*.csv"))


def test_the_prediction_log_is_merged_and_loses_no_record(make: Callable[..., Actor]) -> None:
    act = make()
    act.settings.inbox.mkdir(parents=True)
    for at in range(3):
        shop.predict(act, *(f"buyer-{at}-{i}" for i in range(at + 1)))
        predictions.commit(act.settings, act.warehouse)
    before = sorted(map(str, predictions.everything(act.settings)))
    keeping.carry_out(act, keeping.plan(act, table="predictions", limits=LIMITS), limits=LIMITS)
    assert len(act.warehouse.files("predictions")) == 1
    assert sorted(map(str, predictions.everything(act.settings))) == before
    assert predictions.commit(act.settings, act.warehouse) == 0


def test_a_branch_that_a_killed_publisher_left_goes_once_it_is_old(make: Callable[..., Actor]) -> None:
    act = make()
    shop.land(act, 1)
    head = act.warehouse.snapshot("sales")
    act.warehouse._table("sales").manage_snapshots().create_branch(head, "audit-lost").commit()
    act.warehouse.tag("sales", head, "audit-2030")
    assert keeping.plan(act, limits=LIMITS).tables[0].branches == ()
    later = Limits(keep=1, safety=timedelta(seconds=-1))
    planned = keeping.plan(act, limits=later)
    assert planned.tables[0].branches == ("audit-lost",)
    keeping.carry_out(act, planned, limits=later)
    assert act.warehouse.refs("sales") == {"main": head, "audit-2030": head}


def test_a_tagged_snapshot_stays(make: Callable[..., Actor]) -> None:
    act = make()
    shop.land(act, 1, 2)
    first = catalog.published(act.journal, "sales")[0].snapshot
    assert keeping.tag(act, "sales", "audit-2030", first, dry_run=True)["snapshot"] == first
    assert act.warehouse.tags("sales") == {}
    keeping.tag(act, "sales", "year-end", first, dry_run=False)
    planned = keeping.plan(act, limits=LIMITS)
    assert {item.snapshot: item.why for item in planned.tables[0].snapshots}[first] == "named year-end"
    with pytest.raises(NotFound, match="no snapshot 7"):
        keeping.tag(act, "sales", "other", 7, dry_run=False)
    with pytest.raises(NotFound):
        keeping.plan(act, table="other")
    assert datetime.now(UTC) > planned.tables[0].snapshots[0].at
