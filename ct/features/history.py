"""History out of tables in memory: rows sorted once by entity and known-at, then found by binary search for whole columns of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ct.data.columns import NO_TIME
from ct.errors import InvalidPipeline
from ct.features.frame import coded, key_hash
from ct.features.transform import Spans, kept, kind, numbers, packed, span_us
from ct.roles import Columns, Lookup

Ints = NDArray[np.int64]
_Codes = tuple[tuple[pa.Array, Ints | None], ...]
_MOST = 1 << 62


@dataclass(frozen=True)
class _Places:
    """Entity and moment as one number that sorts by both. A moment counts in steps of `step` from `low`, or by its rank in `ranks` where
    that would not fit."""

    low: int
    width: int
    step: int
    ranks: Ints | None

    @staticmethod
    def of(moments: Ints, entities: int) -> _Places:
        low = int(moments.min()) if len(moments) else 0
        width = int(moments.max()) - low + 2 if len(moments) else 2
        most = _MOST // max(entities, 1)
        if width <= most:
            return _Places(low, width, 1, None)
        step = max(int(np.gcd.reduce(moments - low)), 1)
        if width // step + 2 <= most:
            return _Places(low, width // step + 2, step, None)
        ranks = np.unique(moments)
        return _Places(0, len(ranks) + 1, 1, ranks)

    def at(self, entity: Ints, moments: Ints) -> Ints:
        """The first place of an entity that is not before a moment."""
        if self.ranks is not None:
            offset: Ints = np.searchsorted(self.ranks, moments).astype(np.int64)
        else:
            # Bounded before the subtraction, which could be beyond 64 bits.
            high = self.low + (self.width - 1) * self.step
            offset = np.minimum(np.maximum(moments, self.low), high) - self.low
            if self.step > 1:
                offset = (offset + (self.step - 1)) // self.step
        return entity * self.width + offset


@dataclass(frozen=True)
class _Index:
    """A table's rows by entity (there are at most `entities`) and known-at: `place` is sorted, `columns` stand in the same order."""

    columns: Columns
    place: Ints
    entities: int
    places: _Places
    codes: _Codes


@dataclass(frozen=True)
class _Asked:
    """The rows that were asked about last, so that features of the same rows share the search."""

    rows: Columns
    times: Ints
    entities: dict[tuple[object, ...], Ints]
    found: dict[tuple[tuple[object, ...], int], Ints]


class TableHistory:
    """History out of whole tables in memory. `tables` maps a table's name to its columns, in any row order."""

    def __init__(self, tables: Mapping[str, Columns]) -> None:
        self._tables = tables
        self._indexes: dict[tuple[object, ...], _Index] = {}
        self._asked = _Asked({}, np.empty(0, np.int64), {}, {})

    def spans(self, rows: Columns, times: Ints, lookup: Lookup) -> Spans:
        """For each of n rows its history as [start, stop) of the returned columns."""
        index = self._index(lookup)
        return index.columns, self._search(rows, times, lookup, span_us(lookup)), self._search(rows, times, lookup, 0)

    def order(self, rows: Columns, times: Ints, lookup: Lookup) -> Ints:
        """The rows by entity and time: in this order the search for their spans touches each part of the history once."""
        entities = self._index(lookup).entities
        return _by_entity(self._entity(rows, times, lookup), entities, times)

    def _search(self, rows: Columns, times: Ints, lookup: Lookup, back: int) -> Ints:
        """The place in the index of each row's time less `back` microseconds."""
        entity, name = self._entity(rows, times, lookup), (_name(lookup), back)
        if name not in self._asked.found:
            index = self._index(lookup)
            absent = (entity < 0) | (times == NO_TIME)
            if absent.any():
                places = index.places.at(np.where(absent, 0, entity), np.where(absent, index.places.low, times) - back)
                found = np.where(absent, 0, np.searchsorted(index.place, places))
            else:
                found = np.searchsorted(index.place, index.places.at(entity, times - back))
            self._asked.found[name] = found
        return self._asked.found[name]

    def _entity(self, rows: Columns, times: Ints, lookup: Lookup) -> Ints:
        if self._asked.rows is not rows or self._asked.times is not times:
            self._asked = _Asked(rows, times, {}, {})
        name = _name(lookup)
        if name not in self._asked.entities:
            self._asked.entities[name] = _find(self._index(lookup).codes, rows, lookup)
        return self._asked.entities[name]

    def _index(self, lookup: Lookup) -> _Index:
        """Lookups that differ only in their span share one index."""
        name = _name(lookup)
        if name not in self._indexes:
            self._indexes[name] = _sorted(self._tables[lookup.table], lookup)
        return self._indexes[name]


def _name(lookup: Lookup) -> tuple[object, ...]:
    return (lookup.table, lookup.by, lookup.columns, lookup.known_at, lookup.key, lookup.where)


