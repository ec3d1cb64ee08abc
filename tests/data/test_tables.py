"""The warehouse: a publication is whole or not there, happens once, and never drops another's rows."""

from __future__ import annotations

import sys

import pyarrow as pa
import pytest

from ct.data.tables import Warehouse
from ct.errors import Conflict, NotFound

ROWS = pa.table({"a": [1.0, 2.0], "s": ["x", "y"]})


def branches(warehouse: Warehouse, name: str) -> set[str]:
    return set(warehouse._table(name).refs())


@pytest.fixture
def warehouse(place) -> Warehouse:
    place.warehouse.create("t", ROWS.schema)
    return place.warehouse


def test_an_attempt_is_published_once(warehouse: Warehouse) -> None:
    file = warehouse.stage("t", ROWS, "one")
    assert warehouse.scan("t").num_rows == 0
    first = warehouse.publish("t", file, attempt="one", notes={"ct.shard": "s1"})
    assert warehouse.publish("t", file, attempt="one") == first == warehouse.snapshot("t")
    assert warehouse.scan("t").num_rows == 2
    (attempt,) = warehouse.attempts("t")
    assert (attempt.attempt, attempt.snapshot, attempt.notes["ct.shard"]) == ("one", first, "s1")


def test_a_failed_audit_leaves_nothing(warehouse: Warehouse) -> None:
    before = warehouse.snapshot("t")

    def refuse(rows: pa.Table) -> None:
        assert rows.num_rows == 2
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        warehouse.publish("t", warehouse.stage("t", ROWS, "one"), attempt="one", audit=refuse)
    assert warehouse.snapshot("t") == before
    assert warehouse.scan("t").num_rows == 0
    assert branches(warehouse, "t") == {"main"}


def test_a_publisher_that_is_overtaken_drops_nobodys_rows(place, warehouse: Warehouse) -> None:
    other = Warehouse(place.settings)
    overtaken = []

    def overtake(_: pa.Table) -> None:
        if not overtaken:
            overtaken.append(True)
            other.publish("t", other.stage("t", ROWS, "other"), attempt="other")

    warehouse.publish("t", warehouse.stage("t", ROWS, "mine"), attempt="mine", audit=overtake)
    assert [attempt.attempt for attempt in warehouse.attempts("t")] == ["other", "mine"]
    assert warehouse.scan("t").num_rows == 4


def test_two_publishers_of_one_attempt_publish_it_once(place, warehouse: Warehouse) -> None:
    other = Warehouse(place.settings)
    file = warehouse.stage("t", ROWS, "same")
    met = []

    def meet(_: pa.Table) -> None:
        if not met:
            met.append(other.publish("t", file, attempt="same"))

    assert warehouse.publish("t", file, attempt="same", audit=meet) == met[0]
    assert warehouse.scan("t").num_rows == 2


def test_append_creates_the_table_and_is_repeatable(place) -> None:
    first = place.warehouse.append("log", ROWS, attempt="a")
    assert place.warehouse.append("log", ROWS, attempt="a") == first
    second = place.warehouse.append("log", ROWS, attempt="b")
    assert place.warehouse.scan("log", columns=("a",)).column_names == ["a"]
    assert place.warehouse.scan("log", snapshot=first).num_rows == 2
    assert place.warehouse.scan("log", snapshot=second).num_rows == 4


def test_another_schema_is_a_conflict(warehouse: Warehouse) -> None:
    warehouse.create("t", ROWS.schema)
    with pytest.raises(Conflict):
        warehouse.create("t", pa.schema({"a": pa.string()}))


def test_an_unknown_table_is_not_found(place) -> None:
    assert place.warehouse.snapshot("nothing") is None
    assert place.warehouse.attempts("nothing") == ()
    with pytest.raises(NotFound):
        place.warehouse.scan("nothing")


def test_importing_the_floor_loads_nothing_heavy() -> None:
    import subprocess

    code = "import sys, ct.data.ingest, ct.data.catalog; print([m for m in ('ray','torch','pyiceberg') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_a_table_is_read_by_ray_one_task_a_file(place, warehouse: Warehouse, ray_local: None) -> None:
    for attempt in ("one", "two", "three"):
        last = warehouse.publish("t", warehouse.stage("t", ROWS, attempt), attempt=attempt)
    dataset = warehouse.to_ray("t", columns=("a",), snapshot=last)
    assert sorted(row["a"] for row in dataset.take_all()) == [1.0, 1.0, 1.0, 2.0, 2.0, 2.0]
