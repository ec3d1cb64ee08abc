"""A declaration learned from a first file is Python that runs, holds for that file, and stops the next one that is otherwise."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import ct
from ct.clock import TurnableClock
from ct.data.inference import declaration, infer
from ct.errors import InvalidShard

from .conftest import DAY, TIME, Place, sales

NOW = TurnableClock(datetime(1970, 3, 1, tzinfo=UTC))


def declared(text: str, name: str = "sales") -> ct.Table:
    """The table that the text declares."""
    scope: dict[str, object] = {}
    exec(compile(text, "declaration", "exec"), scope)
    found = scope[name]
    assert isinstance(found, ct.Table)
    return found


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_the_text_declares_a_table_that_takes_the_file(place: Place, suffix: str) -> None:
    path = place.file(sales(1, 3000), "sales-1.parquet")
    if suffix == "csv":
        path = place.root / "sales-1.csv"
        pa_csv.write_csv(sales(1, 3000), path)
    text = infer(path, "sales", clock=NOW)
    assert infer(path, "sales", clock=NOW) == text
    table = declared(text)
    assert (table.keys, table.time) == (("id",), "at")
    outcome = place.ingest(path, table, clock=NOW)
    assert (outcome.kind, outcome.rows, outcome.warnings) == ("published", 3000, ())


CHANGES: dict[str, tuple[Callable[[pa.Table], pa.Table], str]] = {
    "unit": (lambda rows: rows.set_column(4, "price", pc.multiply(rows["price"], 1000.0)), "price in ["),
    "missing": (lambda rows: rows.set_column(3, "city", pa.nulls(rows.num_rows, pa.string())), "not missing"),
    "set": (lambda rows: rows.set_column(2, "shop", pa.array(["z"] * rows.num_rows)), "shop one of ['a', 'b', 'c', 'd']"),
    "key": (lambda rows: rows.set_column(0, "id", pa.array(["1"] * rows.num_rows)), "id unique"),
    "few": (lambda rows: rows.slice(0, 9), "1,000 to 9,000 rows"),
    "old": (lambda rows: rows.set_column(1, "at", pa.array([-4000 * DAY] * rows.num_rows).cast(TIME)), "before arrival"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_next_file_is_held_to_it(place: Place, change: str) -> None:
    table = declared(declaration("sales", sales(1, 3000), 60 * DAY))
    spoil, says = CHANGES[change]
    place.ingest(place.file(sales(1, 3000), "sales-1.parquet"), table, clock=NOW)
    outcome = place.ingest(place.file(spoil(sales(2, 3000)), "sales-2.parquet"), table, clock=NOW)
    found = [*outcome.reasons, *outcome.warnings]
    assert found
    assert says in " ".join(reason.check for reason in found)


def test_a_key_of_several_columns() -> None:
    rows = pa.table(
        {
            "place": pa.array(["a", "b"] * 50),
            "at": pa.array(np.repeat(np.arange(50), 2) * DAY).cast(TIME),
            "temp": pa.array(np.arange(100) % 9 - 4.0),
        }
    )
    table = declared(declaration("weather-hourly", rows, 60 * DAY), "weather_hourly")
    assert (table.name, table.keys, table.time) == ("weather-hourly", ("place", "at"), "at")


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (sales(1).drop_columns(["at"]), "has a time in each row"),
        (sales(1).slice(0, 0), "no rows"),
        (pa.concat_tables([sales(1), sales(1)]), "tell its rows apart"),
    ],
)
def test_what_cannot_be_a_table_is_said(rows: pa.Table, says: str) -> None:
    with pytest.raises(InvalidShard, match=says):
        declaration("sales", rows, 0)


def test_a_broken_file_teaches_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"no Parquet")
    with pytest.raises(InvalidShard, match="corrupt"):
        infer(tmp_path / "a.parquet", "sales")


NUMBERS = st.lists(st.none() | st.floats(allow_nan=False) | st.integers(-(2**40), 2**40).map(float), min_size=1, max_size=30)


@example([sys.float_info.max, -sys.float_info.max], [""], 0)
@example([5e-324, None, np.inf], ["x"], 0)
@example([None] * 20, ["\U0001e2af"], 0)
@given(NUMBERS, st.lists(st.text(max_size=8), min_size=1, max_size=5), st.integers(-(10**17), 10**17))
def test_whatever_a_first_file_holds_its_declaration_holds_for_it(
    numbers: list[float | None], texts: list[str], start: int
) -> None:
    size = len(numbers)
    rows = pa.table(
        {
            "id": pa.array(np.arange(size)),
            "when": pa.array(np.arange(size) * 1000 + start).cast(TIME),
            "n": pa.array(numbers, pa.float64()),
            "'odd\n\"name": pa.array([texts[at % len(texts)] for at in range(size)]),
        }
    )
    table = declared(declaration("t", rows, start), "t")
    from ct.data.checks import run
    from ct.data.columns import Rows
    from ct.data.past import Before

    found, _ = run([check for check in table.checks if "n in" not in check.explain()], Rows(rows), Before(start))
    assert not found.refused
    (within,) = [check for check in table.checks if "n in" in check.explain()] or [None]
    if within is not None:
        broken = within.violations(Rows(rows), Before())
        assert [bool(b) for b in broken] == [value is not None and not np.isfinite(value) for value in numbers]
