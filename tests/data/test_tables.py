"""The warehouse: a publication is whole or not there, happens once, and never drops another's rows."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest

from ct.data.tables import ShardFile, Warehouse, verified
from ct.errors import Conflict, Corrupt, NotFound
from ct.store import files

ROWS = pa.table({"a": [1.0, 2.0], "s": ["x", "y"]})


def branches(warehouse: Warehouse, name: str) -> set[str]:
    return set(warehouse._table(name).refs())


@pytest.fixture
def place(anywhere):
    return anywhere


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


def test_four_processes_publish_side_by_side(place) -> None:
    """None of their rows is lost, none is there twice; not even the table, the catalogue's own tables or one shard are theirs alone."""
    script = Path(__file__).with_name("publisher.py")
    environ = os.environ | {"CT_DATABASE_URL": place.settings.database_url, "CT_STORAGE": place.settings.storage}
    command = [sys.executable, "-W", "ignore", str(script), str(place.root)]
    processes = [subprocess.Popen([*command, f"p{at}", "2"], env=environ) for at in range(4)]
    while len(list(place.root.glob("*.ready"))) < 4:
        assert all(process.poll() is None for process in processes)
        time.sleep(0.01)
    (place.root / "go").touch()
    assert [process.wait(120) for process in processes] == [0, 0, 0, 0]
    wanted = sorted(
        f"{name}-{i}" for name in (*(f"p{at}-{n}" for at in range(4) for n in range(2)), "shared") for i in range(10)
    )
    assert sorted(place.warehouse.scan("t", columns=("id",))["id"].to_pylist()) == wanted
    assert len(place.warehouse.attempts("t")) == 9
    assert branches(place.warehouse, "t") == {"main"}


def test_one_who_has_decided_upon_an_older_snapshot_is_told(warehouse: Warehouse) -> None:
    base = warehouse.snapshot("t")
    warehouse.publish("t", warehouse.stage("t", ROWS, "one"), attempt="one", base=base)
    with pytest.raises(Conflict, match="is at snapshot"):
        warehouse.publish("t", warehouse.stage("t", ROWS, "two"), attempt="two", base=base)
    assert warehouse.publish("t", warehouse.stage("t", ROWS, "one"), attempt="one", base=base) == warehouse.snapshot("t")
    assert warehouse.scan("t").num_rows == 2
    assert branches(warehouse, "t") == {"main"}


def test_the_same_rows_are_staged_at_the_same_place(warehouse: Warehouse) -> None:
    first, again = warehouse.stage("t", ROWS, "one"), warehouse.stage("t", ROWS, "one")
    assert first == again
    assert warehouse.stage("t", ROWS.slice(1), "one").address != first.address
    assert files.digest(first.address) == first.sha256
    warehouse.publish("t", first, attempt="one")
    (attempt,) = warehouse.attempts("t")
    assert (attempt.file, attempt.file_sha256) == (first.address, first.sha256)


def test_a_changed_byte_of_a_published_file_is_found(warehouse: Warehouse) -> None:
    staged = warehouse.stage("t", ROWS, "one")
    snapshot = warehouse.publish("t", staged, attempt="one")
    shard = ShardFile("t", "s", "0" * 64, staged.address, 2, snapshot, 0, 1, file_sha256=staged.sha256)
    assert verified(shard) is shard
    data = bytearray(files.get(staged.address))
    data[len(data) // 2] ^= 1
    files.put(staged.address, bytes(data))
    with pytest.raises(Corrupt, match="shard 's' of table 't' has the hash"):
        verified(shard)
    files.delete(staged.address)
    with pytest.raises(NotFound):
        verified(shard)


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
    code = "import sys, ct.data.ingest, ct.data.catalog; print([m for m in ('ray','torch','pyiceberg') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


_READ = """
import sys, tempfile, ray
from ct.data.tables import Warehouse
from ct.settings import load
ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100_000_000, log_to_driver=False, _temp_dir=tempfile.mkdtemp(dir="/tmp"))
print(sorted(row["a"] for row in Warehouse(load()).to_ray("t", columns=("a",), snapshot=int(sys.argv[1])).take_all()))
"""


def test_a_table_is_read_by_ray_one_task_a_file(place, warehouse: Warehouse) -> None:
    """In a process of its own: Ray's workers have the object store's variables only if its head had them."""
    for attempt in ("one", "two", "three"):
        last = warehouse.publish("t", warehouse.stage("t", ROWS, attempt), attempt=attempt)
    found = place.settings
    where = {"CT_ROOT": str(found.root), "CT_STORAGE": found.storage, "CT_DATABASE_URL": found.database_url}
    done = subprocess.run(
        [sys.executable, "-c", _READ, str(last)], env={**os.environ, **where}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "[1.0, 1.0, 1.0, 2.0, 2.0, 2.0]"
