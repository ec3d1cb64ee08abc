"""Runs as folds: what they were started with, how they ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ct.control import runs
from ct.testing import journal

INPUTS: dict[str, Any] = {
    "shards": {"flights": ["a", "b"]},
    "snapshots": {"flights": 7},
    "until": 1_000_000,
    "params": {"lr": 0.1},
    "seed": 7,
    "code": "c",
    "pipeline": "p",
}


def test_a_runs_life(tmp_path: Path) -> None:
    book = journal(tmp_path)
    first = runs.start(book, "p", cause="new rows", inputs=INPUTS)
    assert first.shards == {"flights": ("a", "b")}
    assert first.outcome == ""
    runs.failed(book, "p", first.id, error="diverged")
    second = runs.start(book, "p", cause="again", inputs=INPUTS)
    assert second.id != first.id
    runs.registered(book, "p", second.id, version="v1", facts={"weights": "w"})
    assert [(run.outcome, run.version, run.error) for run in runs.all_runs(book, "p")] == [
        ("failed", "", "diverged"),
        ("registered", "v1", ""),
    ]
    assert runs.all_runs(book, "p")[1].facts == {"weights": "w"}
