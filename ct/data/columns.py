"""Rows as numpy columns: the one form that checks, features, training and serving share. Knows neither Ray nor torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ct.errors import InvalidRequest, InvalidShard
from ct.roles import Columns

NO_TIME = int(np.iinfo(np.int64).min)
"""The missing time, in microseconds."""


def kind_of(type_: pa.DataType) -> str:
    """ "number", "text" or "time" for an Arrow type. Raises InvalidShard for any other type."""
    if pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_boolean(type_):
        return "number"
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    if pa.types.is_string(type_) or pa.types.is_large_string(type_):
        return "text"
    if pa.types.is_timestamp(type_) or pa.types.is_date(type_):
        return "time"
    raise InvalidShard(f"a column of type {type_}", "numbers, booleans, text or timestamps", "leave it out or convert it")


def kinds_of(schema: pa.Schema) -> dict[str, str]:
    """Each column's kind."""
    return {field.name: kind_of(field.type) for field in schema}


def to_columns(table: pa.Table) -> dict[str, NDArray[Any]]:
    """Arrow table of n rows → {name: array [n]}: float64 with NaN, int64 microseconds UTC with NO_TIME, or object with None.

    Raises InvalidShard for whole numbers that float64 cannot hold.
    """
    return {name: _array(table[name], name) for name in table.column_names}


def _array(column: pa.ChunkedArray, name: str) -> NDArray[Any]:
    match kind_of(column.type):
        case "number":
            try:
                return np.ascontiguousarray(column.cast(pa.float64()).to_numpy().astype(np.float64))
            except pa.ArrowInvalid as error:
                raise InvalidShard(
                    f"column {name!r}: {error}", "whole numbers up to 2^53 either way", "send such numbers as text"
                ) from None
        case "time":
            stamps = column.cast(pa.timestamp("us", tz="UTC")).cast(pa.int64())
            return np.ascontiguousarray(stamps.fill_null(NO_TIME).to_numpy())
        case _ if pa.types.is_dictionary(column.type):
            index, values = codes(column)
            found: NDArray[Any] = np.array([*values, None], dtype=object)[index]
            return found
        case _:
            return np.asarray(column.to_numpy(zero_copy_only=False), dtype=object)


class Rows(Mapping[str, NDArray[Any]]):
    """An Arrow table as columns, each of which is made when it is first asked for."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        self._made: dict[str, NDArray[Any]] = {}

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self._made:
            if name not in self.table.column_names:
                raise KeyError(name)
            self._made[name] = _array(self.table[name], name)
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.table.column_names)

    def __len__(self) -> int:
        return int(self.table.num_columns)


def count(rows: Columns) -> int:
    """The number of rows."""
    if isinstance(rows, Rows):
        return int(rows.table.num_rows)
    return len(next(iter(rows.values()))) if rows else 0


def missing(rows: Columns, name: str) -> NDArray[np.bool_]:
    """True where a column's value is missing, shape [n]."""
    if isinstance(rows, Rows):
        return np.asarray(pc.is_null(rows.table[name], nan_is_null=True).to_numpy(), dtype=np.bool_)
    values = rows[name]
    if values.dtype == object:
        return np.asarray(pc.is_null(pa.array(values, pa.string())).to_numpy(zero_copy_only=False), dtype=np.bool_)
    return np.asarray(np.isnan(values) if values.dtype.kind == "f" else values == NO_TIME, dtype=np.bool_)


def is_text(rows: Columns, name: str) -> bool:
    """Is it a column of texts?"""
    if isinstance(rows, Rows):
        return kind_of(rows.table[name].type) == "text"
    return bool(rows[name].dtype == object)


def texts(rows: Columns, name: str) -> pa.ChunkedArray:
    """A column of texts in Arrow, plain or dictionary-encoded."""
    if isinstance(rows, Rows):
        return rows.table[name]
    return pa.chunked_array([pa.array(rows[name], pa.string(), from_pandas=True)])


