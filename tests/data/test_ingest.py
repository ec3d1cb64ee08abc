"""Ingest through its front door: what is published, what is refused and why, and that repeating changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ct import Within
from ct.data import catalog
from ct.data.columns import to_columns
from ct.data.profile import Profile
from ct.data.publishing import ordered
from ct.errors import InvalidPipeline, InvalidShard
from ct.pipeline import Table
from ct.store.lineage import read as lineage

from .conftest import DAY, SALES, TIME, Place, sales


def put(rows: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return rows.set_column(rows.column_names.index(name), name, values)


def test_a_shard_is_published_with_its_facts(place: Place) -> None:
    rows = sales(1)
    path = place.file(rows, "sales-1.parquet")
    outcome = place.ingest(path)
    assert (outcome.kind, outcome.rows, outcome.reasons) == ("published", 300, ())
    (shard,) = catalog.published(place.journal, "sales")
    times = to_columns(rows)["at"]
    assert (shard.shard, shard.sha256, shard.rows, shard.snapshot) == ("sales-1", outcome.sha256, 300, outcome.snapshot)
    assert (shard.time_min, shard.time_max) == (times.min(), times.max())
    assert shard.tags["spans"]["at"] == [times.min(), times.max()]
    assert pq.read_table(shard.path).equals(rows)
    assert place.warehouse.scan("sales").num_rows == 300
    assert catalog.contract(place.journal, "sales") == rows.schema
    assert catalog.kinds(place.journal, "sales")["at"] == "time"
    assert place.events() == ["TableCreated", "ShardPublished"]
    assert f"shard/sales/{outcome.sha256}" in lineage(place.journal)
    assert place.journal.verify() == 2


def test_profiles_of_all_shards_merge(place: Place) -> None:
    for month in (1, 2):
        place.ingest(place.file(sales(month), f"sales-{month}.parquet"))
    digests = [event.data["profile"] for event in place.journal.read("table/sales", types=["ShardPublished"])]
    first, second = (Profile.from_bytes(place.artifacts.get(digest)) for digest in digests)
    assert first.merge(second).rows == 600


def test_the_same_bytes_twice_are_a_no_op(place: Place) -> None:
    path = place.file(sales(1), "sales-1.parquet")
    first = place.ingest(path)
    copy = place.root / "renamed.parquet"
    copy.write_bytes(path.read_bytes())
    for again in (path, copy):
        outcome = place.ingest(again)
        assert (outcome.kind, outcome.rows, outcome.snapshot) == ("duplicate", 300, first.snapshot)
    assert place.events() == ["TableCreated", "ShardPublished"]
    assert place.warehouse.scan("sales").num_rows == 300


def reordered(rows: pa.Table) -> pa.Table:
    return rows.select(rows.column_names[::-1])


def whole_numbers(rows: pa.Table) -> pa.Table:
    return put(rows, "price", rows["price"].cast(pa.int32()))


def other_spellings(rows: pa.Table) -> pa.Table:
    rows = put(rows, "shop", rows["shop"].dictionary_encode())
    rows = put(rows, "at", rows["at"].cast(pa.timestamp("ns", tz="Europe/Oslo")))
    return put(rows, "count", rows["count"].cast(pa.int8()))


def no_counts(rows: pa.Table) -> pa.Table:
    return put(rows, "count", pa.nulls(rows.num_rows))


@pytest.mark.parametrize("change", [reordered, whole_numbers, other_spellings, no_counts])
def test_what_loses_nothing_is_taken(place: Place, change: Callable[[pa.Table], pa.Table]) -> None:
    place.ingest(place.file(sales(1), "sales-1.parquet"))
    outcome = place.ingest(place.file(change(sales(2)), "sales-2.parquet"))
    assert outcome.kind == "published", outcome.reasons
    shards = catalog.published(place.journal, "sales")
    assert pq.read_schema(shards[0].path) == pq.read_schema(shards[1].path)
    assert place.warehouse.scan("sales").num_rows == 600


SCHEMA_FAULTS = {
    "unknown column": (lambda rows: rows.append_column("colour", rows["shop"]), "unknown column 'colour'"),
    "missing column": (
        lambda rows: rows.drop_columns(["price"]),
        "column 'price' is missing; expected a column of type double",
    ),
    "text for a number": (
        lambda rows: put(rows, "price", rows["price"].cast(pa.string())),
        "column 'price' has type string; expected type double",
    ),
    "number for a text": (lambda rows: put(rows, "shop", rows["count"]), "column 'shop' has type int64; expected type string"),
    "fraction for a whole": (
        lambda rows: put(rows, "count", pc.add(rows["count"].cast(pa.float64()), 0.5)),
        "column 'count' has type double; expected type int64",
    ),
    "time without a zone": (lambda rows: put(rows, "at", rows["at"].cast(pa.timestamp("us"))), "without a zone"),
    "nested": (lambda rows: put(rows, "count", pa.array([[1]] * rows.num_rows)), "column 'count' has the type list"),
    "extension": (
        lambda rows: put(rows, "shop", pa.ExtensionArray.from_storage(pa.json_(), rows["shop"].combine_chunks())),
        "extension type",
    ),
    "two of one name": (
        lambda rows: pa.table([*rows.columns, rows["shop"]], names=[*rows.column_names, "shop"]),
        "column",
    ),
}


@pytest.mark.parametrize("fault", SCHEMA_FAULTS)
def test_another_schema_is_quarantined(place: Place, fault: str) -> None:
    change, says = SCHEMA_FAULTS[fault]
    place.ingest(place.file(sales(1), "sales-1.parquet"))
    before = place.warehouse.snapshot("sales")
    path = place.file(change(sales(2)), "sales-2.parquet")
    outcome = place.ingest(path)
    assert outcome.kind == "quarantined"
    assert says in " ".join(reason.found for reason in outcome.reasons)
    assert place.warehouse.snapshot("sales") == before
    (held,) = catalog.quarantined(place.journal, "sales")
    assert Path(held["file"]).read_bytes() == path.read_bytes()
    again = place.ingest(path)
    assert (again.kind, again.reasons) == ("quarantined", outcome.reasons)
    assert place.events().count("ShardQuarantined") == 1


def parquet_bytes(rows: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink)
    return bytes(sink.getvalue())


def flipped(data: bytes) -> bytes:
    return data[:200] + bytes(byte ^ 0xFF for byte in data[200:260]) + data[260:]


WHOLE = parquet_bytes(sales(2))


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("cut.parquet", WHOLE[: len(WHOLE) // 2], "corrupt"),
        ("cut-at-the-end.parquet", WHOLE[:-3], "corrupt"),
        ("flipped.parquet", flipped(WHOLE), ""),
        ("empty.parquet", b"", "0 bytes"),
        ("text.parquet", b"this is no Parquet", "corrupt"),
        ("table.xlsx", WHOLE, ".xlsx"),
        ("code.pkl", b"cos\nsystem\n(S'true'\ntR.", ".pkl"),
        ("half.jsonl", b'{"id": "1", "at": ', "corrupt"),
        ("half.csv", b"id,at\n1,2,3\n", "corrupt"),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_a_broken_file_is_quarantined(place: Place, name: str, data: bytes, says: str, first: bool) -> None:
    if not first:
        place.ingest(place.file(sales(1), "sales-1.parquet"))
    path = place.root / name
    path.write_bytes(data)
    outcome = place.ingest(path)
    assert outcome.kind == "quarantined"
    assert says in outcome.reasons[0].found
    assert len(catalog.published(place.journal, "sales")) == (0 if first else 1)


def test_the_first_shard_must_have_what_the_pipeline_names(place: Place) -> None:
    rows = put(sales(1).drop_columns(["price"]), "at", sales(1)["id"])
    outcome = place.ingest(place.file(rows, "sales-1.parquet"))
    found = " ".join(reason.found for reason in outcome.reasons)
    assert outcome.kind == "quarantined"
    assert "column 'price' is missing" in found
    assert "column 'at' has type string; expected timestamps in UTC" in found
    assert catalog.contract(place.journal, "sales") is None


def test_one_shop_in_another_currency_and_a_day_without_cities(place: Place) -> None:
    place.ingest(place.file(sales(1), "sales-1.parquet"))
    rows = sales(2)
    rows = put(rows, "price", pc.if_else(pc.equal(rows["shop"], "c"), pc.multiply(rows["price"], 1.609), rows["price"]))
    day = pc.equal(pc.strftime(rows["at"], "%Y-%m-%d"), "1970-03-05")
    rows = put(rows, "city", pc.if_else(day, pa.scalar(None, pa.string()), rows["city"]))
    outcome = place.ingest(place.file(rows, "sales-2.parquet"))
    assert outcome.kind == "quarantined"
    lacking, moved = outcome.reasons
    assert "city missing in 30, on 1970-03-05" in lacking.found
    assert "with shop c" in moved.found
    assert (lacking.rows, moved.rows, len(moved.examples)) == (30, 75, 3)


def test_rows_that_came_before_are_refused(place: Place) -> None:
    place.ingest(place.file(sales(1), "sales-1.parquet"))
    outcome = place.ingest(place.file(pa.concat_tables([sales(2), sales(1, 300).slice(0, 5)]), "sales-2.parquet"))
    assert [(reason.check, reason.rows) for reason in outcome.reasons] == [("id unique", 5)]


def test_a_name_that_is_taken_is_refused(place: Place) -> None:
    place.ingest(place.file(sales(1), "sales-1.parquet"))
    outcome = place.ingest(place.file(sales(2), "sales-1.parquet"))
    assert outcome.kind == "quarantined"
    assert "published already" in outcome.reasons[0].found


@pytest.mark.parametrize("column", ["id", "at"])
def test_every_row_needs_a_key_and_a_time(place: Place, column: str) -> None:
    rows = sales(1)
    values = rows[column].to_pylist()
    values[7] = None
    outcome = place.ingest(place.file(put(rows, column, pa.array(values, rows[column].type)), "sales-1.parquet"))
    assert [(reason.check, reason.rows) for reason in outcome.reasons] == [("id, at not missing", 1)]


def test_no_rows_are_no_shard(place: Place) -> None:
    place.ingest(place.file(sales(1), "sales-1.parquet"))
    path = place.file(sales(2).slice(0, 0), "sales-2.parquet")
    assert [place.ingest(path).kind for _ in range(2)] == ["empty", "empty"]
    assert place.events() == ["TableCreated", "ShardPublished", "ShardEmpty"]
    assert len(catalog.seen(place.journal, "sales")) == 2


def test_a_quarantined_file_is_looked_at_again_once_the_declaration_has_changed(place: Place) -> None:
    path = place.file(sales(1), "sales-1.parquet")
    strict, mild = replace(SALES, checks=[Within("price", 0, 5)]), replace(SALES, checks=[Within("price", 0, 50)])
    assert place.ingest(path, strict).kind == "quarantined"
    assert place.ingest(path, strict).kind == "quarantined"
    assert place.events() == ["ShardQuarantined"]
    assert place.ingest(path, mild).kind == "published"
    assert catalog.quarantined(place.journal, "sales") == ()


def test_a_check_that_cannot_run_publishes_nothing(place: Place) -> None:
    path = place.file(sales(1), "sales-1.parquet")
    with pytest.raises(InvalidPipeline):
        place.ingest(path, replace(SALES, checks=[Within("shop", 0, 1)]))
    assert place.events() == []


def as_csv(rows: pa.Table, path: Path) -> None:
    pa_csv.write_csv(rows, path)


def as_jsonl(rows: pa.Table, path: Path) -> None:
    frame = rows.to_pandas()
    frame["at"] = frame["at"].map(lambda at: at.isoformat())
    frame.to_json(path, orient="records", lines=True)


@pytest.mark.parametrize(("write", "suffix"), [(as_csv, "csv"), (as_jsonl, "jsonl")])
@pytest.mark.parametrize("first", ["text", "parquet"])
def test_text_formats_give_the_same_rows(
    make_place: Callable[[str], Place], write: Callable[[pa.Table, Path], None], suffix: str, first: str
) -> None:
    place = make_place("p")
    second = put(sales(2), "id", pa.array([str(i) for i in range(300)]))  # would be read as numbers without the contract
    if first == "parquet":
        place.ingest(place.file(sales(1), "sales-1.parquet"))
    else:
        write(sales(1), place.root / f"sales-1.{suffix}")
        outcome = place.ingest(place.root / f"sales-1.{suffix}")
        assert outcome.kind == "published", outcome.reasons
    contract = catalog.contract(place.journal, "sales")
    assert contract is not None
    write(second, place.root / f"sales-2.{suffix}")
    outcome = place.ingest(place.root / f"sales-2.{suffix}")
    assert outcome.kind == "published", outcome.reasons
    found = pq.read_table(catalog.published(place.journal, "sales")[1].path)
    for name, values in to_columns(second).items():
        np.testing.assert_array_equal(to_columns(found)[name], values)


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("2.csv", b"id,at,shop,city,price\n1,2013-01-01T00:00:00Z,a,,1\n", "column 'count' is missing"),
        ("2.csv", b"id,at,shop,city,price,count\n1,2013-01-01T00:00:00Z,a,Rome,dear,1\n", "dear"),
        ("2.csv", b"id,at,shop,city,price,count\n1,2013-01-01T00:00:00Z,a,,10,1\n", "city missing in 1"),
        ("2.jsonl", b'{"id":"1","at":"2013-01-01T00:00:00Z","shop":"a","city":"x","price":10}\n', "column 'count' is missing"),
        ("2.jsonl", b'{"id":"1","at":"soon","shop":"a","city":"x","price":10,"count":1}\n', "soon"),
        ("2.jsonl", b'{"id":"1","at":"2013-01-01T00:00:00","shop":"a","city":"x","price":10,"count":1}\n', "zone"),
        ("2.csv", b"id,at,shop,city,price,count\n1,2013-01-01T00:00:00,a,x,10,1\n", "zone"),
    ],
)
def test_faults_in_text_formats_are_named(place: Place, name: str, data: bytes, says: str) -> None:
    place.ingest(place.file(sales(1), "sales-1.parquet"))
    (place.root / name).write_bytes(data)
    outcome = place.ingest(place.root / name)
    assert outcome.kind == "quarantined"
    assert says in outcome.reasons[0].found


def test_a_country_code_is_not_a_missing_value(place: Place) -> None:
    place.ingest(place.file(sales(1), "sales-1.parquet"))
    (place.root / "2.csv").write_text("id,at,shop,city,price,count\n1,2013-01-01T00:00:00Z,a,NA,10,1\n")
    assert place.ingest(place.root / "2.csv").kind == "published"
    assert to_columns(pq.read_table(catalog.published(place.journal, "sales")[1].path))["city"][0] == "NA"


def test_links_folders_and_odd_names(place: Place) -> None:
    path = place.file(sales(1), "sales-1.parquet")
    link = place.root / "link.parquet"
    link.symlink_to(path)
    outcome = place.ingest(link)
    assert (outcome.kind, catalog.quarantined(place.journal, "sales")[0]["file"]) == ("quarantined", "")
    for wrong in (place.root, place.root / "nothing.parquet"):
        with pytest.raises(InvalidShard):
            place.ingest(wrong)
    odd = place.root / b"od\xffd\n.par\xff".decode("utf-8", "surrogateescape")
    odd.write_bytes(b"x")
    assert place.ingest(odd).shard == "od?d?"


def test_a_bomb_is_refused(place: Place) -> None:
    rows = pa.table({"id": pa.nulls(0, pa.string()), "at": pa.nulls(0, TIME)})
    path = place.root / "bomb.parquet"
    with pq.ParquetWriter(path, rows.schema, compression="zstd", use_dictionary=False) as writer:
        many = pa.table({"id": pa.array(["x" * 1000] * 200_000), "at": pa.array([DAY] * 200_000, pa.int64()).cast(TIME)})
        writer.write_table(many)
    outcome = place.ingest(path)
    assert outcome.kind == "quarantined"
    assert "unpacks to" in outcome.reasons[0].found
    (place.root / "long.csv").write_text("id,at\n" + "x" * 2_000_000 + ",2013-01-01T00:00:00Z\n")
    assert "a cell of over" in place.ingest(place.root / "long.csv").reasons[0].found


KEYS = st.lists(st.tuples(st.sampled_from(["a", "b", "é", ""]), st.integers(-3, 3), st.integers(0, 3)), min_size=1, max_size=12)


@given(KEYS)
def test_rows_are_kept_by_time_then_key(drawn: list[tuple[str, int, int]]) -> None:
    rows = pa.table(
        {
            "name": pa.chunked_array([[key for key, _, _ in drawn[:3]], [key for key, _, _ in drawn[3:]]], pa.string()),
            "number": pa.array([number for _, number, _ in drawn]),
            "at": pa.array([at for _, _, at in drawn]).cast(TIME),
        }
    )
    table = Table("t", key=("name", "number"), time="at")
    found = ordered(rows, table)
    keys = [(at, key.encode(), str(number)) for key, number, at in drawn]
    told = [(int(at.timestamp() * 1e6), key.encode(), str(number)) for key, number, at in zip(*(found[name].to_pylist() for name in ("name", "number", "at")), strict=True)]  # fmt: skip
    assert told == sorted(keys)
    assert ordered(found, table) is found
