"""An ingest that is killed at any step, and those that run side by side: the next one ends where an undisturbed one would have."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from ct.data import catalog
from ct.data.rules.within import Within
from ct.store.journal import Journal

from .conftest import MILD, Place, sales

SCRIPT = Path(__file__).with_name("killed.py")


def kill_everywhere(file: Path, folder: Path, *first: Path) -> int:
    """Projects FOLDER/1 … FOLDER/n whose ingest was killed at its first … last step; returns n."""
    command = [sys.executable, "-W", "ignore", str(SCRIPT), str(file), str(folder), *map(str, first)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def state(place: Place) -> object:
    """What the stores say, without times and ids that differ from run to run."""
    shards = [(shard.shard, shard.sha256, shard.rows) for shard in catalog.published(place.journal, "sales")]
    held = [(item["shard"], item["sha256"], item["reasons"]) for item in catalog.quarantined(place.journal, "sales")]
    rows = place.warehouse.scan("sales").num_rows if place.warehouse.exists("sales") else 0
    refs = set(place.warehouse._table("sales").refs()) if rows else set()
    return place.events(), shards, held, rows, refs, catalog.contract(place.journal, "sales")


@pytest.mark.parametrize("good", [True, False])
def test_killed_at_any_step_and_started_again(make_place: Callable[[str], Place], tmp_path: Path, good: bool) -> None:
    rows = sales(1)
    if not good:
        rows = rows.set_column(4, "price", pc.multiply(rows["price"], 1000.0))
    file = tmp_path / "sales-1.parquet"
    pq.write_table(rows, file)
    undisturbed = make_place("undisturbed")
    undisturbed.ingest(file)
    steps = kill_everywhere(file, tmp_path)
    assert steps >= (10 if good else 3)
    for step in range(1, steps + 1):
        place = make_place(str(step))
        assert place.ingest(file).kind in (("published", "duplicate") if good else ("quarantined",)), step
        assert state(place) == state(undisturbed), step
        place.journal.verify()


def test_killed_while_a_column_is_added_and_rows_are_set_aside(make_place: Callable[[str], Place], tmp_path: Path) -> None:
    first, file = tmp_path / "sales-1.parquet", tmp_path / "sales-2.parquet"
    pq.write_table(sales(1), first)
    pq.write_table(sales(2).append_column("colour", pa.array(["red"] * 300)), file)
    undisturbed = make_place("undisturbed")
    undisturbed.ingest(first, MILD)
    outcome = undisturbed.ingest(file, MILD)
    assert (outcome.rows, outcome.aside, len(outcome.warnings)) == (225, 75, 2)
    steps = kill_everywhere(file, tmp_path, first)
    assert steps >= 12
    for step in range(1, steps + 1):
        place = make_place(str(step))
        assert place.ingest(file, MILD).kind in ("published", "duplicate"), step
        assert state(place) == state(undisturbed), step
        *_, event = place.journal.read("table/sales", types=["ShardPublished"])
        assert pq.read_table(event.data["aside"]["file"]).num_rows == 75
        place.journal.verify()


def test_what_a_killed_ingest_published_is_entered_by_the_next_one(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", killed)
        with pytest.raises(KeyboardInterrupt):
            place.ingest(place.file(sales(1), "sales-1.parquet"))
    assert place.events() == []
    other = sales(2).drop_columns(["count"])  # it would have set another contract
    assert place.ingest(place.file(other, "sales-2.parquet")).kind == "quarantined"
    assert place.ingest(place.file(sales(3), "sales-3.parquet")).kind == "published"
    assert [shard.shard for shard in catalog.published(place.journal, "sales")] == ["sales-1", "sales-3"]
    assert place.warehouse.scan("sales").num_rows == 600


def test_what_a_killed_ingest_published_is_not_refused_by_later_rules(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    file = place.file(sales(1), "sales-1.parquet")
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            place.ingest(file)
    stricter = replace(MILD, checks=[Within("price", -2, -1)])
    assert place.ingest(file, stricter).kind == "duplicate"
    assert catalog.quarantined(place.journal, "sales") == ()
    assert [shard.shard for shard in catalog.published(place.journal, "sales")] == ["sales-1"]


def test_ingests_side_by_side(place: Place) -> None:
    files = [place.file(sales(month), f"sales-{month}.parquet") for month in range(1, 7)]
    code = "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); from conftest import Place\n"
    code += "place = Place.at(Path(sys.argv[2]))\nfor name in sys.argv[3:]: print(place.ingest(Path(name)).kind)"
    fixed = [sys.executable, "-c", code, str(SCRIPT.parent), str(place.root)]
    # Two files a process, and one that all three have.
    shares = [[*files[2 * k : 2 * k + 2], files[0]] for k in range(3)]
    processes = [subprocess.Popen([*fixed, *map(str, share)], stdout=subprocess.PIPE, text=True) for share in shares]
    said = [process.communicate()[0].split() for process in processes]
    kinds = sorted(kind for lines in said for kind in lines)
    assert kinds == ["duplicate"] * 3 + ["published"] * 6
    assert place.warehouse.scan("sales").num_rows == 1800
    assert place.events().count("TableCreated") == 1
    ids = place.warehouse.scan("sales", columns=("id",))["id"]
    assert len(pc.unique(pa.chunked_array(ids.chunks))) == 1800


def test_another_machine_that_is_quicker_is_not_overwritten(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock holds on one machine only; between machines the journal's versions decide."""
    elsewhere = Place(
        place.root, place.settings.model_copy(), Journal(place.settings.database), place.warehouse, place.artifacts
    )
    first, second = place.file(sales(1), "sales-1.parquet"), place.file(sales(2), "sales-2.parquet")
    plain = place.warehouse.stage
    raced: list[str] = []

    def race(*args: object, **kwargs: object) -> Path:
        if not raced:
            raced.append("once")
            object.__setattr__(elsewhere, "settings", place.settings.model_copy(update={"state": Path("elsewhere")}))
            raced.append(elsewhere.ingest(second).kind)
        return plain(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(place.warehouse, "stage", race)
    place.ingest(first)
    assert raced == ["once", "published"]
    assert sorted(shard.shard for shard in catalog.published(place.journal, "sales")) == ["sales-1", "sales-2"]
    assert place.events().count("TableCreated") == 1
    assert place.warehouse.scan("sales").num_rows == 600
    elsewhere.journal.close()
