"""Feature sets: one Parquet part for each shard, built in parallel by Ray Data, and only where something is new."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ct.data.columns import NO_TIME, to_columns
from ct.data.tables import ShardFile
from ct.errors import CtError, InvalidPipeline, NotFound
from ct.features.transform import TableHistory, key_text, lookups_of, span_us, texts, transform
from ct.ids import canonical, sha256
from ct.pipeline import Label, Pipeline
from ct.roles import Column, Feature, Lookup

FORMAT = 1
"""Part of every part's key: raise it when the same definitions shall give other values."""


@dataclass(frozen=True)
class Part:
    """The features of one shard's rows. `built` tells whether this build made it or found it."""

    path: str
    key: str
    shard: str
    rows: int
    time_min: int
    time_max: int
    built: bool


@dataclass(frozen=True)
class FeatureSet:
    """The features of several shards. `digest` names exactly these inputs and definitions."""

    fingerprint: str
    digest: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class _Recipe:
    """What a part's rows are made by. It leaves the model out, so that a worker need not import the user's code for it."""

    keys: tuple[str, ...]
    time: str
    label: Label
    features: tuple[Feature, ...]
    segments: tuple[str, ...]
    outputs: tuple[Column, ...]
    reads: tuple[str, ...]


@dataclass(frozen=True)
class _Task:
    recipe: _Recipe
    shard: ShardFile
    history: Mapping[str, tuple[ShardFile, ...]]
    target: str


def build(pipeline: Pipeline, shards: Mapping[str, Sequence[ShardFile]], *, folder: Path, parallel: bool = True) -> FeatureSet:
    """Build what is missing of the feature set of all shards of the pipeline's table.

    A part depends on its shard and on the shards its history can reach, and is kept in `folder` under the hash of all of them:
    a late shard renews the parts it touches. Parts do not depend on `parallel`. Killed at any moment, no half part is visible.
    Raises InvalidPipeline when a feature reads a column that a shard lacks or that is of another kind.
    """
    folder.mkdir(parents=True, exist_ok=True)
    fingerprint = pipeline.feature_fingerprint()
    recipe = _recipe(pipeline)
    tasks = [_task(recipe, shard, shards, fingerprint, folder) for shard in shards[pipeline.table.name]]
    missing = list({task.target: task for task in tasks if not Path(task.target).exists()}.values())
    if parallel and len(missing) > 1:
        _in_parallel(missing)
    else:
        for task in missing:
            _build_part(task)
    new = {task.target for task in missing}
    parts = tuple(_part(task, task.target in new) for task in tasks)
    return FeatureSet(fingerprint, sha256(canonical(sorted(part.key for part in parts))), parts)


def _recipe(pipeline: Pipeline) -> _Recipe:
    reads = dict.fromkeys([*pipeline.request_columns, pipeline.label.column, pipeline.label.known_at])
    return _Recipe(
        keys=pipeline.table.keys,
        time=pipeline.table.time,
        label=pipeline.label,
        features=tuple(pipeline.features),
        segments=tuple(pipeline.segments),
        outputs=pipeline.outputs,
        reads=tuple(reads),
    )


def _part(task: _Task, built: bool) -> Part:
    shard = task.shard
    return Part(task.target, Path(task.target).stem, shard.shard, shard.rows, shard.time_min, shard.time_max, built)


def _task(
    recipe: _Recipe, shard: ShardFile, shards: Mapping[str, Sequence[ShardFile]], fingerprint: str, folder: Path
) -> _Task:
    history: dict[str, dict[str, ShardFile]] = {}
    for lookup in lookups_of(recipe.features):
        reached = history.setdefault(lookup.table, {})
        reached |= {item.sha256: item for item in shards.get(lookup.table, ()) if _reaches(shard, item, lookup)}
    files = {table: tuple(items[digest] for digest in sorted(items)) for table, items in sorted(history.items())}
    inputs = [FORMAT, fingerprint, shard.sha256, {table: [item.sha256 for item in items] for table, items in files.items()}]
    return _Task(recipe, shard, files, str(folder / f"{sha256(canonical(inputs))}.parquet"))


def _reaches(shard: ShardFile, item: ShardFile, lookup: Lookup) -> bool:
    """Can rows of `shard` see rows of `item`? The catalogue notes the first and last moment of each time column of a shard."""
    spans = item.tags.get("spans")
    if spans is None:
        return True
    known = spans.get(lookup.known_at)
    return known is not None and known[1] >= shard.time_min - span_us(lookup) and known[0] < shard.time_max


