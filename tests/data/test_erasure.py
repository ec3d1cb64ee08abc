"""Erasing a key from a table: its rows, all of them and no others, whatever the files, on disk and on PostgreSQL with the S3 API."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from ct.data import catalog, erasure, maintenance, profiled, shards
from ct.data.arriving import Reader
from ct.data.maintenance import Limits
from ct.data.publishing import Stores
from ct.data.traces import search
from ct.errors import Conflict, InvalidRequest
from ct.pipeline import Table
from ct.store.files import Files
from ct.store.journal import New
from tests.data.conftest import DAY, TIME, Place

VISITS = Table("visits", key=("person", "day"), time="at", slices=["town"])
SECRET = "5b" * 32


def visits(month: int, n: int = 30) -> pa.Table:
    """Visits of five persons; the second part of the key is a number, the same for all persons of a day."""
    at = [month * 30 * DAY + i * DAY // 3 for i in range(n)]
    return pa.table(
        {
            "person": pa.array([f"person-{i % 5}" for i in range(n)]),
            "day": pa.array([i // 5 for i in range(n)], pa.int64()),
            "at": pa.array(at, pa.int64()).cast(TIME),
            "town": pa.array(["Oslo" if i % 2 else "Rome" for i in range(n)]),
            "spent": pa.array(np.arange(n) * 1.5),
        }
    )


def stores(place: Place) -> Stores:
    return Stores(place.settings, place.journal, place.warehouse, place.artifacts, Reader())


def filled(place: Place, months: int = 3) -> Stores:
    for month in range(1, months + 1):
        assert place.ingest(place.file(visits(month), f"m{month}.parquet"), VISITS).kind == "published"
    return stores(place)


def subject(place: Place, *key: str) -> erasure.Subject:
    return erasure.subject(place.journal, VISITS, key)


def rows(place: Place) -> list[dict]:
    return [row for shard in catalog.published(place.journal, "visits") for row in shards.read(shard).to_pylist()]


def erased(place: Place, key: erasure.Subject) -> int:
    here = stores(place)
    count = erasure.request(here, key)
    erasure.write_out(here, VISITS)
    erasure.drop(here, "visits", key)
    return count


def test_rows_files_and_snapshots_of_a_key_go_wherever_they_are_kept(anywhere: Place) -> None:
    here, key = filled(anywhere, months=4), None
    merge = maintenance.merges(maintenance.sizes(here, "visits"), Limits(least=2))[0]
    maintenance.rewrite(here, VISITS, merge.files[:2], reason="compaction")
    key = subject(anywhere, "person-2|3")
    before = rows(anywhere)
    places = [Files(anywhere.settings.place("warehouse"))]
    assert search(places, key.wanted()).hits
    assert erased(anywhere, key) == 4
    after = rows(anywhere)
    assert after == [row for row in before if (row["person"], row["day"]) != ("person-2", 3)]
    assert len(after) == 116 == anywhere.warehouse.scan("visits").num_rows
    assert search(places, key.wanted()).hits == ()
    assert len(anywhere.warehouse.files("visits")) == 3, "what was merged stays merged"
    assert erasure.old(here, "visits", key) == erasure.Old()


def test_an_erased_row_does_not_come_back_by_compaction(place: Place) -> None:
    here, key = filled(place), subject(place, "person-0", "1")
    erasure.request(here, key)
    merge = maintenance.merges(maintenance.sizes(here, "visits"), Limits(least=2))[0]
    maintenance.rewrite(here, VISITS, merge.files, reason="compaction")
    assert len(rows(place)) == 87 == place.warehouse.scan("visits").num_rows
    assert erasure.write_out(here, VISITS) == 0, "the compaction has written them out"
    erasure.drop(here, "visits", key)
    assert search([Files(place.settings.place("warehouse"))], key.wanted()).hits == ()


def test_two_erasures_before_either_is_written_out(place: Place) -> None:
    here = filled(place, months=1)
    for key in (subject(place, "person-0", "1"), subject(place, "person-4", "5")):
        assert erasure.request(here, key) == 1
    (shard,) = catalog.published(place.journal, "visits")
    assert (shard.rows, len(shard.without)) == (28, 2)
    left = {(row["person"], row["day"]) for row in rows(place)}
    assert not left & {("person-0", 1), ("person-4", 5)}
    erasure.write_out(here, VISITS)
    (shard,) = catalog.published(place.journal, "visits")
    assert (shard.rows, shard.without) == (28, ())
    assert {(row["person"], row["day"]) for row in rows(place)} == left


def test_times_and_profiles_follow_the_rows_that_are_left(place: Place) -> None:
    here, first = filled(place, months=1), visits(1).to_pylist()[0]
    (known,) = catalog.published(place.journal, "visits")
    erased(place, subject(place, first["person"], str(first["day"])))
    (shard,) = catalog.published(place.journal, "visits")
    assert known.time_min < shard.time_min == shard.tags["spans"]["at"][0] == shard.tags["window"][0]
    assert shard.tags["slices"] == {"town": {"Oslo": 15, "Rome": 14}}
    ((_, made),) = profiled.profiles(here.journal, here.artifacts, "visits")
    assert made.whole.rows == 29
    assert made.whole.columns["spent"].low == 1.5


def test_a_value_leaves_the_profiles_and_they_still_merge(place: Place) -> None:
    here = filled(place, months=2)
    made = profiled.whole(here.journal, here.artifacts, "visits").whole.columns["town"]
    assert profiled.forget(here.journal, here.artifacts, "visits", "town", "Oslo") == 2
    assert profiled.forget(here.journal, here.artifacts, "visits", "town", "Oslo") == 0
    left = profiled.whole(here.journal, here.artifacts, "visits").whole.columns["town"]
    assert dict(left.counts) == {"Rome": made.counts["Rome"]}
    assert (left.count, left.other, left.missing) == (made.count, made.counts["Oslo"], 0)
    assert place.ingest(place.file(visits(3), "m3.parquet"), VISITS).kind == "published"
    again = profiled.whole(here.journal, here.artifacts, "visits").whole.columns["town"]
    assert dict(again.counts) == {"Rome": 45}


def test_whoever_publishes_meanwhile_is_searched_too(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    here, find = filled(place, months=1), erasure.find

    def slow(journal, key):
        found = find(journal, key)
        monkeypatch.setattr(erasure, "find", find)
        place.ingest(place.file(visits(2), "m2.parquet"), VISITS)
        return found

    monkeypatch.setattr(erasure, "find", slow)
    assert erasure.request(here, subject(place, "person-1", "0")) == 2
    assert len(rows(place)) == 58


def test_a_rewriting_that_a_request_overtakes_gives_way(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    here, key, stage = filled(place), subject(place, "person-1", "0"), place.warehouse.stage

    def slow(*args, **kwargs):
        staged = stage(*args, **kwargs)
        monkeypatch.setattr(place.warehouse, "stage", stage)
        erasure.request(here, key)
        return staged

    monkeypatch.setattr(place.warehouse, "stage", slow)
    merge = maintenance.merges(maintenance.sizes(here, "visits"), Limits(least=2))[0]
    with pytest.raises(Conflict):
        maintenance.rewrite(here, VISITS, merge.files, reason="compaction")
    erasure.write_out(here, VISITS)
    erasure.drop(here, "visits", key)
    assert search([Files(place.settings.place("warehouse"))], key.wanted()).hits == (), (
        "what the loser had staged is gone as well"
    )


@pytest.mark.parametrize("secret", [SECRET, ""])
def test_the_journal_knows_a_key_again_without_holding_it(place: Place, secret: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CT_PERSONAL_KEY", secret)
    here, key = filled(place, months=1), subject(place, "person-3", "2")
    erasure.request(here, key)
    (event,) = erasure.requests(place.journal, key)
    assert event.data["by"] == ("hmac-sha256" if secret else "sha256")
    assert "person-3" not in str(event.data)
    assert erasure.requests(place.journal, subject(place, "person-3", "1")) == ()
    monkeypatch.setenv("CT_PERSONAL_KEY", "77" * 32)
    assert len(erasure.requests(place.journal, key)) == (0 if secret else 1), "with another secret nobody can test a guess"


def test_keys_are_read_by_the_columns_kinds(place: Place) -> None:
    filled(place, months=1)
    key = subject(place, "person-3|2")
    assert (key.parts, key.text) == (("person-3", "2"), "person-3|2")
    assert key.asked_for({"key": "person-3|2"})
    assert key.asked_for({"key": "x", "request": {"person": "person-3", "day": 2.0}})
    assert not key.asked_for({"key": "x", "request": {"person": "person-3", "day": None}})
    for wrong in (("person-3",), ("person-3", "two"), ("a", "1", "b"), ("", "1")):
        with pytest.raises(InvalidRequest):
            subject(place, *wrong)


def test_no_other_key_of_the_same_hash_is_taken(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    here = filled(place, months=1)
    monkeypatch.setattr(erasure, "row_hash", lambda rows, names: np.zeros(len(rows[names[0]]), dtype=np.int64))
    assert erasure.request(here, subject(place, "person-1", "0")) == 1


def test_a_key_that_is_a_part_of_another_is_not_found_in_it(place: Place) -> None:
    """Nor is what reaches the other one's rows dropped."""
    tens = visits(1)
    tens = tens.set_column(0, "person", pa.array([f"person-1{i % 5}" for i in range(30)]))
    assert place.ingest(place.file(tens, "tens.parquet"), VISITS).kind == "published"
    place.warehouse.tag("visits", place.warehouse.snapshot("visits"), "early")
    ones = visits(2).set_column(0, "person", pa.array(["person-1"] * 30)).set_column(1, "day", pa.array([4] * 30))
    assert place.ingest(place.file(ones, "ones.parquet"), VISITS).kind == "published"
    alone = Table("visits", key=("person",), time="at", slices=["town"])
    here, key = stores(place), erasure.subject(place.journal, alone, ["person-1"])
    assert key.others == tuple(f"person-1{i}" for i in range(5))
    assert erasure.request(here, key) == 30
    erasure.write_out(here, VISITS)
    erasure.drop(here, "visits", key)
    assert place.warehouse.tags("visits").keys() == {"early"}
    assert search([Files(place.settings.place("warehouse"))], key.wanted()).hits == ()


def test_a_tag_on_rows_without_the_key_stays(place: Place) -> None:
    filled(place, months=1)
    alone = replace(VISITS, name="visits")
    place.warehouse.tag("visits", place.warehouse.snapshot("visits"), "early")
    late = visits(2).append_column("note", pa.array(["n"] * 30)).drop_columns(["note"])
    extra = pa.table({**{name: late[name] for name in late.column_names}, "person": pa.array(["guest-99"] * 30)})
    assert place.ingest(place.file(extra, "m2.parquet"), alone).kind == "published"
    place.warehouse.tag("visits", place.warehouse.snapshot("visits"), "late")
    assert erased(place, subject(place, "guest-99", "0")) == 5
    assert place.warehouse.tags("visits").keys() == {"early"}
    place.journal.append("table/visits", [New("ErasureVerified", {"erasures": ["erasure-4"], "versions": []})])
    assert [item["state"] for item in catalog.erasures(place.journal, "visits")] == ["verified"]
