"""A shop whose orders come late or not, for tests that train: its pipeline, its shards, and a champion without an endpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import ct
from ct.control.act import Actor
from ct.control.place import Place
from ct.registry import routes, versions
from ct.settings import load
from tests.loop import project

MODEL = ct.Torch("MLP", epochs=10, lr=5e-3, batch=256, seed=7, options={"width": 16}, start="champion")


def line(**changes: Any) -> ct.Pipeline:
    orders = ct.Table("orders", key="order_id", time="ordered_at", owner="shop")
    made = ct.Pipeline(
        name="late-orders",
        table=orders,
        label=ct.Label("days_late", above=0, known_at="delivered_at"),
        features=[ct.numeric("amount"), ct.category("country")],
        segments=["country"],
        holdout="3d",
        model=MODEL,
        gate=ct.Gate(beats=ct.auc(by=0.0, margin=0.2), floors=[ct.auc(0.55)]),
        rollout=ct.Canary(50, 100),
    )
    return made.replace(**changes)


def opened(root: Path, pipeline: ct.Pipeline) -> Actor:
    root.mkdir(parents=True, exist_ok=True)
    return Actor(pipeline, load(root, {}), actor="ann")


def land(act: Actor, number: int, *, change: Any = None) -> None:
    table = project.shard(number)
    path = act.settings.root / f"orders-{number}.parquet"
    pq.write_table(change(table) if change else table, path)
    assert act.ingest("orders", path).kind == "published"


def italian(table: pa.Table) -> pa.Table:
    """A country that nobody has ordered from before."""
    countries = np.array(table["country"].to_pylist(), dtype=object)
    countries[::10] = "IT"
    return table.set_column(table.column_names.index("country"), "country", pa.array(countries.tolist()))


def all_late(table: pa.Table) -> pa.Table:
    """The truth broke at its source: every order of these ten days is late."""
    return table.set_column(table.column_names.index("days_late"), "days_late", pa.array(np.full(table.num_rows, 2.0)))


def serve(act: Actor, version: versions.Version) -> None:
    """Make a version the champion."""
    route, arm = routes.current(act.journal, act.pipeline.name), versions.arm(version)
    made = routes.first(act.pipeline.name, arm) if route is None else replace(route, epoch=route.epoch + 1, stable=arm)
    routes.put(act.journal, made, cause="test")


def with_line(act: Actor, **changes: Any) -> Place:
    return Place(act.pipeline.replace(**changes), act.settings, act.journal, act.artifacts)
