"""Erasing a key: nothing of it is left in any byte, everything else is, and a kill at any step changes nothing about the end."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import ct
from ct.control import erasing, keeping
from ct.control.act import Actor
from ct.data import catalog, checks, erasure, predictions, shards, traces
from ct.errors import InvalidRequest
from ct.features import build, online
from ct.features.transform import lookups_of
from ct.ids import sha256_file
from ct.store.files import Files
from tests.control import killed, shop

KEY = "customer-7"
WANTED = traces.Wanted(KEY, ("customer", "_key", "key", "unit"), (("customer", KEY),))


def hits(act: Actor) -> set[str]:
    found = traces.search([Files(str(act.settings.home))], WANTED).hits
    return {str(Path(address).relative_to(act.settings.home)).split("/")[0] for address, _ in found}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shop with two months, a tag, a run and its version, features, a training set, predictions, a refused file, an online store."""
    root = tmp_path_factory.mktemp("erasing") / "shop"
    act = shop.opened(root)
    shop.land(act, 1, 2)
    act.warehouse.tag("sales", catalog.published(act.journal, "sales")[1].snapshot, "release")
    shop.run(act, version="v1")
    shop.features(act)
    act.settings.inbox.mkdir(parents=True)
    shop.predict(act, KEY, "buyer-1-001")
    predictions.commit(act.settings, act.warehouse)
    work = act.settings.home / "work" / "run-1-train"
    work.mkdir(parents=True)
    (work / "numeric.npy").write_bytes(b"numbers")
    refused = root / "refused.csv"
    refused.write_text(f"customer,at\n{KEY},yesterday\n")
    assert act.ingest("sales", refused).kind == "quarantined"
    store = online.opened(act.settings)
    store.materialize(lookups_of(act.pipeline.features), {"sales": catalog.published(act.journal, "sales")})
    store.close()
    act.close()
    shutil.copytree(root, root.with_name("kept"))
    return root


@pytest.fixture
def act(made: Path) -> Iterator[Actor]:
    """The shop as it was made; files hold absolute paths, so it is put back in its place."""
    shutil.rmtree(made)
    shutil.copytree(made.with_name("kept"), made)
    act = shop.opened(made)
    yield act
    act.close()


def test_a_dry_run_says_what_would_go_and_changes_nothing(act: Actor) -> None:
    events, before = act.journal.head(), hits(act)
    found = erasing.plan(act, "sales", [KEY])
    assert found.rows == {"m1": 1, "m2": 1}
    assert (found.predictions, found.sets, len(found.quarantine), len(found.landing)) == (1, 1, 1, 2)
    assert len(found.files) == 2
    assert found.features > 0
    assert found.versions == ("v1",)
    assert act.journal.head() == events
    assert hits(act) == before >= {"warehouse", "quarantine"}


def test_nothing_of_the_key_is_left_and_everything_else_is(act: Actor) -> None:
    before = {shard.shard: shards.read(shard).to_pylist() for shard in catalog.published(act.journal, "sales")}
    done = erasing.carry_out(act, "sales", [KEY], landing=True)
    assert done.left == ()
    assert (done.rows, done.predictions, done.refs) == ({"m1": 1, "m2": 1}, 2, ("release",))
    assert hits(act) == set()
    after = {shard.shard: shards.read(shard).to_pylist() for shard in catalog.published(act.journal, "sales")}
    assert after == {name: [row for row in rows if row["customer"] != KEY] for name, rows in before.items()}
    assert act.warehouse.scan("sales").num_rows == 78
    assert [r["id"] for r in predictions.everything(act.settings)] == ["p-1-11", "p-1-11"]
    assert list((act.settings.root / "landing" / "sales").iterdir()) == []
    event = list(act.journal.read("table/sales"))[-1]
    assert event.type == "ErasureVerified"
    assert event.data["versions"] == ["v1"]
    assert event.data["reproducible"].startswith("in part")
    assert KEY not in "".join(str(event.data) for event in act.journal.read())
    assert act.journal.verify() == act.journal.head()


