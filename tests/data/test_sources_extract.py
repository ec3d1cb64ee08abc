"""The process that reads somebody else's tables: the same rows give the same bytes, it is bounded, and it dies alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ct.data.sources import extract
from ct.data.sources.cursor import cursor
from ct.data.sources.delta import DeltaTable
from ct.data.sources.extract import GROUP_ROWS, write
from ct.data.sources.iceberg import IcebergTable
from ct.errors import CtError, Unavailable

from .source_worlds import InDelta, InIceberg, Project, rows


@pytest.mark.parametrize("sizes", [[7], [1, 131_071, 5], [131_072], [300_000], [0, 0], [100_000, 100_000, 100_000]])
def test_bytes_depend_on_rows_not_on_how_they_come(sizes: list[int], tmp_path: Path) -> None:
    whole = rows(list(range(sum(sizes))), note=pa.array([f"n{at % 50}" for at in range(sum(sizes))]))
    batches, at = [], 0
    for size in sizes:
        batches += whole.slice(at, size).to_batches() or [whole.slice(0, 0).combine_chunks().to_batches()]
        at += size
    batches = [batch for batch in batches if isinstance(batch, pa.RecordBatch)]
    one, two = tmp_path / "one", tmp_path / "two"
    write(whole.schema, iter(whole.combine_chunks().to_batches()), one)
    write(whole.schema.with_metadata({"a": "b"}), iter(batches), two)
    assert one.read_bytes() == two.read_bytes()
    assert pq.read_table(two).equals(whole)
    groups = pq.ParquetFile(two).metadata
    assert {groups.row_group(i).num_rows for i in range(groups.num_row_groups - 1)} <= {GROUP_ROWS}


def test_a_child_process_reads_the_rows_and_dies_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real one, of both kinds; and files of theirs that are broken."""
    for kind in (InIceberg, InDelta):
        theirs = kind(tmp_path / kind.__name__)
        theirs.add(rows([1]))
        project = Project(tmp_path / f"ours of {kind.__name__}", theirs.source)
        project.take()
        theirs.add(rows([2]))
        for file in (tmp_path / kind.__name__).rglob("*.parquet"):
            file.write_bytes(b"PAR1" + b"\x00" * (file.stat().st_size - 8) + b"PAR1")
        with pytest.raises(CtError, match=r"ended with code|cannot be read"):
            project.take()
        assert project.ids == [1]


def test_the_child_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = InDelta(tmp_path / "theirs")
    theirs.add(rows([1]))
    project = Project(tmp_path / "ours", theirs.source)
    monkeypatch.setattr(extract, "SECONDS", 0.01)
    with pytest.raises(Unavailable, match="took over"):
        project.take()
    assert project.ids == []


def test_the_child_gets_no_secret_but_those_of_the_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: dict[str, str] = {}

    class Done:
        returncode, stdout, stderr = 0, b"", b""

    def run(command: list[str], **more: Any) -> Done:
        seen.update(more["env"])
        return Done()

    monkeypatch.setattr(extract.subprocess, "run", run)
    monkeypatch.setenv("CT_DATABASE_URL", "postgresql://ct:secret@db/ct")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "theirs")
    extract.extract(DeltaTable("x"), "all/x/0", tmp_path, tmp_path / "out")
    assert "secret" not in json.dumps(seen)
    assert seen["AWS_SECRET_ACCESS_KEY"] == "theirs"


def test_a_catalogue_may_be_named_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pyiceberg reads its configuration once, when it is imported; so the child process is asked."""
    ice = InIceberg(tmp_path / "theirs")
    ice.add(rows([1]))
    monkeypatch.setenv("PYICEBERG_CATALOG__THEIRS__URI", ice.source.properties["uri"])
    project = Project(tmp_path / "ours", ice.source)
    now = cursor(project.table, settings=project.settings, journal=project.journal)
    where = ice.source.locate(str(ice.table.current_snapshot().snapshot_id), now)
    target = extract.extract(IcebergTable("theirs", "shop.orders"), f"all/{where}", tmp_path, tmp_path / "out.parquet")
    assert pq.read_table(target)["id"].to_pylist() == [1]
