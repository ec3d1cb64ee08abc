"""A small shop for the tests of keeping and erasing: sales of customers, their prices, and a model that is never trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ct import category, numeric, window
from ct.control import runs
from ct.control.act import Actor
from ct.data import catalog
from ct.data.predictions import Inbox
from ct.features import build
from ct.pipeline import Label, Pipeline, Table
from ct.settings import load

DAY = 86_400_000_000
TIME = pa.timestamp("us", tz="UTC")


@dataclass(frozen=True)
class Part:
    """Stands for a model, a gate or a plan."""

    held, patience = 0.0, 0

    def validate(self) -> list[str]:
        return []


def pipeline(**changes: Any) -> Pipeline:
    """Is a sale late? From its price and what its customer paid before."""
    table = Table("sales", key="customer", time="at", owner="shop", description="what was sold", slices=["city"], **changes)
    return Pipeline(
        name="late-sales",
        table=table,
        label=Label("delay", above=1, known_at="known"),
        features=[numeric("price"), category("city"), window(table, "price", by="city", over="30d", agg="mean")],
        segments=["city"],
        model=Part(),
        gate=Part(),
        rollout=Part(),
    )


def rows(month: int, n: int = 40) -> pa.Table:
    """Sales of n customers; `customer-7` buys every month."""
    at = [month * 30 * DAY + i * 10 * DAY // n for i in range(n)]
    names = [f"customer-{i}" if i == 7 else f"buyer-{month}-{i:03d}" for i in range(n)]
    return pa.table(
        {
            "customer": pa.array(names),
            "at": pa.array(at, pa.int64()).cast(TIME),
            "known": pa.array([moment + DAY for moment in at], pa.int64()).cast(TIME),
            "city": pa.array(["Oslo" if i % 2 else "Rome" for i in range(n)]),
            "price": pa.array(np.arange(n, dtype=np.float64)),
            "delay": pa.array([float(i % 3) for i in range(n)]),
        }
    )


def opened(root: Path, line: Pipeline | None = None, **kwargs: Any) -> Actor:
    """The shop's actor."""
    root.mkdir(parents=True, exist_ok=True)
    return Actor(line or pipeline(), load(root, {}), actor="ann", **kwargs)


def land(act: Actor, *months: int, n: int = 40) -> None:
    """Let shards arrive and be published."""
    folder = act.settings.root / "landing" / "sales"
    folder.mkdir(parents=True, exist_ok=True)
    for month in months:
        pq.write_table(rows(month, n), folder / f"m{month}.parquet")
        assert act.ingest("sales", folder / f"m{month}.parquet").kind == "published"


def run(act: Actor, *, version: str = "") -> runs.Run:
    """A run that froze what is published; with `version` it is done and has given that one."""
    shards = catalog.published(act.journal, "sales")
    inputs = {
        "shards": {"sales": [shard.sha256 for shard in shards]},
        "snapshots": {"sales": shards[-1].snapshot},
        "until": max(shard.time_max for shard in shards),
        "params": {},
        "seed": 1,
        "code": "",
        "pipeline": act.pipeline.fingerprint(),
    }
    begun = runs.start(act.journal, act.pipeline.name, cause="by hand", inputs=inputs)
    if version:
        runs.registered(act.journal, act.pipeline.name, begun.id, version=version, facts={})
    return begun


def features(act: Actor) -> build.FeatureSet:
    """The feature set of all that is published."""
    shards = {"sales": catalog.published(act.journal, "sales")}
    return build.build(act.pipeline, shards, folder=act.settings.home / "features", parallel=False)


def predict(act: Actor, *customers: str) -> None:
    """Predictions in the log's inbox, one a customer, each with a label."""
    inbox = Inbox(act.settings.inbox, "ab12")
    for at, customer in enumerate(customers):
        inbox.submit(
            [
                {
                    "kind": "prediction",
                    "id": f"p-{at}-{len(customer)}",
                    "t": at,
                    "event_time": at,
                    "endpoint": "late-sales",
                    "version": "v1",
                    "arm": "stable",
                    "epoch": 1,
                    "score": 0.5,
                    "key": customer,
                    "unit": customer,
                    "context": {"city": "Oslo"},
                    "request": {"customer": customer, "price": 1.0},
                    "features": {"price": 1.0},
                },
                {"kind": "label", "id": f"p-{at}-{len(customer)}", "t": at, "value": 2.0, "label": 1.0, "known_at": at},
            ]
        ).result()
    inbox.close()
