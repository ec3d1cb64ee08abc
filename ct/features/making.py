"""Making the files of one chunk: its rows, and for each group of features that search alike, one search of the history in reach."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ct.data.columns import NO_TIME
from ct.data.shards import opened
from ct.data.tables import verified
from ct.features.frame import Frame, as_coded
from ct.features.history import TableHistory
from ct.features.parts import Chunk, Recipe, Task
from ct.features.reach import Reach, check, turn_of
from ct.features.transform import key_text, texts
from ct.roles import Feature
from ct.store.files import Files

_OPTIONS = {"compression": "lz4"}
Ints = NDArray[np.int64]
Group = tuple[Feature, ...]


def make(task: Task) -> None:
    """Make the missing files of a chunk, each visible whole or not at all. Raises InvalidPipeline for columns that a table lacks."""
    files, recipe, wanted = Files(task.folder), task.recipe, task.wanted
    rows = _rows(task.chunk, recipe, [feature for feature, _ in wanted])
    times = rows[recipe.time]
    if task.names[0] in task.missing:
        _put(files, task.names[0], _base(recipe, rows))
    names, reach = {id(feature): name for feature, name in wanted}, Reach(task)
    for group in _groups([feature for feature, _ in wanted]):
        for feature, made in _computed(group, rows, times, reach):
            _put(files, names[id(feature)], _table(feature, rows, made))


def _base(recipe: Recipe, rows: Frame) -> pa.Table:
    label = recipe.label.values(rows)
    return pa.table(
        {
            "_key": key_text(rows, recipe.keys),
            "_time": rows[recipe.time],
            "_label": label,
            "_known_at": np.where(np.isnan(label), NO_TIME, rows[recipe.label.known_at]),
            **({"_weight": rows[recipe.label.weight]} if recipe.label.weight else {}),
            **{f"segment:{name}": as_coded(rows, name, texts(rows, name)) for name in recipe.segments},
        }
    )


def _table(feature: Feature, rows: Frame, made: Mapping[str, NDArray[Any]]) -> pa.Table:
    """A feature's outputs as they are stored: float64 with NaN, or coded text."""
    inputs = feature.inputs()
    columns = {}
    for output in feature.outputs():
        values = made[output.name]
        source = output.name if output.name in inputs else ""
        columns[output.name] = as_coded(rows if source else {}, source, values) if output.kind == "category" else values
    return pa.table(columns)


def _put(files: Files, name: str, table: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(**_OPTIONS)) as writer:
        writer.write_table(table)
    files.put(name, sink.getvalue())


def _groups(features: Sequence[Feature]) -> list[Group]:
    """Features that search the same history the same way, together; those without a history first."""
    groups: dict[object, list[Feature]] = {(): []}
    for feature in features:
        ways = {(item.table, item.by, item.known_at, item.key, item.where) for item in feature.lookups()}
        name: object = () if not ways else next(iter(ways)) if len(ways) == 1 else id(feature)
        groups.setdefault(name, []).append(feature)
    return [tuple(found) for found in groups.values() if found]


def _computed(group: Group, rows: Frame, times: Ints, reach: Reach) -> Iterator[tuple[Feature, dict[str, NDArray[Any]]]]:
    lookups = tuple(dict.fromkeys(lookup for feature in group for lookup in feature.lookups()))
    if not lookups:
        for feature in group:
            yield feature, feature.compute(rows, times, TableHistory({}))
        return
    turns, tables = reach.turns(lookups), {lookup.table for lookup in lookups}
    found: dict[int, list[tuple[Ints, dict[str, NDArray[Any]]]]] = {id(feature): [] for feature in group}
    reads = dict.fromkeys(name for feature in group for name in feature.inputs())
    reads |= dict.fromkeys(name for lookup in lookups for name in lookup.by)
    read = rows.select(reads)
    turn = turn_of(read, lookups[0].by, turns) if turns > 1 else None
    for at in range(turns):
        history = TableHistory({table: reach.frame(table, lookups, at, turns) for table in tables})
        here = np.arange(len(times)) if turn is None else np.flatnonzero(turn == at)
        part = read if turn is None else read.take(here)
        order = history.order(part, times[here], lookups[0])
        part, here = part.take(order), here[order]
        moments = times[here]
        for feature in group:
            found[id(feature)].append((here, feature.compute(part, moments, history)))
    for feature in group:
        yield feature, _in_place(found.pop(id(feature)), len(times))


def _in_place(pieces: Sequence[tuple[Ints, dict[str, NDArray[Any]]]], count: int) -> dict[str, NDArray[Any]]:
    """What was computed in another order, in the order of the rows."""
    made = {name: np.empty(count, dtype=values.dtype) for name, values in pieces[0][1].items()}
    for here, values in pieces:
        for name, column in values.items():
            made[name][here] = column
    return made


def _rows(chunk: Chunk, recipe: Recipe, features: Sequence[Feature]) -> Frame:
    """A chunk's rows by time, then key, with the columns that its files need."""
    coded = dict.fromkeys(recipe.segments)
    for feature in features:
        coded |= dict.fromkeys(feature.inputs())
        coded |= dict.fromkeys(name for lookup in feature.lookups() for name in lookup.by)
    label = recipe.label
    weight = [label.weight] if label.weight else []
    names = (*dict.fromkeys([*recipe.keys, recipe.time, label.column, label.known_at, *weight, *coded]),)
    with opened(verified(chunk.shard), coded=[name for name in coded if name not in recipe.keys]) as reader:
        check(reader, names)
        rows = reader.read(names, start=chunk.start, stop=chunk.stop)
    frame = Frame(rows)
    order = _order(frame, recipe)
    return frame if order is None else frame.take(order)


def _order(rows: Frame, recipe: Recipe) -> Ints | None:
    """The rows by time, then key; None when they are so already, as ingest leaves them."""
    times = rows[recipe.time]
    tied = np.flatnonzero(times[1:] == times[:-1])
    keys = key_text(rows, recipe.keys)
    if (
        not (times[1:] < times[:-1]).any()
        and pc.all(pc.less_equal(keys.take(pa.array(tied)), keys.take(pa.array(tied + 1)))).as_py() is not False
    ):
        return None
    found: Ints = (
        pc.sort_indices(pa.table({"time": times, "key": keys}), [("time", "ascending"), ("key", "ascending")])
        .to_numpy()
        .astype(np.int64)
    )
    return found