def test_what_landed_is_reported_and_left_alone_unless_asked(act: Actor) -> None:
    done = erasing.carry_out(act, "sales", [KEY])
    assert {Path(address).name for address, _ in done.left} == {"m1.parquet", "m2.parquet"}
    assert list(act.journal.read("table/sales"))[-1].type == "ErasureIncomplete"
    assert len(list((act.settings.root / "landing" / "sales").iterdir())) == 2
    again = erasing.carry_out(act, "sales", [KEY], landing=True)
    assert again.left == ()
    assert again.versions == ("v1",)


def test_readers_leave_the_rows_out_from_the_request_on(act: Actor) -> None:
    known = catalog.published(act.journal, "sales")
    digest = shop.features(act).digest
    subject = erasure.subject(act.journal, act.table("sales"), [KEY])
    assert erasure.request(keeping.stores(act), subject) == 2
    assert erasure.request(keeping.stores(act), subject) == 0
    now = catalog.published(act.journal, "sales")
    assert [shard.path for shard in now] == [shard.path for shard in known], "no file has been rewritten yet"
    assert [shard.rows for shard in now] == [39, 39]
    assert all(KEY not in shards.read(shard)["customer"].to_pylist() for shard in now)
    assert not {shard.identity for shard in now} & {shard.identity for shard in known}
    made = shop.features(act)
    assert made.digest != digest
    assert KEY not in build.read(made)["_key"].to_pylist()
    filtered = repr(build.read(made).to_pylist())
    erasure.write_out(keeping.stores(act), act.table("sales"))
    assert repr(build.read(shop.features(act)).to_pylist()) == filtered, "writing the rows out changes no row that is left"


