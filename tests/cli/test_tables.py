"""`ct tables`, `ct maintain` and `ct erase` as a person and a script meet them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from ct.cli import app
from tests.loop import project


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with two published shards and a refused file."""
    root = project.write(tmp_path_factory.mktemp("tables") / "shop", 8000)
    for number in (0, 1):
        project.land(root, number)
    bad = root / "bad.csv"
    bad.write_text("order_id,ordered_at\nx,yesterday\n")
    landed = [str(root / "landing" / "orders" / f"orders-{number}.parquet") for number in (0, 1)]
    assert run(root, "ingest", "orders", *landed, str(bad)).exit_code == 2
    return root


def run(root: Path, *words: str) -> Result:
    return CliRunner().invoke(app, [*words, "--root", str(root)])


def read(root: Path, *words: str):
    done = run(root, *words, "--json")
    assert done.exit_code in (0, 2), done.output
    return json.loads(done.stdout)


def test_all_tables_in_short(root: Path) -> None:
    (table,) = read(root, "tables")
    assert (table["table"], table["rows"], table["shards"], table["owner"], table["quarantined"]) == (
        "orders",
        6000,
        2,
        "shop",
        1,
    )
    assert table["newest"].startswith("2024-01-20")
    assert isinstance(table["snapshot"], int)
    shown = run(root, "tables").stdout
    assert "orders" in shown
    assert "6,000" in shown
    assert "1 shards" in shown


def test_one_table_with_all_that_is_known(root: Path) -> None:
    table = read(root, "tables", "orders")
    assert (table["key"], table["time"]) == (["order_id"], "ordered_at")
    columns = {column["column"]: column for column in table["columns"]}
    assert columns["order_id"]["role"] == "key"
    assert columns["amount"]["kind"] == "number"
    assert columns["amount"]["missing"] == 0
    assert columns["amount"]["distinct"] > 1000
    assert [check["check"] for check in table["checks"]] == ["amount not missing", "order_id unique"]
    assert table["history"][0]["what"].startswith("created with 6 columns: order_id")
    readers = {reader["makes"][0]: reader for reader in table["read_by"]}
    assert set(readers) == {"amount", "country", "days_late_mean_by_country_7d"}
    assert 'column="days_late"' in readers["days_late_mean_by_country_7d"]["text"]
    assert len(readers["amount"]["hash"]) == 64
    assert [snapshot["rows"] for snapshot in table["snapshots"]] == [0, 3000, 6000]
    assert table["snapshots"][-1]["names"] == ["main"]
    assert [shard["tags"]["source"] for shard in table["published"]] == ["parquet", "parquet"]
    assert table["quarantine"][0]["shard"] == "bad"
    assert "schema" in table["quarantine"][0]["reasons"][0] or "readable" in table["quarantine"][0]["reasons"][0]
    shown = run(root, "tables", "orders").stdout
    for words in ("created with 6 columns", "amount not missing", "Window(", "orders-1", "refused"):
        assert words in shown


def test_an_unknown_table_is_named_with_the_known_ones(root: Path) -> None:
    done = run(root, "tables", "order")
    assert done.exit_code == 1
    assert "orders" in done.output


def test_tagging_a_snapshot(root: Path) -> None:
    assert run(root, "tables", "--tag", "x").exit_code == 1
    assert "would tag" in run(root, "tables", "orders", "--tag", "before-sale", "--dry-run").stdout
    assert read(root, "tables", "orders")["snapshots"][-1]["names"] == ["main"]
    assert read(root, "tables", "orders", "--tag", "before-sale")["tag"] == "before-sale"
    assert read(root, "tables", "orders")["snapshots"][-1]["names"] == ["before-sale", "main"]


def test_maintenance_says_what_it_would_do_and_does_it_when_asked(root: Path) -> None:
    said = run(root, "maintain", "--least", "2")
    assert "2 small files into 1" in said.stdout
    assert "nothing was changed" in said.stdout
    assert [merge["files"] for merge in read(root, "maintain", "orders", "--least", "2")["tables"][0]["merges"]] == [2]
    done = read(root, "maintain", "--least", "2", "--apply")["done"]["orders"]
    assert (done["merged_files"], done["left_for_next_time"]) == (2, [])
    assert "nothing to do" in run(root, "maintain", "--least", "2").stdout
    assert run(root, "maintain", "--age", "soon").exit_code == 1
    assert run(root, "maintain", "--dry-run").exit_code == 0
    assert run(root, "maintain", "--dry-run", "--apply").exit_code == 2
    assert read(root, "ingest", "orders", "new.csv", "--dry-run") == ["new.csv"]


def test_erasing_says_what_would_go_then_does_it_and_a_trace_is_a_failure(root: Path) -> None:
    key = "o-1-1234"
    said = run(root, "erase", "orders", key)
    assert said.exit_code == 0
    assert "1 in 1 shard(s): orders-1" in said.stdout
    assert read(root, "tables", "orders")["rows"] == 6000
    done = read(root, "erase", "orders", key, "--apply")
    assert [Path(item["file"]).name for item in done["left"]] == ["orders-1.parquet"]
    assert run(root, "erase", "orders", key, "--apply").exit_code == 2
    last = run(root, "erase", "orders", key, "--apply", "--landing")
    assert last.exit_code == 0, last.output
    assert "hold no trace" in last.stdout
    table = read(root, "tables", "orders")
    assert table["rows"] == 5999
    assert [(item["rows"], item["state"]) for item in table["erasures"]] == [(1, "verified")]
    assert run(root, "erase", "orders", key, "--dry-run", "--apply").exit_code == 2
    assert run(root, "erase", "orders", "a", "b").exit_code == 1
