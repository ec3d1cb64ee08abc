"""A run's rows: its features, which of them train, which are held back and which judge, and how much each counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ct.clock import duration
from ct.control import runs
from ct.control.place import Place, Step
from ct.data import catalog, slices
from ct.data.columns import to_columns
from ct.data.hashing import row_hash
from ct.evaluation import windows
from ct.features import build
from ct.features.parts import Shards
from ct.pipeline import Pipeline
from ct.roles import Columns, Offered

_PLACE = ("_key", "_time")


@dataclass(frozen=True)
class Rows:
    """A run's n rows: features, labels, how they are split, and what the pipeline's selectors left of those that train.

    `times` are event times, `known_at` when the label was known (microseconds UTC), `keys` hashes of the rows' keys, `weight` the
    label's own weights [n].
    """

    columns: Columns
    label: NDArray[np.float64]
    segments: Mapping[str, NDArray[Any]]
    times: NDArray[np.int64]
    known_at: NDArray[np.int64]
    keys: NDArray[np.int64]
    weight: NDArray[np.float64]
    split: windows.Split
    digest: str
    built: int
    selection: Mapping[str, Any] = field(default_factory=dict)
    shards: Shards = field(default_factory=dict)


def rows(place: Place, run: runs.Run, *, on_step: Step) -> Rows:
    """Build or reuse the run's features and split them."""
    on_step("features")
    line, shards = place.pipeline, shards_of(place, run)
    made = build.build(line, shards, folder=place.settings.place("features"))
    table = build.read(made)
    times, known_at = table["_time"].to_numpy(), table["_known_at"].to_numpy()
    label = table["_label"].to_numpy()
    mature = getattr(line.gate, "mature", "")
    split = windows.split(
        times,
        known_at,
        label,
        holdout_us=_us(line.holdout),
        mature_us=_us(mature) if mature else None,
        objective=line.label.objective,
    )
    segments = {name: np.asarray(table[f"segment:{name}"].to_pylist(), dtype=object) for name in line.segments}
    keys = row_hash({name: table[name].combine_chunks() for name in _PLACE}, _PLACE)
    selection: dict[str, Any] = {}
    if line.rows:
        home = table["_shard"].combine_chunks()
        tags = {shard.shard: shard.tags for shard in shards[line.table.name]}
        train = split.train.copy()
        train[train] = slices.chosen(
            line.selectors,
            Offered(
                times=times[train],
                keys=keys[train],
                segments=take(segments, train),
                shards=home.indices.to_numpy()[train],
                tags=[tags[shard] for shard in home.dictionary.to_pylist()],
            ),
        )
        rule = "; ".join(part.explain() for part in line.selectors)
        selection = {"rule": rule, "of": int(split.train.sum()), "rows": int(train.sum())}
        split = windows.narrowed(split, train, label, objective=line.label.objective)
    kind = line.label.objective.kind
    split = windows.held_back(
        split,
        keys,
        label,
        share=line.model.held,
        stopping=line.model.patience > 0,
        calibrating=_calibrating(kind, line.model),
    )
    return Rows(
        columns=to_columns(table.select([column.name for column in line.outputs])),
        label=label,
        segments=segments,
        times=times,
        known_at=known_at,
        keys=keys,
        weight=line.label.weights(table["_weight"].to_numpy()) if line.label.weight else np.ones(len(label)),
        split=split,
        digest=made.digest,
        built=sum(bool(part.built) for part in made.parts),
        selection=selection,
        shards=shards,
    )


def _calibrating(kind: str, model: Any) -> bool:
    """Is something learned on rows held back: a threshold, a calibration, or how members are stacked?"""
    stacked = getattr(model, "how", "") == "stacked"
    return kind == "binary" or stacked or (kind == "classes" and bool(model.calibrate))


def _us(text: str) -> int:
    return int(duration(text).total_seconds() * 1e6)


def shards_of(place: Place, run: runs.Run) -> dict[str, list[Any]]:
    """The run's shards by table, as the catalogue knows them."""
    return {name: list(catalog.resolve(place.journal, name, digests)) for name, digests in run.shards.items()}


def take(columns: Columns, rows: NDArray[np.bool_] | NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """The rows under a mask, or at places."""
    return {name: values[rows] for name, values in columns.items()}


def profiled_by(line: Pipeline) -> tuple[str, ...]:
    """The segments by which features are profiled too: those that are features of text."""
    texts = {column.name for column in line.outputs if column.kind == "category"}
    return tuple(name for name in line.segments if name in texts)