def test_killed_at_any_durable_operation_and_run_again_it_ends_the_same(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step, through = 1, False
    while not through:
        shutil.rmtree(made)
        shutil.copytree(made.with_name("kept"), made)
        act = shop.opened(made)
        with monkeypatch.context() as patch:
            killed.at(patch, step)
            try:
                erasing.carry_out(act, "sales", [KEY], landing=True)
                through = True
            except killed.Killed:
                pass
        act.close()
        act = shop.opened(made)
        done = erasing.carry_out(act, "sales", [KEY], landing=True)
        assert (done.left, hits(act)) == ((), set()), step
        assert act.warehouse.scan("sales").num_rows == 78, step
        assert [shard.rows for shard in catalog.published(act.journal, "sales")] == [39, 39], step
        assert [record["id"] for record in predictions.everything(act.settings)] == ["p-1-11", "p-1-11"], step
        assert list(act.journal.read("table/sales"))[-1].type == "ErasureVerified", step
        assert done.versions == ("v1",), step
        act.close()
        step += killed.STRIDE
    assert step > 30, "an erasure takes more durable operations than that"


def test_a_segment_that_a_replica_still_writes_is_blanked_and_goes_on(act: Actor) -> None:
    inbox = predictions.Inbox(act.settings.inbox, "cd34")
    record = {"kind": "prediction", "epoch": 1, "context": {}, "features": {}, "request": {"customer": KEY}}
    inbox.submit(
        [{**record, "id": "p-live", "key": KEY}, {**record, "id": "p-other", "key": "buyer-1-002", "request": {}}]
    ).result()
    cursor = predictions.read(act.settings.inbox, {})[1]
    assert erasing.carry_out(act, "sales", [KEY], landing=True).left == ()
    inbox.submit([{**record, "id": "p-later", "key": "buyer-1-003", "request": {}}]).result()
    inbox.close()
    assert [found["id"] for found in predictions.read(act.settings.inbox, {})[0]] == ["p-other", "p-later"]
    assert [found["id"] for found in predictions.read(act.settings.inbox, cursor)[0]] == ["p-later"]
    assert predictions.commit(act.settings, act.warehouse) == 1
    ids = [found["id"] for found in predictions.everything(act.settings)]
    assert sorted(ids) == ["p-1-11", "p-1-11", "p-later", "p-other"]


def test_bytes_that_nobody_expected_are_found(act: Actor) -> None:
    (act.settings.home / "notes.txt").write_text(f"call {KEY} back")
    done = erasing.carry_out(act, "sales", [KEY], landing=True)
    assert done.left == ((str(act.settings.home / "notes.txt"), "bytes"),)


def test_quarantine_loses_the_key_and_nothing_else(tmp_path: Path) -> None:
    """Refused files are read by a process that may die of them; rows set aside are only thinned."""
    act = shop.opened(tmp_path / "shop", shop.pipeline(checks=[checks.quarantine(ct.Within("price", 9, 1e6), up_to=0.5)]))
    shop.land(act, 1)
    files = {}
    for name, rows in (("with", shop.rows(2)), ("without", shop.rows(3).slice(10))):
        files[name] = act.settings.root / f"{name}.parquet"
        pq.write_table(rows.append_column("odd", pa.array(rows["customer"])), files[name], compression="zstd")
        assert act.ingest("sales", files[name]).kind == "quarantined"
    files["broken"] = act.settings.root / "broken.parquet"
    files["broken"].write_bytes(files["without"].read_bytes()[:-20])
    assert act.ingest("sales", files["broken"]).kind == "quarantined"
    (aside,) = catalog.aside(act.journal, "sales")
    assert aside["rows"] == 9
    landed = act.settings.root / "landing" / "sales" / "m1.parquet"
    assert erasing.plan(act, "sales", [KEY]).landing == (str(landed),), "its row was set aside"
    for _ in range(2):
        assert erasing.carry_out(act, "sales", [KEY]).left == ((str(landed), "the file as it arrived"),)
    done = erasing.carry_out(act, "sales", [KEY], landing=True)
    assert not landed.exists()
    assert done.left == ()
    assert done.rows == {}, "the key's row was never published"
    left = {path.stem.partition(".")[0]: path for path in (act.settings.home / "quarantine" / "sales").iterdir()}
    digests = {name: sha256_file(path) for name, path in files.items()}
    assert digests["without"] in left
    assert digests["with"] not in left
    assert digests["broken"] not in left, "nobody can tell what is in it"
    thinned = pq.read_table(aside["file"])["customer"].to_pylist()
    assert thinned == [f"buyer-1-{i:03d}" for i in (0, 1, 2, 3, 4, 5, 6, 8)]
    act.close()


def test_a_shard_of_that_key_alone_goes_and_does_not_come_back(tmp_path: Path) -> None:
    act = shop.opened(tmp_path / "shop")
    shop.land(act, 1)
    alone = act.settings.root / "alone.parquet"
    pq.write_table(shop.rows(2).filter([i == 7 for i in range(40)]), alone)
    assert act.ingest("sales", alone).kind == "published"
    done = erasing.carry_out(act, "sales", [KEY], landing=True)
    assert done.rows == {"m1": 1, "alone": 1}
    assert [shard.shard for shard in catalog.published(act.journal, "sales")] == ["m1"]
    assert act.ingest("sales", alone).kind == "duplicate"
    assert act.warehouse.scan("sales").num_rows == 39


@pytest.mark.parametrize("key", [[], [""], ["a", "b"]])
def test_a_key_of_the_wrong_shape_is_refused(act: Actor, key: list[str]) -> None:
    with pytest.raises(InvalidRequest):
        erasing.plan(act, "sales", key)


def test_a_key_that_nobody_has_erases_nothing(act: Actor) -> None:
    known = catalog.published(act.journal, "sales")
    done = erasing.carry_out(act, "sales", ["customer-99"])
    assert done.left == ()
    assert done.rows == {}
    assert catalog.published(act.journal, "sales") == known
