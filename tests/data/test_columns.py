"""Columns: Arrow and JSON rows become the same arrays, and wrong rows are named."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ct.data.columns import NO_TIME, Rows, from_rows, kinds_of, to_columns
from ct.errors import InvalidRequest, InvalidShard

KINDS = {"n": "number", "s": "text", "t": "time"}
SCHEMA = pa.schema({"n": pa.float64(), "s": pa.string(), "t": pa.timestamp("us", tz="UTC")})
ROW = {"n": 1.5, "s": "x", "t": "2013-04-01T10:00:00Z"}
MOMENTS = st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "n": st.none() | st.floats(allow_nan=False, allow_infinity=False),
            "s": st.none() | st.text(max_size=5),
            "t": st.none() | MOMENTS,
        }
    ),
    max_size=8,
)


@given(ROWS)
def test_json_rows_and_arrow_rows_give_the_same_columns(rows: list[dict[str, object]]) -> None:
    arrow = to_columns(pa.Table.from_pylist(rows, schema=SCHEMA))
    sent = [{**row, "t": row["t"].isoformat() if isinstance(row["t"], datetime) else None} for row in rows]
    asked = from_rows(json.loads(json.dumps(sent)), KINDS)
    for name in KINDS:
        assert arrow[name].dtype == asked[name].dtype
        np.testing.assert_array_equal(arrow[name], asked[name])


def test_missing_values_have_one_form() -> None:
    columns = to_columns(pa.Table.from_pylist([{"n": None, "s": None, "t": None}], schema=SCHEMA))
    assert np.isnan(columns["n"][0])
    assert columns["s"][0] is None
    assert columns["t"][0] == NO_TIME


def test_integers_and_truth_values_are_numbers() -> None:
    columns = to_columns(pa.table({"i": [1, None], "b": [True, None]}))
    np.testing.assert_array_equal(columns["i"], [1.0, np.nan])
    np.testing.assert_array_equal(columns["b"], [1.0, np.nan])


def test_kinds_of_a_schema() -> None:
    assert kinds_of(SCHEMA) == KINDS
    with pytest.raises(InvalidShard):
        kinds_of(pa.schema({"l": pa.list_(pa.int64())}))


@pytest.mark.parametrize(
    ("change", "field", "says"),
    [
        ({"n": "1"}, "0.n", "a number"),
        ({"n": True}, "0.n", "a number"),
        ({"n": float("nan")}, "0.n", "finite"),
        ({"n": float("inf")}, "0.n", "finite"),
        ({"s": 5}, "0.s", "a text"),
        ({"t": "2013-04-01T10:00:00"}, "0.t", "zone"),
        ({"t": "tomorrow"}, "0.t", "zone"),
        ({"t": 3}, "0.t", "zone"),
        ({"extra": 1}, "0.extra", "unknown"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, object], field: str, says: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        from_rows([{**ROW, **change}], KINDS)
    assert caught.value.field == field
    assert says in str(caught.value)


def test_an_absent_field_is_named_unless_it_is_optional() -> None:
    row = {"n": 1.0, "s": "x"}
    with pytest.raises(InvalidRequest) as caught:
        from_rows([row], KINDS)
    assert caught.value.field == "0.t"
    assert from_rows([row], KINDS, optional=frozenset({"t"}))["t"][0] == NO_TIME


def test_a_row_must_be_an_object() -> None:
    with pytest.raises(InvalidRequest):
        from_rows([[1, 2]], KINDS)  # type: ignore[list-item]


def test_whole_numbers_that_float64_cannot_hold_are_refused_by_name():
    table = pa.table({"id": pa.array([1, 2**53 + 1])})
    for read in (to_columns, lambda table: Rows(table)["id"]):
        with pytest.raises(InvalidShard, match=r"'id'.*up to 2\^53.*as text"):
            read(table)
