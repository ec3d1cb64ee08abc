"""A small project for tests of whole lives: orders that come late or not, three shards, a model that trains in seconds."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

PIPELINE = """
import ct

orders = ct.Table("orders", key="order_id", time="ordered_at", owner="shop", checks=[ct.NotNull("amount"), ct.Unique("order_id")])

pipeline = ct.Pipeline(
    name="late-orders",
    owner="shop",
    table=orders,
    label=ct.Label("days_late", above=0, known_at="delivered_at"),
    features=[
        ct.numeric("amount"),
        ct.category("country"),
        ct.window(orders, "days_late", by="country", over="7d", agg="mean", known_at="delivered_at"),
    ],
    segments=["country"],
    holdout="3d",
    model=ct.Torch(ct.models.MLP, epochs=EPOCHS, lr=ct.Search(1e-3, 1e-2, log=True), batch=256, seed=7, options={"width": 16}),
    gate=ct.Gate(beats=ct.auc(by=0.0, margin=0.1), floors=[ct.auc(0.60), ct.ece(max=0.2)]),
    rollout=ct.Canary(50, 100, min_requests=25, guards=[ct.error_rate(max=0.2), ct.quality(margin=0.3, min_labels=5)]),
    retrain=[ct.NewData(rows=2_500)],
)
"""
ROWS = 3_000
START = datetime(2024, 1, 1, tzinfo=UTC)


def write(folder: Path, port: int, *, epochs: int = 15) -> Path:
    """A project folder with its pipeline, its settings, and its shards in shards/."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pipeline.py").write_text(PIPELINE.replace("EPOCHS", str(epochs)))
    (folder / "ct.toml").write_text(f'pipeline = "pipeline.py"\nport = {port}\n')
    for number in range(3):
        (folder / "shards").mkdir(exist_ok=True)
        pq.write_table(shard(number), shard_path(folder, number))
    return folder


def shard_path(folder: Path, number: int) -> Path:
    """Where shard `number` lies before it lands."""
    return folder / "shards" / f"orders-{number}.parquet"


def shard(number: int) -> pa.Table:
    """Ten days of orders; the dear ones and those to one country come late."""
    random = np.random.default_rng(number)
    seconds = np.sort(random.integers(0, 10 * 86_400, ROWS)) + number * 10 * 86_400
    amount = random.gamma(2.0, 30.0, ROWS)
    country = random.choice(["AT", "DE", "FR"], ROWS)
    late = random.random(ROWS) < 1 / (1 + np.exp(-(amount - 80) / 20 - 1.5 * (country == "FR")))
    days = np.where(late, random.integers(1, 5, ROWS), 0).astype(float)
    times = [START + timedelta(seconds=int(s)) for s in seconds]
    columns = {
        "order_id": [f"o-{number}-{at}" for at in range(ROWS)],
        "ordered_at": pa.array(times, pa.timestamp("us", "UTC")),
        "amount": amount,
        "country": country.tolist(),
        "days_late": days,
        "delivered_at": pa.array([at + timedelta(hours=6) for at in times], pa.timestamp("us", "UTC")),
    }
    return pa.table(columns)


def land(folder: Path, number: int) -> None:
    """Drop shard `number` into landing/, whole or not at all."""
    target = folder / "landing" / "orders" / f"orders-{number}.parquet"
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}")
    part.write_bytes(shard_path(folder, number).read_bytes())
    os.replace(part, target)


def requests(number: int) -> list[tuple[dict[str, Any], float]]:
    """Each row of a shard as a prediction request, and its truth."""
    wanted = shard(number).select(["order_id", "ordered_at", "amount", "country", "days_late"]).to_pylist()
    truths = [row.pop("days_late") for row in wanted]
    return [({**row, "ordered_at": row["ordered_at"].isoformat()}, truth) for row, truth in zip(wanted, truths, strict=True)]


def ct(folder: Path, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the `ct` command in the project."""
    command = [sys.executable, "-m", "ct.cli", *args, "--root", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, stdin=subprocess.DEVNULL)
    assert not check or done.returncode == 0, f"{args} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done


def plain(*args: str) -> subprocess.CompletedProcess[str]:
    """Run the `ct` command outside a project."""
    return subprocess.run([sys.executable, "-m", "ct.cli", *args], capture_output=True, text=True, timeout=60, check=True)


def start(folder: Path, *args: str) -> subprocess.Popen[bytes]:
    """Begin the `ct` command in the project; its output goes to a file beside it."""
    command = [sys.executable, "-m", "ct.cli", *args, "--root", str(folder)]
    with (folder / "output.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
