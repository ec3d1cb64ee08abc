"""The one transformation: rows, times and history in, feature columns out. Training and serving both call `transform`, nothing else.

History is a set: rows of one entity in the order of known-at, then of the hash of their key, then of their values; a row that arrives
twice counts once. `history.TableHistory` serves it out of whole tables, the online store out of what it was told; both give the
same rows in the same order.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ct.errors import InvalidPipeline
from ct.features.frame import Frame, arrow, coded
from ct.roles import Columns, Feature, History, Lookup

Ints = NDArray[np.int64]
Spans = tuple[Columns, Ints, Ints]
"""A history: columns [m], and for each of n rows where its part of them starts and stops."""
OPERATORS = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


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
            f"column {name!r} holds {kind(values)}", "numbers", "use ct.category for text, ct.cyclic for times"
        )
    return values


def texts(rows: Columns, name: str) -> NDArray[Any]:
    """A column as text, object [n] with None; whole numbers without a point. Raises InvalidPipeline for times."""
    values = rows[name]
    if values.dtype == object:
        return values
    different, place = np.unique(numbers(rows, name), return_inverse=True)
    made = np.empty(len(different), dtype=object)
    made[:] = [
        None if value != value else str(int(value)) if value.is_integer() else repr(value) for value in different.tolist()
    ]
    found: NDArray[Any] = made[place]
    return found


def kept(rows: Columns, lookup: Lookup) -> NDArray[np.bool_]:
    """True where a row of the table counts for a lookup by its `where`, shape [n]. A missing value never does."""
    held = np.ones(len(rows[lookup.known_at]), dtype=np.bool_)
    for name, sign, wanted in lookup.where:
        if isinstance(wanted, str):
            codes, values = coded(rows, name)
            if not pa.types.is_string(values.type) and len(values):
                raise InvalidPipeline(f"where compares {name!r} with text", "a number", f"column {name!r} holds no text")
            meets = np.array([OPERATORS[sign](value, wanted) for value in values.to_pylist()] + [False], dtype=np.bool_)
            held &= meets[codes]
        else:
            values = numbers(rows, name)
            held &= OPERATORS[sign](values, wanted) & ~np.isnan(values)
    return held


def key_text(rows: Columns, names: Sequence[str]) -> pa.Array:
    """Each row's values of `names` as one text, joined by "|"; a missing value is empty."""
    parts = [_plain(rows, name).cast(pa.string()).fill_null("") for name in names]
    return parts[0] if len(parts) == 1 else pc.binary_join_element_wise(*parts, "|")


def _plain(rows: Columns, name: str) -> pa.Array:
    if isinstance(rows, Frame) and pa.types.is_string(rows.arrow(name).type):
        return rows.arrow(name)
    return arrow(rows[name])


def packed(rows: Columns, names: Sequence[str]) -> NDArray[np.float64]:
    """Columns of numbers side by side, [n, len(names)], with one spelling of missing, so that equal rows have equal bytes."""
    made = np.stack([np.asarray(numbers(rows, name), dtype="<f8") for name in names], axis=1)
    made[np.isnan(made)] = np.nan
    return made


def kind(values: NDArray[Any]) -> str:
    """What an array of `roles.Columns` holds, for messages."""
    return {"O": "text", "i": "times"}.get(values.dtype.kind, "numbers")
