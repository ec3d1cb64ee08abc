"""Schema drift through ingest's front door: what each kind of difference is called, and what each policy makes of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ct.data import catalog, shards
from ct.data.columns import to_columns
from ct.data.contract import conform
from ct.data.ingest import Outcome
from ct.data.past import Before
from ct.errors import InvalidPipeline
from ct.pipeline import SchemaPolicy, Table

from .conftest import SALES, Place, sales

Change = Callable[[pa.Table], pa.Table]
PLAIN = replace(SALES, checks=())


def put(rows: pa.Table, name: str, values: Any) -> pa.Table:
    return rows.set_column(rows.column_names.index(name), name, values)


def second(place: Place, change: Change, first: Change = lambda rows: rows, table: Table = PLAIN, **policy: Any) -> Outcome:
    """The outcome of a second shard that is changed, under a policy."""
    table = replace(table, policy=SchemaPolicy(**policy))
    outcome = place.ingest(place.file(first(sales(1)), "sales-1.parquet"), table)
    assert outcome.kind == "published", outcome.reasons
    return place.ingest(place.file(change(sales(2)), "sales-2.parquet"), table)


def said(outcome: Outcome) -> str:
    return " ".join(reason.found for reason in (*outcome.reasons, *outcome.warnings))


def drift(place: Place) -> list[list[str]]:
    """Kind, column and action of what the journal says of the newest shard's differences."""
    *_, event = place.journal.read("table/sales", types=["ShardPublished"])
    return [item[:3] for item in event.data["drift"]]


def whole_prices(rows: pa.Table) -> pa.Table:
    return put(rows, "price", rows["price"].cast(pa.int32()))


def fractional_counts(rows: pa.Table) -> pa.Table:
    return put(rows, "count", rows["count"].cast(pa.float64()))


def more(rows: pa.Table) -> pa.Table:
    return rows.append_column("colour", pa.array(["red"] * rows.num_rows))


def fewer(rows: pa.Table) -> pa.Table:
    return rows.drop_columns(["count"])


def renamed(rows: pa.Table) -> pa.Table:
    return rows.rename_columns([name if name != "price" else "unit_price" for name in rows.column_names])


def no_cities(rows: pa.Table) -> pa.Table:
    return put(rows, "city", pc.if_else(pc.equal(rows["city"], "Rome"), pa.scalar(None, pa.string()), rows["city"]))


def new_city(rows: pa.Table) -> pa.Table:
    return put(rows, "city", pc.if_else(pc.equal(rows["city"], "Rome"), "Bonn", rows["city"]))


CASES: list[tuple[str, Change, dict[str, Any], str, list[str] | None]] = [
    ("added", more, {}, "unknown column 'colour'", None),
    ("added", more, {"added": "ignore"}, "", ["added", "colour", "ignore"]),
    ("added", more, {"added": "accept"}, "", ["added", "colour", "accept"]),
    ("missing", fewer, {}, "column 'count' is missing", None),
    ("missing", fewer, {"missing": "null"}, "", ["missing", "count", "null"]),
    ("widened", whole_prices, {}, "", ["widened", "price", "cast"]),
    ("widened", whole_prices, {"widened": "reject"}, "column 'price' has type int64; expected type double", None),
    ("narrowed", fractional_counts, {}, "column 'count' has type double; expected type int64", None),
    ("narrowed", fractional_counts, {"narrowed": "cast"}, "", ["narrowed", "count", "cast"]),
    ("nullability", no_cities, {}, "", ["nullability", "city", "accept"]),
    ("nullability", no_cities, {"nullability": "warn"}, "column 'city' lacks 150 of 300", ["nullability", "city", "warn"]),
    ("nullability", no_cities, {"nullability": "reject"}, "never lacked one", None),
    ("category", new_city, {"category": "warn"}, "column 'city' has 1 new value(s): 'Bonn'", ["category", "city", "warn"]),
    ("category", new_city, {"category": "reject"}, "'Bonn'", None),
]


