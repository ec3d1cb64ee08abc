"""What a user types or sends wrong: one clear sentence each, exit code 1 or 2, never a stack trace, nothing half-done."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ct import settings
from ct.data import catalog
from ct.serving import local
from ct.store.journal import Journal
from tests.loop import project


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return project.write(tmp_path / "shop", local.free_port())


def refused(folder: Path, *args: str, code: int = 1) -> str:
    done = project.ct(folder, *args, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == code, said
    assert "Traceback" not in said
    return said


def test_a_typo_in_the_pipeline_file_names_file_line_and_remedy(folder: Path) -> None:
    path = folder / "pipeline.py"
    path.write_text(path.read_text().replace("ct.numeric(", "ct.numerik("))
    said = refused(folder, "check")
    line = next(n for n, text in enumerate(path.read_text().splitlines(), 1) if "numerik" in text)
    assert f"pipeline.py:{line}" in said
    assert "numerik" in said


def test_every_fault_of_a_pipeline_is_named_at_once(folder: Path) -> None:
    path = folder / "pipeline.py"
    text = path.read_text().replace("batch=256", "batch=255").replace("ct.Canary(50, 100", "ct.Canary(100, 50")
    path.write_text(text.replace('known_at="delivered_at"),\n    ],', "),\n    ],"))
    said = refused(folder, "check")
    assert "batch is 255" in said
    assert "steps that grow" in said


def test_a_window_that_would_leak_the_label_is_refused(folder: Path) -> None:
    path = folder / "pipeline.py"
    path.write_text(path.read_text().replace('agg="mean", known_at="delivered_at"', 'agg="mean"'))
    assert "the truth is known only at 'delivered_at'" in refused(folder, "check")


def test_settings_with_a_typo_name_the_nearest_key(folder: Path) -> None:
    (folder / "ct.toml").write_text('pipelin = "pipeline.py"\n')
    assert "did you mean 'pipeline'" in refused(folder, "check")


def test_there_is_no_such_file_table_or_version(folder: Path) -> None:
    assert "nowhere.parquet is no file" in refused(folder, "ingest", "orders", "nowhere.parquet")
    assert "has no table 'order'" in refused(folder, "ingest", "order", str(project.shard_path(folder, 0)))
    assert "no shard of 'orders' is published" in refused(folder, "train")
    assert "no rollout in progress" in refused(folder, "rollout", "promote")
    assert "does not answer" in refused(folder, "predict", '{"order_id": "a"}')
    assert "neither JSON nor a file" in refused(folder, "predict", "nowhere.json")


def test_broken_shards_are_quarantined_and_the_rest_stays(folder: Path) -> None:
    good = project.shard_path(folder, 0)
    project.ct(folder, "ingest", "orders", str(good))
    rows = pq.read_table(project.shard_path(folder, 1))
    broken = {
        "unknown": rows.append_column("colour", pa.array(["red"] * len(rows))),
        "missing": rows.drop_columns(["amount"]),
        "retyped": rows.set_column(2, "amount", pa.array(["much"] * len(rows))),
    }
    for name, table in broken.items():
        pq.write_table(table, folder / f"{name}.parquet")
    (folder / "truncated.parquet").write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    (folder / "empty.parquet").write_bytes(b"")
    said = {
        name: refused(folder, "ingest", "orders", str(folder / f"{name}.parquet"), code=2)
        for name in (*broken, "truncated", "empty")
    }
    assert "colour" in said["unknown"]
    assert "'amount' is missing" in said["missing"]
    assert "string" in said["retyped"]
    assert "corrupt" in said["truncated"]
    assert "0 bytes" in said["empty"]
    again = json.loads(project.ct(folder, "ingest", "orders", str(good), "--json").stdout)
    assert again[0]["kind"] == "duplicate"
    journal = Journal(settings.load(folder).database)
    assert [shard.rows for shard in catalog.published(journal, "orders")] == [project.ROWS]
    assert len(catalog.quarantined(journal, "orders")) == 5
    status = json.loads(project.ct(folder, "status", "--verify", "--json").stdout)
    assert status["tables"][0]["rows"] == project.ROWS
    assert len(status["tables"][0]["quarantined"]) == 5


def test_dry_runs_change_nothing(folder: Path) -> None:
    project.ct(folder, "ingest", "orders", str(project.shard_path(folder, 0)))
    journal = Journal(settings.load(folder).database)
    before = journal.head()
    for args in (
        ("ingest", "orders", str(project.shard_path(folder, 1)), "--dry-run"),
        ("train", "--dry-run"),
        ("sweep", "--dry-run"),
        ("deploy", "--dry-run"),
        ("watch", "--dry-run"),
        ("rollout", "abort", "--dry-run"),
    ):
        assert project.ct(folder, *args).stdout.strip(), args
    assert journal.head() == before
    plan = json.loads(project.ct(folder, "plan", "--json").stdout)
    assert [item["action"] for item in plan] == ["StartRun"]


def test_init_writes_a_project_that_checks(tmp_path: Path) -> None:
    made = tmp_path / "new"
    done = project.plain("init", str(made))
    assert "wrote" in done.stdout
    assert "late-orders is valid" in project.ct(made, "check").stdout
    assert "left alone" in project.plain("init", str(made)).stdout
