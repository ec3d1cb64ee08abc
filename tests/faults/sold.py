"""A pipeline over the table of sales, and a project's whole way from a file to features."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ct import category, numeric, window
from ct.data import catalog
from ct.data.arriving import Arrived
from ct.features import build as features
from ct.pipeline import Label, Pipeline
from ct.store.files import get

from ..data.conftest import SALES, Place


@dataclass(frozen=True)
class Part:
    """Stands for a model, a gate or a plan."""

    def validate(self) -> list[str]:
        return []


LINE = Pipeline(
    name="often",
    table=SALES,
    label=Label("count", above=3, known_at="at"),
    features=[numeric("price"), category("shop"), window(SALES, "count", by="shop", over="3d", agg="mean", known_at="at")],
    model=Part(),
    gate=Part(),
    rollout=Part(),
)


def read_here(file: Arrived, *_: object) -> pa.Table:
    """Stands for the child process that reads an arriving file: nothing it does outlasts it."""
    return pq.read_table(file.path)


def built(place: Place, *, parallel: bool = False) -> features.FeatureSet:
    """The features of all published sales."""
    shards = {"sales": catalog.published(place.journal, "sales")}
    return features.build(LINE, shards, folder=place.settings.place("features"), parallel=parallel)


def state(place: Place) -> dict[str, Any]:
    """What a project holds, without times and ids that differ from run to run."""
    shards = catalog.published(place.journal, "sales")
    return {
        "events": place.events(),
        "shards": [(shard.shard, shard.sha256, shard.rows, shard.file_sha256) for shard in shards],
        "held": [(item["shard"], item["sha256"], item["reasons"]) for item in catalog.quarantined(place.journal, "sales")],
        "rows": rows(place),
        "refs": sorted(place.warehouse.refs("sales")) if place.warehouse.exists("sales") else [],
        "contract": catalog.contract(place.journal, "sales"),
        "files": {shard.shard: sha256(get(shard.path)).hexdigest() for shard in shards},
    }


def rows(place: Place) -> list[str]:
    """The ids of all sales that a reader sees, each as often as it is there."""
    if not place.warehouse.exists("sales"):
        return []
    return sorted(place.warehouse.scan("sales", columns=("id",))["id"].to_pylist())


def contents(made: features.FeatureSet) -> dict[str, str]:
    """The hash of every file of a feature set, by its name."""
    return {address.rpartition("/")[2]: sha256(get(address)).hexdigest() for part in made.parts for address in part.files}
