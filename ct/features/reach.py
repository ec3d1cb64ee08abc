"""The history within reach of a chunk: what its rows may see of each table, read once, in the order in which it became known.

What is held is bounded: where more rows are within a lookup's reach than HISTORY_ROWS, its entities are taken in turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ct.data.hashing import row_hash
from ct.data.shards import Piece, Reader, opened
from ct.data.tables import ShardFile, verified
from ct.errors import InvalidPipeline
from ct.features.frame import Frame, concat
from ct.features.parts import Task
from ct.features.transform import span_us
from ct.roles import Lookup

HISTORY_ROWS = 1 << 21
Placed = tuple[ShardFile, Piece]


class Reach:
    """The history that the missing features of a task read."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._lookups = tuple(dict.fromkeys(lookup for feature, _ in task.wanted for lookup in feature.lookups()))
        self._placed: dict[tuple[str, str], list[Placed]] = {}
        self._shared: dict[tuple[str, str, tuple[str, ...]], Frame] = {}

    def turns(self, lookups: Sequence[Lookup]) -> int:
        """In how many turns the entities are taken; one where the lookups know entities by different columns."""
        if len({lookup.by for lookup in lookups}) > 1:
            return 1
        most: dict[tuple[str, str], int] = {}
        for lookup in lookups:
            name = (lookup.table, lookup.known_at)
            most[name] = max(most.get(name, 0), self._rows(lookup))
        return max(1, -(-sum(most.values()) // HISTORY_ROWS))

    def frame(self, table: str, every: Sequence[Lookup], turn: int, turns: int) -> Frame:
        """The columns of `table` that lookups read, of the rows that were known within their reach and whose entity's turn it is."""
        lookups = [lookup for lookup in every if lookup.table == table]
        known_at, key = lookups[0].known_at, lookups[0].key
        if len({(lookup.known_at, lookup.key) for lookup in lookups}) > 1:
            return self._read(table, lookups, None)
        low, high = self._span(lookups)
        if turns > 1:
            return self._read(table, lookups, (low, high), turn, turns)
        name = (table, known_at, key)
        if name not in self._shared:
            alike = [x for x in self._lookups if (x.table, x.known_at, x.key) == name and self._rows(x) <= HISTORY_ROWS]
            rows = self._read(table, alike, self._span(alike))
            rows = rows.take(np.argsort(rows[known_at], kind="stable"))
            for column in {known_at, *(column for x in alike for column in x.columns)}:
                rows[column]  # turned into an array once, for all slices
            self._shared[name] = rows
        rows = self._shared[name]
        start, stop = np.searchsorted(rows[known_at], [low, high])
        return rows.slice(int(start), int(stop))

    def _span(self, lookups: Sequence[Lookup]) -> tuple[int, int]:
        """Only rows that became known in [low, high) can be seen by any row of the chunk."""
        chunk = self._task.chunk
        return chunk.time_min - max(span_us(lookup) for lookup in lookups), chunk.time_max

    def _rows(self, lookup: Lookup) -> int:
        """About how many rows are within a lookup's reach."""
        return sum(piece.stop - piece.start for _, piece in self._seen(lookup.table, lookup.known_at, self._span([lookup])))

    def _seen(self, table: str, known_at: str, span: tuple[int, int] | None) -> list[Placed]:
        """The pieces of shards that may hold rows known in a span; all of them for None."""
        if (table, known_at) not in self._placed:
            found: list[Placed] = []
            for shard in self._task.history.get(table, ()):
                with opened(shard) as reader:
                    check(reader, (known_at,))
                    found += [(shard, piece) for piece in reader.pieces(known_at)]
            self._placed[table, known_at] = found
        return [
            (shard, piece)
            for shard, piece in self._placed[table, known_at]
            if span is None or piece.low is None or piece.high is None or (piece.high >= span[0] and piece.low < span[1])
        ]

    def _read(
        self, table: str, lookups: Sequence[Lookup], span: tuple[int, int] | None, turn: int = 0, turns: int = 1
    ) -> Frame:
        """The rows known in a span. With a span the lookups have one known-at and key, and the key is kept as its hash only."""
        by, known_at, key = lookups[0].by, lookups[0].known_at, lookups[0].key
        names = tuple(dict.fromkeys(name for lookup in lookups for name in lookup.reads))
        needed = {name for x in lookups for name in (*x.by, *x.columns, x.known_at, *(part[0] for part in x.where))}
        kept = tuple(name for name in names if name in needed or span is None)
        coded = tuple(dict.fromkeys(name for x in lookups for name in (*x.by, *(part[0] for part in x.where))))
        frames = [_nothing(lookups, kept, key if span is not None else ())]
        pieces: dict[str, list[Placed]] = {}
        for shard, piece in self._seen(table, known_at, span):
            pieces.setdefault(shard.identity, []).append((shard, piece))
        for found in pieces.values():
            with opened(verified(found[0][0]), coded=coded) as reader:
                check(reader, names)
                for _, piece in found:
                    rows = reader.read(names, start=piece.start, stop=piece.stop)
                    if span is not None:
                        moments = rows[known_at].cast(pa.int64())
                        rows = rows.filter(pc.and_(pc.greater_equal(moments, span[0]), pc.less(moments, span[1])))
                    frame = Frame(_all_coded(rows, coded))
                    if turns > 1:
                        frame = frame.take(np.flatnonzero(turn_of(frame, by, turns) == turn))
                    frames.append(Frame(frame.table.select(kept), {key: frame.hash(key)} if span is not None else {}))
        return concat([frame for frame in frames if frame.rows] or frames[:1])


def turn_of(rows: Frame, by: Sequence[str], turns: int) -> NDArray[np.uint64]:
    """The turn in which each row's entity is taken, shape [n]."""
    found: NDArray[np.uint64] = row_hash({name: rows.arrow(name) for name in by}, by).view(np.uint64) % np.uint64(turns)
    return found


def _all_coded(rows: pa.Table, names: Sequence[str]) -> pa.Table:
    """The rows with the texts among `names` dictionary-coded, in a column that the table gained after the shard too."""
    for name in names:
        if pa.types.is_string(rows.schema.field(name).type):
            rows = rows.set_column(rows.schema.get_field_index(name), name, rows[name].dictionary_encode())
    return rows


def _nothing(lookups: Sequence[Lookup], names: Sequence[str], key: tuple[str, ...]) -> Frame:
    """No rows at all, with columns of the right kinds."""
    types = {part[0]: pa.float64() for lookup in lookups for part in lookup.where if not isinstance(part[2], str)}
    types |= dict.fromkeys((name for lookup in lookups for name in lookup.columns), pa.float64())
    types |= dict.fromkeys((lookup.known_at for lookup in lookups), pa.timestamp("us", tz="UTC"))
    empty = pa.table({name: pa.array([], types.get(name, pa.string())) for name in names})
    return Frame(empty, {key: np.empty(0, np.int64)} if key else {})


def check(reader: Reader, names: Sequence[str]) -> None:
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