def codes(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], list[str]]:
    """Texts as places in the list of distinct ones; -1 where missing, so that a value appended to the list stands for those."""
    encoded = column.unify_dictionaries() if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    if not encoded.num_chunks:
        return np.empty(0, dtype=np.int64), []
    parts = [chunk.indices.fill_null(-1).to_numpy(zero_copy_only=False) for chunk in encoded.chunks]
    return np.concatenate(parts).astype(np.int64), encoded.chunk(0).dictionary.to_pylist()


def from_rows(
    rows: Sequence[Mapping[str, Any]],
    kinds: Mapping[str, str],
    *,
    optional: frozenset[str] = frozenset(),
    times: Sequence[str] = (),
) -> dict[str, NDArray[Any]]:
    """JSON rows → columns as `to_columns` makes them. `optional` columns may be absent from a row and are then missing; `times` must be there.

    Raises InvalidRequest naming the first field that is absent, unknown or of another type. null is a missing value.
    """
    for index, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise _no_row(row, index)
        if row.keys() != kinds.keys():
            _fields(index, row, kinds, optional)
    made: dict[str, NDArray[Any]] = {}
    for name, kind in kinds.items():
        read = _READERS[kind]
        values = [None if (value := row.get(name)) is None else read(value, name, index) for index, row in enumerate(rows)]
        made[name] = column_of(values, kind)
    for name in times:
        if len(absent := np.flatnonzero(made[name] == NO_TIME)):
            raise _no_time(name, int(absent[0]))
    return made


def from_row(row: object, kinds: Mapping[str, str], *, times: Sequence[str] = ()) -> dict[str, Any]:
    """One JSON row → plain values, None for missing; `column_of` makes of them what `from_rows` makes of the row. `times` must be there.

    Raises InvalidRequest as `from_rows` does.
    """
    if not isinstance(row, Mapping):
        raise _no_row(row, 0)
    if row.keys() != kinds.keys():
        _fields(0, row, kinds, frozenset())
    made = {name: None if (value := row[name]) is None else _READERS[kind](value, name, 0) for name, kind in kinds.items()}
    for name in times:
        if made[name] is None:
            raise _no_time(name, 0)
    return made


def column_of(values: Sequence[Any], kind: str) -> NDArray[Any]:
    """Plain values of one kind, None for missing, as a column."""
    if kind == "text":
        column = np.empty(len(values), dtype=object)
        column[:] = values
        return column
    if kind == "time":
        return np.array([NO_TIME if value is None else value for value in values], dtype=np.int64)
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _fields(index: int, row: Mapping[str, Any], kinds: Mapping[str, str], optional: frozenset[str]) -> None:
    for name in row:
        if name not in kinds:
            raise InvalidRequest(
                f"row {index} has the unknown field {name!r}",
                f"fields {sorted(kinds)}",
                "leave it out",
                field=f"{index}.{name}",
            )
    for name in kinds:
        if name not in row and name not in optional:
            raise InvalidRequest(
                f"row {index} lacks the field {name!r}",
                f"fields {sorted(kinds)}",
                "add it; null means missing",
                field=f"{index}.{name}",
            )


def _no_row(row: object, index: int) -> InvalidRequest:
    return InvalidRequest(
        f"row {index} is {type(row).__name__}", "an object of fields", "send one object a row", field=str(index)
    )


def _no_time(name: str, index: int) -> InvalidRequest:
    return InvalidRequest(f"row {index} has no {name!r}", "the event time", "send it", field=f"{index}.{name}")


def _number(value: Any, name: str, index: int) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _wrong(value, name, index, "a number")
    if not math.isfinite(value):
        raise _wrong(value, name, index, "a finite number")
    return float(value)


def _text(value: Any, name: str, index: int) -> str:
    if not isinstance(value, str):
        raise _wrong(value, name, index, "a text")
    return value


def _time(value: Any, name: str, index: int) -> int:
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise _wrong(value, name, index, "a time with its zone, such as 2013-04-01T10:00:00Z")
    return round(moment.timestamp() * 1_000_000)


def _wrong(value: Any, name: str, index: int, expected: str) -> InvalidRequest:
    shown = repr(value)
    return InvalidRequest(
        f"field {name!r} of row {index} is {shown[:80]}",
        expected,
        "send the declared type, or null for missing",
        field=f"{index}.{name}",
    )


_READERS = {"number": _number, "text": _text, "time": _time}