def _sorted(source: Columns, lookup: Lookup) -> _Index:
    known_at = source[lookup.known_at]
    usable = known_at != NO_TIME
    if lookup.where:
        usable &= kept(source, lookup)
    entity, entities, codes = _encode(source, lookup.by)
    usable &= entity >= 0
    at = _by_entity(entity, entities, known_at)
    at = at if usable.all() else at[usable[at]]
    places = _Places.of(known_at[at], entities)
    place = places.at(entity[at], known_at[at])
    tied = place[1:] == place[:-1]
    if tied.any():
        at, place = _untied(source, lookup, at, place, np.append(tied, False) | np.append(False, tied))
    values = [numbers(source, name) for name in lookup.columns]
    columns = {name: values[column][at] for column, name in enumerate(lookup.columns)} | {lookup.known_at: known_at[at]}
    return _Index(columns, place, entities, places, codes)


def _by_entity(entity: Ints, entities: int, moments: Ints) -> Ints:
    """The rows by entity, then moment. Counting sort on two bytes at a time, which numpy's stable sort is for short integers."""
    order: Ints | None = None
    if (moments[1:] < moments[:-1]).any():
        order = np.argsort(moments, kind="stable")
    for shift in range(0, max(entities - 1, 1).bit_length(), 16):
        digits = (entity >> shift).astype(np.uint16)
        step = np.argsort(digits if order is None else digits[order], kind="stable")
        order = step if order is None else order[step]
    assert order is not None
    return order


def _untied(source: Columns, lookup: Lookup, at: Ints, place: Ints, tied: NDArray[np.bool_]) -> tuple[Ints, Ints]:
    """Rows of one place in the order of their key's hash, then of their values; of equal ones the first only."""
    where = np.flatnonzero(tied)
    hashes = key_hash(source, lookup.key)[at[where]]
    order = np.lexsort((hashes, place[where]))
    at[where], hashes = at[where][order], hashes[order]
    equal = (hashes[1:] == hashes[:-1]) & (place[where][1:] == place[where][:-1])
    if not equal.any():
        return at, place
    same = np.flatnonzero(np.append(equal, False) | np.append(False, equal))
    where, hashes = where[same], hashes[same]
    # Bytes compare as the online store's file compares them: from the first byte on, unsigned.
    bits = packed(source, lookup.columns)[at[where]].view("<u8").byteswap().T
    order = np.lexsort((*bits[::-1], hashes, place[where]))
    at[where] = at[where][order]
    every = np.stack([*bits[:, order], hashes[order].view(np.uint64), place[where].view(np.uint64)])
    left = np.ones(len(at), dtype=np.bool_)
    left[where[1:][np.all(every[:, 1:] == every[:, :-1], axis=0)]] = False
    return at[left], place[left]


def _encode(source: Columns, by: Sequence[str]) -> tuple[Ints, int, _Codes]:
    """One number for each combination of `by` values, -1 where one is missing; how many there may be; and what `_find` needs."""
    entity, entities = np.zeros(len(source[by[0]]), dtype=np.int64), 1
    codes: list[tuple[pa.Array, Ints | None]] = []
    for name in by:
        found, values = coded(source, name)
        entity = _joined(entity, found, len(values)) if codes else found
        entities, seen = entities * max(len(values), 1), None
        if entities > 1 << 31:
            # Numbering anew keeps the product of many columns small.
            seen, inverse = np.unique(np.append(entity, -1), return_inverse=True)
            entity, seen = inverse[:-1] - 1, seen[1:]
            entities = max(len(seen), 1)
        codes.append((values, seen))
    return entity, entities, tuple(codes)


def _joined(entity: Ints, found: Ints, count: int) -> Ints:
    """Two numbers as one; -1 where either is."""
    both: Ints = entity * count + found
    absent = (entity < 0) | (found < 0)
    return np.where(absent, -1, both) if absent.any() else both


def _find(codes: _Codes, rows: Columns, lookup: Lookup) -> Ints:
    """The same numbers for other rows, -1 for combinations that the table does not have."""
    entity: Ints | None = None
    for name, (values, seen) in zip(lookup.by, codes, strict=True):
        found, different = coded(rows, name)
        if values.type != different.type and len(values) and len(different):
            raise InvalidPipeline(
                f"{name!r} holds {kind(rows[name])} here and something else in table {lookup.table!r}",
                "one kind of key",
                "convert one of the two before it lands",
            )
        known = pc.index_in(different, value_set=values.cast(different.type)).fill_null(-1).to_numpy().astype(np.int64)
        found = np.append(known, -1)[found]
        entity = found if entity is None else _joined(entity, found, len(values))
        if seen is not None:
            at = np.minimum(np.searchsorted(seen, entity), max(len(seen) - 1, 0))
            entity = np.where(seen[at] == entity, at, -1) if len(seen) else np.full(len(entity), -1)
    assert entity is not None, "a lookup has at least one column in `by`"
    return entity
