"""Making the files of one chunk: its rows, and for each group of features the part of the history that these rows can see.

What a process holds is bounded: a chunk has about CHUNK_ROWS rows, and where more history is within reach than HISTORY_ROWS, entities
are taken in turns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ct.data.columns import NO_TIME
from ct.data.hashing import row_hash
from ct.data.shards import Piece, Reader, opened
from ct.errors import InvalidPipeline
from ct.features.frame import Frame, as_coded, concat
from ct.features.history import TableHistory
from ct.features.parts import Chunk, Recipe, Task
from ct.features.transform import key_text, span_us, texts
from ct.roles import Feature, Lookup
from ct.store.files import Files

HISTORY_ROWS = 1 << 21
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
    names = {id(feature): name for feature, name in wanted}
    for group in _groups([feature for feature, _ in wanted]):
        for feature, made in _computed(group, rows, times, task):
            _put(files, names[id(feature)], _table(feature, rows, made))


def _base(recipe: Recipe, rows: Frame) -> pa.Table:
    label = recipe.label.values(rows)
    return pa.table(
        {
            "_key": key_text(rows, recipe.keys),
            "_time": rows[recipe.time],
            "_label": label,
            "_known_at": np.where(np.isnan(label), NO_TIME, rows[recipe.label.known_at]),
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


def _computed(group: Group, rows: Frame, times: Ints, task: Task) -> Iterator[tuple[Feature, dict[str, NDArray[Any]]]]:
    lookups = tuple(dict.fromkeys(lookup for feature in group for lookup in feature.lookups()))
    if not lookups:
        for feature in group:
            yield feature, feature.compute(rows, times, TableHistory({}))
        return
    turns = _turns(lookups, task)
    turn = _turn(rows, lookups[0].by, turns)
    found: dict[int, list[tuple[Ints, dict[str, NDArray[Any]]]]] = {id(feature): [] for feature in group}
    reads = dict.fromkeys(name for feature in group for name in feature.inputs())
    reads |= dict.fromkeys(name for lookup in lookups for name in lookup.by)
    for at in range(turns):
        history = TableHistory({table: _history(table, lookups, task, at, turns) for table in {x.table for x in lookups}})
        here = np.flatnonzero(turn == at) if turns > 1 else np.arange(len(times))
        part = rows.select(reads).take(here) if turns > 1 else rows.select(reads)
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


def _reach(lookups: Sequence[Lookup], chunk: Chunk) -> tuple[int, int]:
    """Only rows that became known in [low, high) can be seen by any row of the chunk."""
    return chunk.time_min - max(span_us(lookup) for lookup in lookups), chunk.time_max


def _turns(lookups: Sequence[Lookup], task: Task) -> int:
    """In how many turns the entities are taken; one where features of a group know entities by different columns."""
    if len({lookup.by for lookup in lookups}) > 1:
        return 1
    low, high = _reach(lookups, task.chunk)
    count = 0
    for lookup in {(x.table, x.known_at): x for x in lookups}.values():
        for shard in task.history.get(lookup.table, ()):
            with opened(shard) as reader:
                count += sum(piece.stop - piece.start for piece in _seen(reader, lookup.known_at, low, high))
    return max(1, -(-count // HISTORY_ROWS))


def _history(table: str, every: Sequence[Lookup], task: Task, turn: int, turns: int) -> Frame:
    """The columns of `table` that lookups read, of the rows that were known within their reach and whose entity's turn it is."""
    lookups = [lookup for lookup in every if lookup.table == table]
    by, known_at, key = lookups[0].by, lookups[0].known_at, lookups[0].key
    alike = len({(lookup.known_at, lookup.key) for lookup in lookups}) == 1
    names = tuple(dict.fromkeys(name for lookup in lookups for name in lookup.reads))
    needed = {name for x in lookups for name in (*x.by, *x.columns, x.known_at, *(part[0] for part in x.where))}
    kept = tuple(name for name in names if name in needed or not alike)
    coded = tuple(dict.fromkeys(name for x in lookups for name in (*x.by, *(part[0] for part in x.where))))
    low, high = _reach(lookups, task.chunk)
    frames = [_nothing(lookups, kept, key if alike else ())]
    for shard in task.history.get(table, ()):
        with opened(shard, coded=coded) as reader:
            _check(reader, names)
            for piece in _seen(reader, known_at, low, high) if alike else reader.pieces():
                rows = reader.read(names, start=piece.start, stop=piece.stop)
                if alike:
                    moments = rows[known_at].cast(pa.int64())
                    rows = rows.filter(pc.and_(pc.greater_equal(moments, low), pc.less(moments, high)))
                frame = Frame(rows)
                if turns > 1:
                    frame = frame.take(np.flatnonzero(_turn(frame, by, turns) == turn))
                frames.append(Frame(frame.select(kept).table, {key: frame.hash(key)} if alike else {}))
    return concat([frame for frame in frames if frame.rows] or frames)


def _turn(rows: Frame, by: Sequence[str], turns: int) -> NDArray[np.uint64]:
    """The turn in which each row's entity is taken."""
    found: NDArray[np.uint64] = row_hash({name: rows.arrow(name) for name in by}, by).view(np.uint64) % np.uint64(turns)
    return found


def _nothing(lookups: Sequence[Lookup], names: Sequence[str], key: tuple[str, ...]) -> Frame:
    """No rows at all, with columns of the right kinds."""
    types = dict.fromkeys((name for lookup in lookups for name in lookup.columns), pa.float64())
    types |= dict.fromkeys((lookup.known_at for lookup in lookups), pa.timestamp("us", tz="UTC"))
    empty = pa.table({name: pa.array([], types.get(name, pa.string())) for name in names})
    return Frame(empty, {key: np.empty(0, np.int64)} if key else {})


def _seen(reader: Reader, known_at: str, low: int, high: int) -> list[Piece]:
    """The pieces of a shard that may hold rows known in [low, high)."""
    _check(reader, (known_at,))
    return [
        piece
        for piece in reader.pieces(known_at)
        if piece.low is None or piece.high is None or (piece.high >= low and piece.low < high)
    ]


def _rows(chunk: Chunk, recipe: Recipe, features: Sequence[Feature]) -> Frame:
    """A chunk's rows by time, then key, with the columns that its files need."""
    coded = dict.fromkeys(recipe.segments)
    for feature in features:
        coded |= dict.fromkeys(feature.inputs())
        coded |= dict.fromkeys(name for lookup in feature.lookups() for name in lookup.by)
    names = (*dict.fromkeys([*recipe.keys, recipe.time, recipe.label.column, recipe.label.known_at, *coded]),)
    with opened(chunk.shard, coded=[name for name in coded if name not in recipe.keys]) as reader:
        _check(reader, names)
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


def _check(reader: Reader, names: Sequence[str]) -> None:
    """Raises InvalidPipeline for a column that the table lacks."""
    known = {*reader.schema.names, *reader.shard.types}
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, 1)
            raise InvalidPipeline(
                f"the pipeline reads column {name!r}, which table {reader.shard.table!r} lacks",
                f"one of {sorted(known)}",
                f"did you mean {near[0]!r}?" if near else "name a column of the table",
            )