@pytest.mark.parametrize(("kind", "change", "policy", "says", "noted"), CASES)
def test_each_kind_of_drift_under_each_policy(
    place: Place, kind: str, change: Change, policy: dict[str, Any], says: str, noted: list[str] | None
) -> None:
    outcome = second(place, change, **policy)
    assert outcome.kind == ("published" if noted else "quarantined"), said(outcome)
    assert says in said(outcome)
    assert bool(outcome.warnings) == (policy.get(kind) == "warn")
    if noted:
        assert noted in drift(place)


def test_a_cast_that_would_change_a_value_is_not_made(place: Place) -> None:
    outcome = second(place, lambda rows: put(rows, "count", pc.add(rows["count"].cast(pa.float64()), 0.5)), narrowed="cast")
    assert "values that it can hold unchanged" in said(outcome)
    large = pa.array([2**53 + 1] * 300, pa.int64())
    outcome = place.ingest(place.file(put(sales(3), "price", large), "sales-3.parquet"), PLAIN)
    assert "'price' has whole numbers beyond 2^53" in said(outcome)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda rows: put(rows, "price", rows["price"].cast(pa.string())), "'price' has type string"),
        (lambda rows: put(rows, "count", pc.equal(rows["count"], 1)), "'count' has type bool"),
        (lambda rows: put(rows, "at", rows["at"].cast(pa.date32())), "'at' has type date32[day]"),
    ],
)
def test_another_type_is_refused_under_the_mildest_policy(place: Place, change: Change, says: str) -> None:
    mild = {"added": "accept", "missing": "null", "widened": "cast", "narrowed": "cast"}
    assert says in said(second(place, change, **mild))


@pytest.mark.parametrize("policy", [{}, {"added": "accept", "missing": "null"}])
def test_a_column_that_was_probably_renamed_is_asked_for(place: Place, policy: dict[str, Any]) -> None:
    outcome = second(place, renamed, **policy)
    assert outcome.kind == "quarantined"
    assert "'price' is missing and 'unit_price' is new, and they look alike" in said(outcome)


def test_a_column_is_told_by_what_it_holds_too(place: Place) -> None:
    def drawn(rows: pa.Table) -> pa.Table:
        return put(rows, "price", pa.array(np.random.default_rng(rows.num_rows).normal(50, 5, rows.num_rows)))

    def other_names(rows: pa.Table) -> pa.Table:
        return drawn(rows).rename_columns([{"city": "wo", "price": "zahl"}.get(name, name) for name in rows.column_names])

    found = said(second(place, other_names, first=drawn, added="accept", missing="null"))
    assert "'city' is missing and 'wo' is new" in found
    assert "'price' is missing and 'zahl' is new" in found
    other = put(other_names(sales(3)), "zahl", pa.array(np.arange(300) * 7.0))
    mild = replace(PLAIN, policy=SchemaPolicy(added="accept", missing="null"))
    again = place.ingest(place.file(other, "sales-3.parquet"), mild)
    assert "'price' is missing and 'zahl' is new" not in said(again)


def test_a_question_of_renaming_is_answered_in_the_policy(place: Place) -> None:
    assert second(place, renamed, renames={"unit_price": "price"}).kind == "published"
    rows = pa.concat_tables([shards.read(shard) for shard in catalog.published(place.journal, "sales")])
    assert rows["price"].null_count == 0
    apart = replace(PLAIN, policy=SchemaPolicy(added="accept", missing="null", renames={"unit_price": ""}))
    assert place.ingest(place.file(renamed(sales(3)), "sales-3.parquet"), apart).kind == "published"
    assert "unit_price" in catalog.kinds(place.journal, "sales")


