"""Feature sets: built in parallel by Ray Data, one task a chunk, and only where something is new; and reading them."""

from __future__ import annotations

import logging
import pickle
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from inspect import getfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ct.errors import Corrupt, CtError, NotFound
from ct.features.declare import own_features
from ct.features.making import make
from ct.features.parts import Shards, Task, plan
from ct.ids import canonical, sha256
from ct.pipeline import Pipeline
from ct.store.files import Files, open_input


@dataclass(frozen=True)
class Part:
    """The features of some rows of one shard: the file of keys, times, labels and segments, then one file a feature.

    `key` names the contents; `built` are the files that this build made, the others were there.
    """

    files: tuple[str, ...]
    key: str
    shard: str
    rows: int
    time_min: int
    time_max: int
    built: tuple[str, ...]


@dataclass(frozen=True)
class FeatureSet:
    """The features of several shards. `digest` names exactly these inputs and definitions."""

    fingerprint: str
    digest: str
    parts: tuple[Part, ...]


def build(pipeline: Pipeline, shards: Shards, *, folder: Path | str, parallel: bool = True) -> FeatureSet:
    """Build what is missing of the feature set of all shards of the pipeline's table. `folder` is a path or an s3:// URI.

    A file depends on its chunk, its feature and the shards that the feature's history can reach, and is kept under the hash of all of
    them: a new shard adds its own, a changed feature renews its own, a late shard renews those it touches. Files do not
    depend on `parallel`. Killed at any moment, no half file is visible.
    Raises InvalidPipeline when a feature reads a column that a shard lacks or that is of another kind, Corrupt for damaged shards.
    """
    files = Files(str(folder))
    present = {entry.name for entry in files.list()}
    archived = _archived(pipeline)
    with archived.known() if archived else nullcontext():
        tasks = [_missing(task, present) for task in plan(pipeline, shards, str(folder))]
        todo = [task for task in tasks if task.missing]
        if parallel and len(todo) > 1 and not archived:
            _in_parallel(todo)
        else:
            for task in todo:
                make(task)
    parts = tuple(_part(task, files) for task in tasks)
    digest = sha256(canonical(sorted(part.key for part in parts)))
    return FeatureSet(pipeline.feature_fingerprint(), digest, parts)


def _archived(pipeline: Pipeline) -> Any:
    """The modules of the version's archive that the features' functions come from, None for today's code. Other processes would take
    the modules that such a function uses for those of today."""
    own = own_features(pipeline.features).values()
    found = (feature.function.__globals__.get("_ct_modules") for feature in own)
    return next((modules for modules in found if modules is not None), None)


def _missing(task: Task, present: set[str]) -> Task:
    """The task with what is to be made. A file that an earlier task makes as well is made twice, with the same bytes."""
    return replace(task, missing=frozenset(name for name in task.names if name not in present))


def _part(task: Task, files: Files) -> Part:
    chunk = task.chunk
    return Part(
        tuple(files.address(name) for name in task.names),
        sha256(canonical(list(task.names))),
        chunk.shard.shard,
        chunk.rows,
        chunk.time_min,
        chunk.time_max,
        tuple(sorted(task.missing)),
    )


def _in_parallel(tasks: Sequence[Task]) -> None:
    """One Ray Data task for each chunk; only errors come back."""
    import ray

    if not ray.is_initialized():
        for task in tasks:
            make(task)
        return
    items = [{"task": data} for data in _pickled(tasks)]
    log, context = logging.getLogger("ray.data"), ray.data.DataContext.get_current()
    level, bars = log.level, context.enable_progress_bars
    log.setLevel(logging.ERROR)
    context.enable_progress_bars = False
    try:
        made = ray.data.from_items(items, override_num_blocks=len(items)).map(_make_row).take_all()
    finally:
        log.setLevel(level)
        context.enable_progress_bars = bars
    for row in made:
        if row["error"]:
            raise pickle.loads(row["error"])


def _pickled(tasks: Sequence[Task]) -> list[bytes]:
    """The tasks for workers, which cannot import the user's code: functions of features go with what they use of their folder."""
    from ray.cloudpickle import dumps, register_pickle_by_value, unregister_pickle_by_value

    own = own_features([feature for task in tasks[:1] for feature in task.recipe.features])
    folders = {Path(getfile(feature.function)).parent for feature in own.values()}
    near = [
        module for name, module in list(sys.modules.items()) if _file(module).parent in folders and not name.startswith("ct.")
    ]
    for module in near:
        register_pickle_by_value(module)
    try:
        return [dumps(task) for task in tasks]
    finally:
        for module in near:
            unregister_pickle_by_value(module)


def _file(module: Any) -> Path:
    return Path(getattr(module, "__file__", None) or "/")


def _make_row(row: dict[str, Any]) -> dict[str, Any]:
    """Our own errors come back as values: raised inside Ray Data they would drown in its report."""
    try:
        make(pickle.loads(row["task"]))
    except CtError as error:
        return {"error": pickle.dumps(error)}
    return {"error": b""}


def read(
    feature_set: FeatureSet, *, start: int | None = None, stop: int | None = None, columns: Sequence[str] | None = None
) -> pa.Table:
    """The rows with event time in [start, stop), by time, then key. Column `_label` is NaN and `_known_at` is NO_TIME where no truth is known.

    Column `_shard` names the shard that a row came with. Text columns are dictionary-coded. `columns` leaves out others than those named and `_key`, `_time`. Equal digests give equal
    tables, whatever the order in which shards arrived. Raises NotFound when there is no part at all, or a file is gone.
    """
    if not feature_set.parts:
        raise NotFound("the feature set has no parts", "at least one published shard", "ingest a shard first")
    # By the file of the rows themselves: the order of rows does not depend on the features.
    every = sorted(feature_set.parts, key=lambda part: (part.time_min, part.files[0]))
    parts = [part for part in every if (start is None or part.time_max >= start) and (stop is None or part.time_min < stop)]
    table = pa.concat_tables([_read(part, columns) for part in parts or every[:1]]).unify_dictionaries()
    if any(earlier.time_max >= later.time_min for earlier, later in pairwise(parts)):
        table = table.combine_chunks().sort_by([("_time", "ascending"), ("_key", "ascending")])  # a stable sort
    times = table["_time"].to_numpy()
    wanted = np.full(len(times), bool(parts))
    if start is not None:
        wanted &= times >= start
    if stop is not None:
        wanted &= times < stop
    return (table if wanted.all() else table.filter(pa.array(wanted))).combine_chunks()


def _read(part: Part, columns: Sequence[str] | None) -> pa.Table:
    found: dict[str, Any] = {}
    for address in part.files:
        try:
            with open_input(address) as source:
                table = pa.ipc.open_file(source).read_all()
        except pa.ArrowException as error:
            raise Corrupt(f"{address}: {error}", "the file that was built", "remove it: it is built again") from None
        found |= {name: table[name] for name in table.column_names if columns is None or name in (*columns, "_key", "_time")}
    shard = pa.DictionaryArray.from_arrays(np.zeros(len(found["_time"]), dtype=np.int32), [part.shard])
    return pa.table({**found, "_shard": shard})


def names_of(pipeline: Pipeline, shards: Shards) -> frozenset[str]:
    """The names of all files of a feature set, built or not: what maintenance must keep."""
    return frozenset(name for task in plan(pipeline, shards, "") for name in task.names)
