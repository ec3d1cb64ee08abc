"""A run's labels and weights: what is no label is counted and named, wrong weights stop the run, and errors of numbers get their limit."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import ct
from ct import settings
from ct.control import labelled, rollouts
from ct.control.act import Actor
from ct.control.rows import Rows, rows
from ct.data.predictions import Inbox
from ct.errors import TrainingFailed
from ct.registry import versions

ROWS = 1_000
START = datetime(2024, 1, 1, tzinfo=UTC)


def actor(root: Path, label: ct.Label, guard: Any = None, **columns: Any) -> Actor:
    """A project with one shard; `columns` replace its columns."""
    line = ct.Pipeline(
        name="orders",
        table=ct.Table("orders", key="order_id", time="ordered_at"),
        label=label,
        features=[ct.numeric("amount")],
        holdout="4d",
        model=ct.Torch(ct.models.MLP, held=0.1),
        gate=ct.Gate(
            beats=ct.better("log_loss" if label.classes else "mae"),
            floors=[ct.at_least("accuracy" if label.classes else "r2", 0.1)],
        ),
        rollout=ct.Canary(50, 100, guards=[guard or ct.quality()]),
    )
    act = Actor(line, settings.load(root, environ={}), actor="ann")
    times = [START + timedelta(minutes=15 * at) for at in range(ROWS)]
    random = np.random.default_rng(0)
    table = {
        "order_id": [f"o{at}" for at in range(ROWS)],
        "ordered_at": pa.array(times, pa.timestamp("us", "UTC")),
        "amount": random.random(ROWS),
        "days": random.normal(size=ROWS),
        "outcome": random.choice(["early", "late"], ROWS).tolist(),
        "fare": random.random(ROWS),
        "known": pa.array([at + timedelta(hours=1) for at in times], pa.timestamp("us", "UTC")),
        **columns,
    }
    pq.write_table(pa.table(table), root / "orders.parquet")
    assert act.ingest("orders", root / "orders.parquet").kind == "published"
    return act


def made(act: Actor) -> Rows:
    return rows(act.place, act.start_run("by hand"), on_step=lambda _: None)


def test_texts_that_are_no_class_and_classes_without_rows_are_told(tmp_path: Path) -> None:
    outcome = ["early", "late", "lost", "late", "early", None, "lost", "returned", "late", "early"] * 100
    label = ct.Label("outcome", classes=("early", "late", "never"), known_at="known")
    act = actor(tmp_path, label, outcome=pa.array(outcome, pa.string()))
    data = made(act)
    counts = labelled.counted(act.place, data)
    assert (counts["rows"], counts["labelled"], counts["foreign_rows"]) == (1000, 600, 300)
    assert list(counts["foreign"].items()) == [("lost", 200), ("returned", 100)]
    assert counts["classes"]["never"] == 0
    assert counts["classes"]["early"] == int((data.label[data.split.train] == 0).sum()) > 100
    said = labelled.strange(counts)
    assert "300 of 1,000 rows have no label because theirs is none: 'lost' in 200, 'returned' in 100" in said
    assert "no training row of 'never'" in said


def test_infinite_numbers_are_told_and_hold_nothing_back(tmp_path: Path) -> None:
    days = np.where(np.arange(ROWS) % 100 == 0, np.inf, np.arange(float(ROWS)))
    act = actor(tmp_path, ct.Label("days", known_at="known"), days=days)
    data = made(act)
    counts = labelled.counted(act.place, data)
    assert (counts["labelled"], counts["foreign"]) == (990, {"inf": 10})
    assert not data.split.calibrate.any()
    assert labelled.strange({"rows": 5, "foreign_rows": 0, "foreign": {}}) == ""


def test_weights_are_read_and_wrong_ones_stop_the_run(tmp_path: Path) -> None:
    fare = pa.array([None if at % 4 == 0 else 2.0 for at in range(ROWS)], pa.float64())
    data = made(actor(tmp_path, ct.Label("days", known_at="known", weight="fare"), fare=fare))
    assert sorted(set(data.weight.tolist())) == [1.0, 2.0]
    assert (data.weight == 1.0).sum() == ROWS // 4
    (tmp_path / "wrong").mkdir()
    wrong = np.where(np.arange(ROWS) < 3, -1.0, 1.0)
    act = actor(tmp_path / "wrong", ct.Label("days", known_at="known", weight="fare"), fare=wrong)
    with pytest.raises(TrainingFailed, match="3 of 1,000 rows have a weight 'fare'"):
        made(act)


def answered(act: Actor, errors: np.ndarray) -> None:
    inbox = Inbox(act.settings.inbox, "r")
    base = {"version": "v1", "arm": "stable", "epoch": 1, "t": 5, "event_time": 4, "context": {}, "scores": {}}
    records = [{"kind": "prediction", "id": f"p{at}", "score": float(gap), **base} for at, gap in enumerate(errors)]
    records += [
        {"kind": "label", "id": f"p{at}", "t": 9, "value": 0.0, "label": 0.0, "known_at": 8} for at in range(len(errors))
    ]
    inbox.submit(records).result(10)
    inbox.close()


def test_the_limit_of_an_error_is_declared_or_learned_from_stable(tmp_path: Path) -> None:
    act = actor(tmp_path, ct.Label("days", known_at="known"))
    versions.register(act.journal, "orders", manifest="a" * 64, run="r" * 16, verdict="pass", metrics={"mae": 3.0})
    assert rollouts.off_limit(act, "v1") == 6.0, "twice the mean error at the gate, before 100 answers are labelled"
    answered(act, np.arange(200.0))
    assert rollouts.off_limit(act, "v1") == 180.0, "9 of 10 of stable's errors are below"
    strict = Actor(act.pipeline.replace(rollout=ct.Canary(50, 100, guards=[ct.quality(limit=12)])), act.settings)
    assert rollouts.off_limit(strict, "v1") == 12
    late = Actor(
        act.pipeline.replace(
            label=ct.Label("days", above=1, known_at="known"), gate=ct.Gate(beats=ct.auc(by=0.0), floors=[ct.auc(0.5)])
        ),
        act.settings,
    )
    assert rollouts.off_limit(late, "v1") is None
    assert ct.quality(limit=-1).validate() == ["quality(limit=-1), expected a number above 0, or None to learn it from stable"]
    assert ct.quality(limit=float("nan")).validate()
