"""Rows as Arrow columns that become numpy arrays when they are asked for: text stays coded as long as nobody needs it as text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ct.data.columns import NO_TIME, Rows
from ct.data.hashing import row_hash
from ct.roles import Columns

Ints = NDArray[np.int64]


class Frame(Rows):
    """n rows out of Arrow. Text columns may be dictionary-coded; `hashes` holds what `row_hash` gave for columns left out."""

    def __init__(self, table: pa.Table, hashes: Mapping[tuple[str, ...], Ints] | None = None) -> None:
        super().__init__(table)
        self._hashes = dict(hashes or {})
        self._pieces: dict[str, pa.Array] = {}

    @property
    def rows(self) -> int:
        """The number of rows."""
        return int(self.table.num_rows)

    def arrow(self, name: str) -> pa.Array:
        """A column in one piece."""
        if name not in self._pieces:
            column = self.table[name]
            if pa.types.is_dictionary(column.type) and column.num_chunks > 1:
                column = column.unify_dictionaries()
            found = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
            self._pieces[name] = found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found
        return self._pieces[name]

    def select(self, names: Iterable[str]) -> Frame:
        """Some columns; what was hashed stays."""
        found = Frame(self.table.select(list(names)), self._hashes)
        found._pieces, found._made = self._pieces, self._made  # turned once for both
        return found

    def take(self, rows: Ints) -> Frame:
        """Some rows, in the order given."""
        places = pa.array(rows)
        taken = pa.table({name: self.arrow(name).take(places) for name in self})
        return Frame(taken, {names: values[rows] for names, values in self._hashes.items()})

    def hash(self, names: tuple[str, ...]) -> Ints:
        """`row_hash` of columns, whether or not they are still there."""
        return self._hashes[names] if names in self._hashes else row_hash({name: self.arrow(name) for name in names}, names)

    def slice(self, start: int, stop: int) -> Frame:
        """Rows [start, stop)."""
        table = pa.table({name: self.arrow(name) for name in self})
        found = Frame(table.slice(start, stop - start), {names: values[start:stop] for names, values in self._hashes.items()})
        found._made = {name: values[start:stop] for name, values in self._made.items()}
        return found


def key_hash(rows: Columns, names: tuple[str, ...]) -> Ints:
    """`row_hash` of columns, shape [n]."""
    return rows.hash(names) if isinstance(rows, Frame) else row_hash(rows, names)


def coded(rows: Columns, name: str) -> tuple[Ints, pa.Array]:
    """A column as numbers into its different values, -1 for missing, and these values."""
    column = rows.arrow(name) if isinstance(rows, Frame) else arrow(rows[name])
    if not pa.types.is_dictionary(column.type):
        column = arrow(rows[name]).dictionary_encode()
    codes = column.indices.fill_null(-1) if column.null_count else column.indices
    return codes.to_numpy().astype(np.int64), column.dictionary


def arrow(values: NDArray[Any]) -> pa.Array:
    """A column as Arrow: text, whole microseconds or numbers, with null for missing."""
    if values.dtype == object:
        return pa.array(values, pa.string(), from_pandas=True)
    if values.dtype == np.int64:
        return pa.array(values, pa.int64(), mask=values == NO_TIME)
    return pa.array(values + 0.0, pa.float64(), from_pandas=True)  # minus zero is zero


def as_coded(rows: Columns, name: str, values: NDArray[Any]) -> pa.Array:
    """Text values as a dictionary array; `name`'s own codes where the values are that column's."""
    if isinstance(rows, Frame) and values is rows[name]:
        column = rows.arrow(name)
        if pa.types.is_dictionary(column.type):
            return _narrow(column)
    return _narrow(pa.array(values, pa.string(), from_pandas=True).dictionary_encode())


def _narrow(column: pa.DictionaryArray) -> pa.DictionaryArray:
    """With the values in order and only those that occur: equal rows have equal bytes, wherever they were read from."""
    used = np.unique(column.indices.drop_null().to_numpy())
    words = column.dictionary.take(pa.array(used)).cast(pa.string())
    order = pc.sort_indices(words).to_numpy()
    place = np.full(len(column.dictionary) + 1, -1, dtype=np.int32)
    place[used[order]] = np.arange(len(used), dtype=np.int32)
    codes = place[column.indices.fill_null(len(column.dictionary)).to_numpy()]
    return pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32(), mask=codes < 0), words.take(pa.array(order)))


def concat(frames: Sequence[Frame]) -> Frame:
    """Frames of the same columns, one below the other."""
    tables = [frame.table for frame in frames]
    hashes = {names: np.concatenate([frame._hashes[names] for frame in frames]) for names in frames[0]._hashes}
    return Frame(pa.concat_tables(tables), hashes)
