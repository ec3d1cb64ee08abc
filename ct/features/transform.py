"""The one transformation: rows, times and history in, feature columns out. Training and serving both call `transform`, nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ct.data.columns import NO_TIME
from ct.pipeline import Columns, Feature, History, Lookup

Spans = tuple[Columns, NDArray[np.int64], NDArray[np.int64]]


def transform(
    features: Sequence[Feature], rows: Columns, times: NDArray[np.int64], history: History
) -> dict[str, NDArray[Any]]:
    """Every feature of n rows at `times` [n] (microseconds UTC): {output column: array [n]}."""
    made: dict[str, NDArray[Any]] = {}
    for feature in features:
        made |= feature.compute(rows, times, history)
    return made


class TableHistory:
    """History out of whole tables in memory. `tables` maps a table's name to its columns, in any row order."""

    def __init__(self, tables: Mapping[str, Columns]) -> None:
        self._tables = tables
        self._ties: dict[tuple[str, tuple[str, ...]], NDArray[np.int64]] = {}

    def spans(self, rows: Columns, times: NDArray[np.int64], lookup: Lookup) -> Spans:
        """For each row its history as [start, stop) of the returned columns, which are sorted by entity, known-at, key."""
        source = self._tables[lookup.table]
        entity, asked = _codes(source, rows, lookup.by)
        known_at = source[lookup.known_at]
        usable = np.flatnonzero((entity >= 0) & (known_at != NO_TIME))
        moments = np.unique(known_at[usable])
        step = len(moments) + 1
        place = entity[usable] * step + np.searchsorted(moments, known_at[usable])
        order = usable[np.lexsort((self._tie(source, lookup)[usable], place))]
        place = np.sort(place)
        over = int(lookup.over.total_seconds() * 1e6)
        start = np.searchsorted(place, asked * step + np.searchsorted(moments, times - over))
        stop = np.searchsorted(place, asked * step + np.searchsorted(moments, times))
        start[asked < 0] = stop[asked < 0] = 0
        return {name: source[name][order] for name in lookup.columns}, start, stop

    def _tie(self, source: Columns, lookup: Lookup) -> NDArray[np.int64]:
        """The rank of each row by its key's columns."""
        name = (lookup.table, lookup.key)
        if name not in self._ties:
            order = pc.sort_indices(key_text(source, lookup.key)).to_numpy()
            rank = np.empty(len(order), dtype=np.int64)
            rank[order] = np.arange(len(order))
            self._ties[name] = rank
        return self._ties[name]


def key_text(rows: Columns, names: tuple[str, ...]) -> pa.Array:
    """Each row's values of `names` as one text, joined by "|"; a missing value is empty. Text order is the order of ties."""
    texts = [_arrow(rows[name]).cast(pa.string()).fill_null("") for name in names]
    return texts[0] if len(texts) == 1 else pc.binary_join_element_wise(*texts, "|")


def _codes(source: Columns, rows: Columns, by: tuple[str, ...]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """One number for each combination of `by` values, the same in both; -1 where a value is missing."""
    count = len(source[by[0]])
    codes = np.zeros(count + len(rows[by[0]]), dtype=np.int64)
    absent = np.zeros(len(codes), dtype=np.bool_)
    for name in by:
        both = pa.concat_arrays([_arrow(source[name]), _arrow(rows[name])])
        coded = both.dictionary_encode()
        absent |= pc.is_null(both).to_numpy(zero_copy_only=False)
        found = coded.indices.fill_null(0).to_numpy().astype(np.int64)
        codes = codes * len(coded.dictionary) + found
    codes[absent] = -1
    return codes[:count], codes[count:]


def _arrow(values: NDArray[Any]) -> pa.Array:
    return pa.array(values, pa.string() if values.dtype == object else None, from_pandas=True)