def _in_parallel(tasks: Sequence[_Task]) -> None:
    """One Ray Data task for each part; only part names come back."""
    import ray

    if not ray.is_initialized():
        for task in tasks:
            _build_part(task)
        return
    items = [{"task": ray.cloudpickle.dumps(task)} for task in tasks]
    log, context = logging.getLogger("ray.data"), ray.data.DataContext.get_current()
    level, bars = log.level, context.enable_progress_bars
    log.setLevel(logging.ERROR)
    context.enable_progress_bars = False
    try:
        made = ray.data.from_items(items, override_num_blocks=len(items)).map(_build_row).take_all()
    finally:
        log.setLevel(level)
        context.enable_progress_bars = bars
    for row in made:
        if row["error"]:
            raise pickle.loads(row["error"])


def _build_row(row: dict[str, Any]) -> dict[str, Any]:
    """Our own errors come back as values: raised inside Ray Data they would drown in its report."""
    try:
        _build_part(pickle.loads(row["task"]))
    except CtError as error:
        return {"error": pickle.dumps(error)}
    return {"error": b""}


def _build_part(task: _Task) -> None:
    """Compute one part and put it in its place in one step."""
    recipe, shard = task.recipe, task.shard
    rows = _columns([shard], recipe.reads)
    history = TableHistory({table: _history(recipe, table, files, shard) for table, files in task.history.items()})
    features = transform(recipe.features, rows, rows[recipe.time], history)
    label = recipe.label.values(rows)
    columns: dict[str, Any] = {
        "_key": key_text(rows, recipe.keys),
        "_time": rows[recipe.time],
        "_label": label,
        "_known_at": np.where(np.isnan(label), NO_TIME, rows[recipe.label.known_at]),
        **{f"segment:{name}": pa.array(texts(rows, name), pa.string()) for name in recipe.segments},
    }
    for output in recipe.outputs:
        category = output.kind == "category"
        columns[output.name] = pa.array(features[output.name], pa.string() if category else pa.float64(), from_pandas=category)
    _write(_in_order(pa.table(columns)), Path(task.target))


def _write(table: pa.Table, target: Path) -> None:
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    with part.open("wb") as file:
        pq.write_table(table, file, compression="zstd")
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, target)


def _history(recipe: _Recipe, table: str, files: Sequence[ShardFile], shard: ShardFile) -> dict[str, NDArray[Any]]:
    """The columns of `table` that lookups read, of the rows that were known within their reach."""
    lookups = [lookup for lookup in lookups_of(recipe.features) if lookup.table == table]
    names = list(dict.fromkeys(name for lookup in lookups for name in lookup.reads))
    if not files:
        types: dict[str, Any] = {name: np.float64 for lookup in lookups for name in lookup.columns}
        types |= {lookup.known_at: np.int64 for lookup in lookups}
        return {name: np.empty(0, dtype=types.get(name, object)) for name in names}
    rows = _columns(files, names)
    wanted = np.zeros(len(rows[names[0]]), dtype=np.bool_)
    for lookup in lookups:
        known_at = rows[lookup.known_at]
        wanted |= (known_at != NO_TIME) & (known_at >= shard.time_min - span_us(lookup)) & (known_at < shard.time_max)
    return {name: values[wanted] for name, values in rows.items()}


def _columns(files: Sequence[ShardFile], names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Some columns of some shards of one table. Raises InvalidPipeline for a column that the table lacks."""
    schema = pq.read_schema(files[0].path)
    for name in names:
        if name not in schema.names:
            near = get_close_matches(name, schema.names, 1)
            raise InvalidPipeline(
                f"the pipeline reads column {name!r}, which table {files[0].table!r} lacks",
                f"one of {sorted(schema.names)}",
                f"did you mean {near[0]!r}?" if near else "name a column of the table",
            )
    return to_columns(pa.concat_tables([pq.read_table(item.path, columns=list(names)) for item in files]))


def read(feature_set: FeatureSet, *, start: int | None = None, stop: int | None = None) -> pa.Table:
    """The rows with event time in [start, stop), by time, then key. Column `_label` is NaN and `_known_at` is NO_TIME where no truth is known.

    Equal digests give equal tables, whatever the order in which shards arrived. Raises NotFound when there is no part at all.
    """
    if not feature_set.parts:
        raise NotFound("the feature set has no parts", "at least one published shard", "ingest a shard first")
    every = sorted(feature_set.parts, key=lambda part: (part.time_min, part.key))
    parts = [part for part in every if (start is None or part.time_max >= start) and (stop is None or part.time_min < stop)]
    table = pa.concat_tables([pq.read_table(part.path) for part in parts or every[:1]])
    if any(earlier.time_max >= later.time_min for earlier, later in pairwise(parts)):
        table = _in_order(table)  # a stable sort of parts that are sorted already
    times = table["_time"].to_numpy()
    wanted = np.full(len(times), bool(parts))
    if start is not None:
        wanted &= times >= start
    if stop is not None:
        wanted &= times < stop
    return (table if wanted.all() else table.filter(pa.array(wanted))).combine_chunks()


def _in_order(table: pa.Table) -> pa.Table:
    return table.combine_chunks().sort_by([("_time", "ascending"), ("_key", "ascending")])
