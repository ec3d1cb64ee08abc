"""The catalogue as a fold: where shards lie, what is left of them, how the columns came to be, what was asked to be erased."""

from __future__ import annotations

import pytest

from ct.data import catalog
from ct.errors import NotFound
from ct.store.journal import Journal, New

SCHEMA = [["id", "string"], ["at", "timestamp[us, tz=UTC]"]]


@pytest.fixture
def journal(tmp_path) -> Journal:
    return Journal(f"sqlite:///{tmp_path / 'journal.db'}")


def append(journal: Journal, kind: str, **data) -> None:
    journal.append("table/sales", [New(kind, data)])


def publish(journal: Journal, name: str, rows: int = 10, **more) -> None:
    facts = {
        "shard": name, "sha256": name * 8, "file": f"/{name}.parquet", "file_sha256": f"of-{name}", "rows": rows, "snapshot": 1,
        "time_min": 0, "time_max": 9, "tags": {"source": "csv", "spans": {"at": [0, 9]}},
    }  # fmt: skip
    append(journal, "ShardPublished", **{**facts, **more})


def test_a_table_without_a_shard(journal: Journal) -> None:
    assert catalog.published(journal, "sales") == ()
    assert catalog.contract(journal, "sales") is None
    assert catalog.history(journal, "sales") == ()
    with pytest.raises(NotFound, match="no contract yet"):
        catalog.kinds(journal, "sales")


def test_columns_of_today_are_known_to_every_shard(journal: Journal) -> None:
    append(journal, "TableCreated", schema=SCHEMA, owner="shop")
    publish(journal, "a")
    append(journal, "ContractChanged", schema=[*SCHEMA, ["price", "double"]], added=["price"], shard="b")
    publish(journal, "b", drift=[["narrowed", "price", "cast", "int64 as double"], ["category", "id", "accept", "new"]])
    assert [dict(shard.types) for shard in catalog.published(journal, "sales")] == [dict([*SCHEMA, ["price", "double"]])] * 2
    assert catalog.kinds(journal, "sales") == {"id": "text", "at": "time", "price": "number"}
    assert [(item["shard"], item["what"]) for item in catalog.history(journal, "sales")] == [
        ("", "created with 2 columns: id, at"),
        ("b", "added price (double)"),
        ("b", "price narrowed (cast): int64 as double"),
    ]


def test_a_rewriting_moves_shards_and_a_request_thins_them(journal: Journal) -> None:
    append(journal, "TableCreated", schema=SCHEMA, owner="shop")
    for name in "abc":
        publish(journal, name)
    layout = {"a" * 8: {"start": 0, "rows": 10}, "b" * 8: {"start": 10, "rows": 10}}
    append(
        journal,
        catalog.REWRITTEN,
        rewrite="r1",
        reason="compaction",
        file="/ab",
        file_sha256="of-ab",
        replaces=[],
        shards=layout,
        gone=[],
    )
    a, b, c = catalog.published(journal, "sales")
    assert [(shard.path, shard.start, shard.file_sha256) for shard in (a, b, c)] == [
        ("/ab", 0, "of-ab"), ("/ab", 10, "of-ab"), ("/c.parquet", 0, "of-c"),
    ]  # fmt: skip
    assert [shard.identity for shard in (a, b, c)] == ["a" * 8, "b" * 8, "c" * 8]

    thinner = {"b" * 8: {"without": [3], "content": "thin", "rows": 9, "time_min": 1, "time_max": 9, "tags": {"spans": {}}}}
    append(journal, catalog.REQUESTED, erasure="erasure-1", rows=1, shards=thinner)
    b = catalog.published(journal, "sales")[1]
    assert (b.path, b.without, b.rows, b.identity, b.sha256, b.time_min) == ("/ab", (3,), 9, "thin", "b" * 8, 1)
    assert b.tags == {"source": "csv", "spans": {}}

    layout = {"a" * 8: {"start": 0, "rows": 10}}
    append(
        journal,
        catalog.REWRITTEN,
        rewrite="r2",
        reason="erasure",
        file="/a2",
        file_sha256="x",
        replaces=[],
        shards=layout,
        gone=["b" * 8],
    )
    assert [shard.shard for shard in catalog.published(journal, "sales")] == ["a", "c"]
    assert [shard.shard for shard in catalog.arrived(journal, "sales")] == ["a", "b", "c"]
    assert "b" * 8 in catalog.seen(journal, "sales")
    assert [shard.shard for shard in catalog.resolve(journal, "sales", ["b" * 8, "c" * 8])] == ["c"]


def test_rows_aside_and_erasures_are_told_without_values(journal: Journal) -> None:
    reasons = [{"check": "Within", "found": "2 prices below 0", "rows": 2, "examples": []}]
    publish(journal, "a", aside={"rows": 2, "reasons": reasons, "file": "/q/a.rows.parquet"})
    publish(journal, "b", aside={"rows": 0, "reasons": []})
    (aside,) = catalog.aside(journal, "sales")
    assert (aside["shard"], aside["rows"], aside["reasons"]) == ("a", 2, ["Within: 2 prices below 0"])
    for name in ("erasure-1", "erasure-2", "erasure-3"):
        append(journal, catalog.REQUESTED, erasure=name, rows=1, shards={})
    append(journal, catalog.VERIFIED, erasures=["erasure-1"], versions=["v1"])
    append(journal, catalog.INCOMPLETE, erasures=["erasure-2"], versions=[], left=[["/f", "bytes"]])
    states = [(item["erasure"], item["state"], item["versions"]) for item in catalog.erasures(journal, "sales")]
    assert states == [
        ("erasure-1", "verified", ["v1"]),
        ("erasure-2", "incomplete, 1 places", []),
        ("erasure-3", "requested", []),
    ]


def test_a_refused_shard_leaves_the_quarantine_once_it_is_published(journal: Journal) -> None:
    append(journal, "ShardQuarantined", sha256="a" * 8, shard="a", rows=1, file="", rules="", reasons=[])
    append(journal, "ShardQuarantined", sha256="b" * 8, shard="b", rows=1, file="", rules="", reasons=[])
    publish(journal, "a")
    assert [item["shard"] for item in catalog.quarantined(journal, "sales")] == ["b"]
