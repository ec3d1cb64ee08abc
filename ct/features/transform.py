"""The one transformation: rows, times and history in, feature columns out. Training and serving both call `transform`, nothing else.

History is a set: rows of one entity in the order of known-at, key, values; a row that arrives twice counts once. `TableHistory`
serves it out of whole tables, `online.OnlineStore` out of a file; both give the same rows in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ct.data.columns import NO_TIME
from ct.errors import InvalidPipeline
from ct.roles import Columns, Feature, History, Lookup

Ints = NDArray[np.int64]
Spans = tuple[Columns, Ints, Ints]


def transform(features: Sequence[Feature], rows: Columns, times: Ints, history: History) -> dict[str, NDArray[Any]]:
    """Every feature of n rows at `times` [n] (microseconds UTC): {output column: array [n]}.

    A row's values depend on that row, its time and its history alone: one row gives the same bits as a million.
    Raises InvalidPipeline when a feature reads a column of the wrong kind.
    """
    made: dict[str, NDArray[Any]] = {}
    for feature in features:
        made |= feature.compute(rows, times, history)
    return made


def lookups_of(features: Sequence[Feature]) -> tuple[Lookup, ...]:
    """All lookups of some features, each once."""
    return tuple(dict.fromkeys(lookup for feature in features for lookup in feature.lookups()))


def span_us(lookup: Lookup) -> int:
    """How far a lookup reaches back, in microseconds."""
    return round(lookup.over.total_seconds() * 1e6)


def numbers(rows: Columns, name: str) -> NDArray[np.float64]:
    """A column of numbers, float64 [n]. Raises InvalidPipeline for text and times."""
    values = rows[name]
    if values.dtype != np.float64:
        raise InvalidPipeline(
            f"column {name!r} holds {_kind(values)}", "numbers", "use ct.category for text, ct.cyclic for times"
        )
    return values


def texts(rows: Columns, name: str) -> NDArray[Any]:
    """A column as text, object [n] with None; whole numbers without a point. Raises InvalidPipeline for times."""
    values = rows[name]
    if values.dtype == object:
        return values
    made = np.empty(len(values), dtype=object)
    made[:] = [
        None if value != value else str(int(value)) if value.is_integer() else repr(value)
        for value in numbers(rows, name).tolist()
    ]
    return made


def key_text(rows: Columns, names: Sequence[str]) -> pa.Array:
    """Each row's values of `names` as one text, joined by "|"; a missing value is empty."""
    texts = [_arrow(rows[name]).cast(pa.string()).fill_null("") for name in names]
    return texts[0] if len(texts) == 1 else pc.binary_join_element_wise(*texts, "|")


def packed(rows: Columns, names: Sequence[str]) -> NDArray[np.float64]:
    """Columns of numbers side by side, [n, len(names)], with one spelling of missing, so that equal rows have equal bytes."""
    made = np.stack([np.asarray(numbers(rows, name), dtype="<f8") for name in names], axis=1)
    made[np.isnan(made)] = np.nan
    return made


@dataclass(frozen=True)
class _Index:
    """A table's rows by entity and known-at. `place` = entity * (len(moments) + 1) + position of known-at in `moments`, sorted."""

    columns: Columns
    place: Ints
    moments: Ints
    codes: tuple[tuple[pa.Array, Ints], ...]


