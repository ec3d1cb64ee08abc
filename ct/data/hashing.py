"""A 64-bit hash of a row's values, whole columns at a time: names entities, breaks ties, draws samples. Not for secrets.

Equal values have equal hashes on every machine; different ones share one with a chance of 2^-64 a pair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ct.data.columns import Rows, count, is_text, kind_of, texts, to_columns
from ct.roles import Columns

Words = NDArray[np.uint64]
_SEED = np.uint64(0x9E3779B97F4A7C15)
_STEP = np.uint64(0xD6E8FEB86659FD93)
_MISSING = np.uint64(0xA0761D6478BD642F)
_BLOCK = 1 << 14
"""Rows whose words stay in the processor's cache."""


def row_hash(rows: Columns | Mapping[str, pa.Array], names: Sequence[str]) -> NDArray[np.int64]:
    """Each row's values of `names` as one signed 64-bit number, shape [n]. A missing value is a value of its own.

    A column is an array of `roles.Columns` or an Arrow array; both have the same hashes.
    """
    with np.errstate(over="ignore"):
        total = np.full(count(rows), _SEED)
        for name in names:
            lazy = isinstance(rows, Rows) and is_text(rows, name)
            total = _mixed(total * _STEP + (_chunks(texts(rows, name)) if lazy else _column(rows[name])))
        return total.view(np.int64)


def text_hash(values: pa.Array) -> Words:
    """The hash of each text of an Arrow string array, shape [n]."""
    with np.errstate(over="ignore"):
        return _texts(values)


def _column(values: NDArray[Any] | pa.Array) -> Words:
    if isinstance(values, pa.Array):
        if pa.types.is_dictionary(values.type):
            words: Words = np.append(_texts(values.dictionary), _MISSING)
            found: Words = words[values.indices.fill_null(len(words) - 1).to_numpy()]
            return found
        if kind_of(values.type) == "text":
            return _texts(values)
        values = to_columns(pa.table({"": values}))[""]
    if values.dtype == object:
        return _texts(pa.array(values, pa.string(), from_pandas=True))
    if values.dtype == np.int64:
        return np.where(values == np.iinfo(np.int64).min, _MISSING, _mixed(values.view(np.uint64) ^ _SEED))
    numbers = values.astype(np.float64) + 0.0  # minus zero is zero
    return np.where(np.isnan(numbers), _MISSING, _mixed(numbers.view(np.uint64) ^ _SEED))


def _chunks(column: pa.ChunkedArray) -> Words:
    return np.concatenate([np.empty(0, dtype=np.uint64), *(_texts(chunk) for chunk in column.chunks)])


def _texts(values: pa.Array) -> Words:
    """Eight bytes at a time: every text's k-th word is mixed in for all texts that have one."""
    if pa.types.is_dictionary(values.type):
        distinct: Words = np.append(_texts(values.dictionary), _MISSING)
        return distinct[np.asarray(values.indices.fill_null(-1).to_numpy(zero_copy_only=False), dtype=np.int64)]
    values = values.cast(pa.large_string())
    _, offsets, data = values.buffers()
    bounds = np.frombuffer(offsets, dtype=np.int64)[values.offset : values.offset + len(values) + 1]
    words = _words(data, int(bounds[0]), int(bounds[-1]))
    bounds = bounds - bounds[0]
    found = np.empty(len(values), dtype=np.uint64)
    for at in range(0, len(values), _BLOCK):
        found[at : at + _BLOCK] = _mixed_in(words, bounds[at : at + _BLOCK + 1])
    if values.null_count:
        found[values.is_null().to_numpy(zero_copy_only=False)] = _MISSING
    return found


def _mixed_in(words: Words, bounds: NDArray[np.int64]) -> Words:
    start, size = bounds[:-1], np.diff(bounds)
    found, shortest = _mixed(size.astype(np.uint64) ^ _SEED), int(size.min()) if len(size) else 0
    for at in range(0, int(size.max(initial=0)), 8):
        if at < shortest:  # every text goes on
            found = _mixed(found * _STEP + _word(words, start + at, size - at))
            continue
        rows = np.flatnonzero(size > at)
        found[rows] = _mixed(found[rows] * _STEP + _word(words, start[rows] + at, size[rows] - at))
    return found


def _words(data: pa.Buffer | None, start: int, stop: int) -> Words:
    """The eight bytes from each byte of [start, stop) on, zeros behind the end."""
    raw = np.zeros(stop - start + 8, dtype=np.uint8)
    if data is not None and stop > start:
        raw[: stop - start] = np.frombuffer(data, dtype=np.uint8, count=stop - start, offset=start)
    return np.ndarray(shape=(stop - start + 1,), dtype="<u8", buffer=raw, strides=(1,))


def _word(words: Words, start: NDArray[np.int64], left: NDArray[np.int64]) -> Words:
    """Up to eight bytes from byte `start` on, those past the text's end as zero."""
    found: Words = words[start]
    if not len(left) or left.min() >= 8:
        return found
    kept = np.clip(left, 0, 8).astype(np.uint64) << np.uint64(3)
    # A shift by 64 is no shift at all on most machines.
    return found & np.where(kept >= 64, ~np.uint64(0), (np.uint64(1) << (kept & np.uint64(63))) - np.uint64(1))


def _mixed(values: Words) -> Words:
    """The finalizer of SplitMix64 (Steele, Lea, Flood 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