def test_an_accepted_column_is_there_and_missing_in_older_shards(place: Place) -> None:
    second(place, more, added="accept")
    assert place.events() == ["TableCreated", "ShardPublished", "ContractChanged", "ShardPublished"]
    contract = catalog.contract(place.journal, "sales")
    assert contract is not None
    assert contract.field("colour").type == pa.string()
    found = place.warehouse.scan("sales", columns=("id", "colour"))
    assert (found.num_rows, found["colour"].null_count) == (600, 300)
    old, new = (shards.read(shard, ["id", "colour"]) for shard in catalog.published(place.journal, "sales"))
    assert (old["colour"].null_count, new["colour"].null_count) == (300, 0)
    mild = replace(PLAIN, policy=SchemaPolicy(added="accept", missing="null"))
    assert place.ingest(place.file(sales(3), "sales-3.parquet"), mild).kind == "published"
    assert place.ingest(place.file(more(sales(4)), "sales-4.parquet"), mild).kind == "published"
    assert place.warehouse.scan("sales").num_rows == 1200


def test_an_accepted_column_without_a_value_waits_until_it_has_one(place: Place) -> None:
    outcome = second(place, lambda rows: rows.append_column("colour", pa.nulls(rows.num_rows)), added="accept")
    assert outcome.kind == "published"
    assert "colour" not in catalog.kinds(place.journal, "sales")


def test_the_key_and_the_time_are_never_filled(place: Place) -> None:
    outcome = second(place, lambda rows: rows.drop_columns(["id"]), missing="null")
    assert "column 'id' is missing" in said(outcome)


def test_what_once_was_missing_may_be_missing(place: Place) -> None:
    assert second(place, no_cities, first=no_cities, nullability="reject").kind == "published"


def test_a_policy_is_part_of_the_declaration(place: Place) -> None:
    outcome = second(place, more)
    assert outcome.kind == "quarantined"
    mild = replace(PLAIN, policy=SchemaPolicy(added="ignore"))
    assert place.ingest(place.root / "sales-2.parquet", mild).kind == "published"
    with pytest.raises(InvalidPipeline):
        SchemaPolicy(added="perhaps")


KINDS = {"n": pa.float64(), "i": pa.int64(), "s": pa.string(), "b": pa.bool_()}
VALUES = {
    "n": st.none() | st.floats(allow_nan=False),
    "i": st.none() | st.integers(-(2**63), 2**63 - 1),
    "s": st.none() | st.text(max_size=3),
    "b": st.none() | st.booleans(),
}


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    """Some of the contract's columns, each of a type of its own choice."""
    size = draw(st.integers(1, 4))
    names = draw(st.lists(st.sampled_from([*KINDS, "x", "y"]), unique=True))
    made = {"k": pa.array([str(at) for at in range(size)]), "t": pa.array(np.arange(size)).cast(pa.timestamp("us", tz="UTC"))}
    for name in names:
        kind = draw(st.sampled_from([*KINDS]))
        made[name] = pa.array(draw(st.lists(VALUES[kind], min_size=size, max_size=size)), KINDS[kind])
    return pa.table(made)


@given(tables(), st.sampled_from(["reject", "ignore", "accept"]), st.sampled_from(["reject", "null"]), st.sampled_from(["reject", "cast"]))  # fmt: skip
def test_what_conforms_has_the_contracts_columns_and_no_changed_value(
    rows: pa.Table, added: str, missing: str, narrowed: str
) -> None:
    contract = pa.schema([("k", pa.string()), ("t", pa.timestamp("us", tz="UTC")), *KINDS.items()])
    table = Table("t", key="k", time="t", policy=SchemaPolicy(added=added, missing=missing, narrowed=narrowed))
    made = conform(rows, contract, table, Before())
    if made.refused:
        return
    assert made.schema.names[: len(contract)] == contract.names
    assert made.rows.schema.equals(made.schema)
    for name in set(rows.column_names) & set(made.rows.column_names):
        for had, has in zip(rows[name].to_pylist(), made.rows[name].to_pylist(), strict=True):
            assert had == has
    assert json.dumps([[item.kind, item.found] for item in made.differences])


def test_the_history_of_a_schema_is_in_the_journal(place: Place) -> None:
    second(place, more, added="accept")
    history = [event.data["schema"] for event in place.journal.read("table/sales", types=["TableCreated", "ContractChanged"])]
    assert [len(schema) for schema in history] == [6, 7]
    assert history[1][-1] == ["colour", "string"]
    assert to_columns(place.warehouse.scan("sales"))["price"].dtype == np.float64