class TableHistory:
    """History out of whole tables in memory. `tables` maps a table's name to its columns, in any row order."""

    def __init__(self, tables: Mapping[str, Columns]) -> None:
        self._tables = tables
        self._ranks: dict[tuple[str, tuple[str, ...]], Ints] = {}
        self._indexes: dict[tuple[str, ...], _Index] = {}

    def spans(self, rows: Columns, times: Ints, lookup: Lookup) -> Spans:
        """For each of n rows its history as [start, stop) of the returned columns."""
        index = self._index(lookup)
        entity = _find(index.codes, rows, lookup)
        absent = (entity < 0) | (times == NO_TIME)
        times = np.where(absent, 0, times)
        base = entity * (len(index.moments) + 1)
        start = np.searchsorted(index.place, base + np.searchsorted(index.moments, times - span_us(lookup)))
        stop = np.searchsorted(index.place, base + np.searchsorted(index.moments, times))
        start[absent] = stop[absent] = 0
        return index.columns, start, stop

    def _index(self, lookup: Lookup) -> _Index:
        """Lookups that differ only in their span share one index."""
        name = (lookup.table, *lookup.by, "", *lookup.columns, "", lookup.known_at)
        if name not in self._indexes:
            self._indexes[name] = self._sorted(lookup)
        return self._indexes[name]

    def _sorted(self, lookup: Lookup) -> _Index:
        source = self._tables[lookup.table]
        known_at = source[lookup.known_at]
        entity, codes = _encode(source, lookup.by)
        usable = np.flatnonzero((entity >= 0) & (known_at != NO_TIME))
        moments = np.unique(known_at[usable])
        place = entity[usable] * (len(moments) + 1) + np.searchsorted(moments, known_at[usable])
        rank, values = self._rank(source, lookup)[usable], packed(source, lookup.columns)[usable]
        order = np.lexsort((rank, place))
        if np.any((place[order][1:] == place[order][:-1]) & (rank[order][1:] == rank[order][:-1])):
            # Bytes compare as the online store's file compares them: from the first byte on, unsigned.
            bits = values.view("<u8").byteswap().T
            order = np.lexsort((*bits[::-1], rank, place))
            every = np.stack([*bits, rank.view(np.uint64), place.view(np.uint64)])[:, order]
            order = order[np.concatenate(([True], np.any(every[:, 1:] != every[:, :-1], axis=0)))]
        columns = {name: np.ascontiguousarray(values[order, at]) for at, name in enumerate(lookup.columns)}
        return _Index(columns, place[order], moments, codes)

    def _rank(self, source: Columns, lookup: Lookup) -> Ints:
        """Each row's place in the order of keys; equal for equal keys."""
        name = (lookup.table, lookup.key)
        if name not in self._ranks:
            coded = key_text(source, lookup.key).dictionary_encode()
            order = pc.sort_indices(coded.dictionary).to_numpy()
            rank = np.empty(len(order), dtype=np.int64)
            rank[order] = np.arange(len(order))
            self._ranks[name] = rank[coded.indices.to_numpy()]
        return self._ranks[name]


def _encode(source: Columns, by: Sequence[str]) -> tuple[Ints, tuple[tuple[pa.Array, Ints], ...]]:
    """One number for each combination of `by` values, -1 where one is missing, and what `_find` needs to give the same numbers."""
    entity = np.zeros(len(source[by[0]]), dtype=np.int64)
    codes = []
    for name in by:
        coded = _arrow(source[name]).dictionary_encode()
        found = coded.indices.fill_null(-1).to_numpy().astype(np.int64)
        entity = np.where((entity < 0) | (found < 0), -1, entity * len(coded.dictionary) + found)
        # Numbering anew after each column keeps the product of many columns small.
        seen, inverse = np.unique(np.append(entity, -1), return_inverse=True)
        entity = inverse[:-1] - 1
        codes.append((coded.dictionary, seen[1:]))
    return entity, tuple(codes)


def _find(codes: Sequence[tuple[pa.Array, Ints]], rows: Columns, lookup: Lookup) -> Ints:
    entity = np.zeros(len(rows[lookup.by[0]]), dtype=np.int64)
    for name, (dictionary, seen) in zip(lookup.by, codes, strict=True):
        values = _arrow(rows[name])
        if values.type != dictionary.type and len(dictionary):
            raise InvalidPipeline(
                f"{name!r} holds {_kind(rows[name])} here and something else in table {lookup.table!r}",
                "one kind of key",
                "convert one of the two before it lands",
            )
        if not len(seen):
            return np.full(len(entity), -1, dtype=np.int64)
        found = pc.index_in(values, value_set=dictionary, skip_nulls=True).fill_null(-1).to_numpy().astype(np.int64)
        entity = np.where((entity < 0) | (found < 0), -1, entity * len(dictionary) + found)
        at = np.minimum(np.searchsorted(seen, entity), len(seen) - 1)
        entity = np.where(seen[at] == entity, at, -1)
    return entity


def _arrow(values: NDArray[Any]) -> pa.Array:
    if values.dtype == object:
        return pa.array(values, pa.string(), from_pandas=True)
    if values.dtype == np.int64:
        return pa.array(values, pa.int64(), mask=values == NO_TIME)
    return pa.array(values + 0.0, pa.float64(), from_pandas=True)  # minus zero is zero


def _kind(values: NDArray[Any]) -> str:
    return {"O": "text", "i": "times"}.get(values.dtype.kind, "numbers")
