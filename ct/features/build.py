"""Feature sets: one Parquet part for each shard, built in parallel by Ray Data, and only where something is new."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ct.data.columns import NO_TIME, to_columns
from ct.data.tables import ShardFile
from ct.features.online import lookups_of
from ct.features.transform import TableHistory, key_text, transform
from ct.ids import canonical, sha256
from ct.pipeline import Pipeline


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
class _Task:
    pipeline: Pipeline
    shard: ShardFile
    history: Mapping[str, tuple[ShardFile, ...]]
    target: str


def build(pipeline: Pipeline, shards: Mapping[str, Sequence[ShardFile]], *, folder: Path, parallel: bool = True) -> FeatureSet:
    """Build what is missing of the feature set of all shards of the pipeline's table; each part depends on its shard and on the
    shards its history can reach, and is kept under the hash of all of them. Results do not depend on `parallel`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    fingerprint = pipeline.feature_fingerprint()
    tasks = [_task(pipeline, shard, shards, fingerprint, folder) for shard in shards[pipeline.table.name]]
    missing = [task for task in tasks if not Path(task.target).exists()]
    if parallel and len(missing) > 1:
        _in_parallel(missing)
    else:
        for task in missing:
            _build_part(task)
    new = {task.target for task in missing}
    parts = tuple(
        Part(
            task.target,
            Path(task.target).stem,
            task.shard.shard,
            task.shard.rows,
            task.shard.time_min,
            task.shard.time_max,
            task.target in new,
        )
        for task in tasks
    )
    return FeatureSet(fingerprint, sha256(canonical(sorted(part.key for part in parts))), parts)


def _task(
    pipeline: Pipeline, shard: ShardFile, shards: Mapping[str, Sequence[ShardFile]], fingerprint: str, folder: Path
) -> _Task:
    history: dict[str, tuple[ShardFile, ...]] = {}
    for lookup in lookups_of(pipeline.features):
        since = shard.time_min - int(lookup.over.total_seconds() * 1e6)
        reached = [item for item in shards.get(lookup.table, ()) if _overlaps(item, lookup.known_at, since, shard.time_max)]
        history[lookup.table] = tuple(
            sorted({*history.get(lookup.table, ()), *reached}, key=lambda item: (item.time_min, item.sha256))
        )
    inputs = [fingerprint, shard.sha256, {table: [item.sha256 for item in files] for table, files in sorted(history.items())}]
    return _Task(pipeline, shard, history, str(folder / f"{sha256(canonical(inputs))}.parquet"))


def _overlaps(shard: ShardFile, known_at: str, since: int, until: int) -> bool:
    span = shard.tags["spans"].get(known_at)
    return span is not None and span[1] >= since and span[0] < until


def _in_parallel(tasks: Sequence[_Task]) -> None:
    """One Ray Data task for each part; only part names come back."""
    import ray

    if not ray.is_initialized():
        for task in tasks:
            _build_part(task)
        return
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    made = ray.data.from_items([{"task": task} for task in tasks], override_num_blocks=len(tasks)).map(_build_row)
    made.take_all()


def _build_row(row: dict[str, Any]) -> dict[str, Any]:
    _build_part(row["task"])
    return {"target": row["task"].target}


def _build_part(task: _Task) -> None:
    """Compute one part and put it in its place in one step."""
    line, shard = task.pipeline, task.shard
    needed = dict.fromkeys([*line.request_columns, line.label.column, line.label.known_at])
    rows = to_columns(pq.read_table(shard.path, columns=list(needed)))
    times = rows[line.table.time]
    history = TableHistory({table: _history(line, table, files, shard) for table, files in task.history.items()})
    features = transform(line.features, rows, times, history)
    label = line.label.values(rows)
    known_at = np.where(np.isnan(label), NO_TIME, rows[line.label.known_at])
    columns: dict[str, Any] = {
        "_key": key_text(rows, line.table.keys),
        "_time": times,
        "_label": label,
        "_known_at": known_at,
        **{f"segment:{name}": pa.array(rows[name], pa.string(), from_pandas=True) for name in line.segments},
    }
    for output in line.outputs:
        type_ = pa.string() if output.kind == "category" else pa.float64()
        columns[output.name] = pa.array(features[output.name], type_, from_pandas=output.kind == "category")
    target = Path(task.target)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    pq.write_table(pa.table(columns), part, compression="zstd")
    os.replace(part, target)


def _history(line: Pipeline, table: str, files: Sequence[ShardFile], shard: ShardFile) -> dict[str, Any]:
    """The columns of `table` that lookups read, of the rows that were known within their reach."""
    lookups = [lookup for lookup in lookups_of(line.features) if lookup.table == table]
    names = list(dict.fromkeys(name for lookup in lookups for name in lookup.reads))
    if not files:
        empty = {lookup.known_at: np.int64 for lookup in lookups} | {name: np.float64 for lookup in lookups for name in lookup.columns}
        return {name: np.empty(0, dtype=empty.get(name, object)) for name in names}
    rows = to_columns(pa.concat_tables([pq.read_table(item.path, columns=names) for item in files]))
    wanted = np.zeros(len(rows[names[0]]), dtype=np.bool_)
    for lookup in lookups:
        known_at, over = rows[lookup.known_at], int(lookup.over.total_seconds() * 1e6)
        wanted |= (known_at != NO_TIME) & (known_at >= shard.time_min - over) & (known_at < shard.time_max)
    return {name: values[wanted] for name, values in rows.items()}


def read(feature_set: FeatureSet, *, start: int | None = None, stop: int | None = None) -> pa.Table:
    """The rows with event time in [start, stop), by time, then key. Column `_label` is NaN and `_known_at` is NO_TIME where no truth is known."""
    parts = [
        part
        for part in feature_set.parts
        if (start is None or part.time_max >= start) and (stop is None or part.time_min < stop)
    ]
    table = pa.concat_tables([pq.read_table(part.path) for part in parts]).combine_chunks()
    times = table["_time"].to_numpy()
    wanted = np.ones(len(times), dtype=np.bool_)
    if start is not None:
        wanted &= times >= start
    if stop is not None:
        wanted &= times < stop
    kept = table.filter(pa.array(wanted))
    return kept.sort_by([("_time", "ascending"), ("_key", "ascending")])
