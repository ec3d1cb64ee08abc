"""The contract of a table's columns: how a shard's differ from it, by kind, and what the table's policy makes of each difference.

Only casts that lose nothing are made. What would have to be guessed is asked.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

import pyarrow as pa
import pyarrow.compute as pc

from ct.data.checks import Reason
from ct.data.columns import codes, kind_of
from ct.pipeline import Table
from ct.roles import Past

REJECT, WARN = "reject", "warn"
_ALIKE = 0.6
_SHOWN = 5


@dataclass(frozen=True)
class Difference:
    """One way in which a shard differs from the contract.

    `kind` is "added", "missing", "widened", "narrowed", "retyped", "renamed", "nullability", "category" or "first" (it cannot set a
    contract); `action` is "reject", "warn", "cast", "null", "ignore" or "accept".
    """

    kind: str
    column: str
    found: str
    action: str
    rows: int = 0

    @property
    def reason(self) -> Reason:
        """The difference as a reason."""
        return Reason("schema" if self.kind != "category" else f"{self.column} known", self.found, self.rows)


@dataclass(frozen=True)
class Conformed:
    """A shard's rows in the contract's columns, the contract as it is with them, and the differences there were."""

    rows: pa.Table
    schema: pa.Schema
    differences: tuple[Difference, ...] = ()

    @property
    def refused(self) -> tuple[Reason, ...]:
        """Why the shard is refused."""
        return tuple(item.reason for item in self.differences if item.action == REJECT)

    @property
    def warnings(self) -> tuple[Reason, ...]:
        """What is only worth a warning."""
        return tuple(item.reason for item in self.differences if item.action == WARN)


def conform(rows: pa.Table, contract: pa.Schema | None, table: Table, past: Past, lacking: Collection[str] = ()) -> Conformed:
    """The rows as the contract wants them, by the table's policy; without a contract, the one that they set.

    `lacking` names the columns of which published rows lack values.
    """
    names = {new: old for new, old in table.policy.renames.items() if old and old not in rows.column_names}
    rows = rows.rename_columns([names.get(name, name) for name in rows.column_names])
    if contract is None:
        faults = tuple(_first_faults(rows.schema, table))
        schema = pa.schema([(field.name, _plain(field.type)) for field in rows.schema])
        return Conformed(rows, schema, faults)
    shape = [*_columns(rows, contract, table, past), *_types(rows, contract, table)]
    if any(item.action == REJECT for item in shape):
        return Conformed(rows, contract, tuple(shape))
    schema = contract
    for item in shape:
        if item.kind == "added" and item.action == "accept":
            schema = schema.append(pa.field(item.column, _plain(rows[item.column].type)))
    rows = pa.table({field.name: _column(rows, field) for field in schema})
    return Conformed(rows, schema, (*shape, *_values(rows, contract, table, past, lacking)))


def _first_faults(schema: pa.Schema, table: Table) -> Iterator[Difference]:
    """What keeps a first shard from setting the contract."""
    needed = {*table.keys, table.time, *table.slices, *(name for check in table.checks for name in check.columns())}
    for name in sorted(needed - set(schema.names)):
        found = f"column {name!r} is missing; expected the columns that the pipeline names"
        yield Difference("first", name, found, REJECT)
    if table.time in schema.names and _kind(schema.field(table.time).type) not in ("time", "null"):
        found = f"column {table.time!r} has type {_plain(schema.field(table.time).type)}; expected timestamps in UTC"
        yield Difference("first", table.time, found, REJECT)
    for field in schema:
        if pa.types.is_null(field.type):
            yield Difference(
                "first", field.name, f"column {field.name!r} has no value at all; expected some, to tell its type", REJECT
            )


def _kind(type_: pa.DataType) -> str:
    return "null" if pa.types.is_null(type_) else kind_of(type_)


def _columns(rows: pa.Table, contract: pa.Schema, table: Table, past: Past) -> Iterator[Difference]:
    """Columns added, missing, or both and alike."""
    added = [name for name in rows.column_names if name not in contract.names]
    missing = [field for field in contract if field.name not in rows.column_names]
    asked = [name for name in added if name not in table.policy.renames]
    pairs = [(field.name, name) for field in missing for name in asked if _alike(field, name, rows, past)]
    for old, new in pairs:
        found = (
            f"column {old!r} is missing and {new!r} is new, and they look alike; expected the columns of the contract, or an answer: "
            f"policy=ct.SchemaPolicy(renames={{{new!r}: {old!r}}}) if it is the same, renames={{{new!r}: ''}} if not"
        )
        yield Difference("renamed", old, found, REJECT)
    for name in added:
        if name not in [new for _, new in pairs]:
            found = f"unknown column {name!r}; expected the columns {', '.join(contract.names)}"
            empty = pa.types.is_null(rows[name].type)
            yield Difference("added", name, found, "ignore" if empty and table.policy.added == "accept" else table.policy.added)
    for field in missing:
        if field.name not in [old for old, _ in pairs]:
            found = f"column {field.name!r} is missing; expected a column of type {field.type}"
            needed = field.name in (*table.keys, table.time)
            yield Difference("missing", field.name, found, REJECT if needed else table.policy.missing, rows.num_rows)


def _types(rows: pa.Table, contract: pa.Schema, table: Table) -> Iterator[Difference]:
    """Columns of another type."""
    for field in contract:
        if field.name not in rows.column_names:
            continue
        column = rows[field.name]
        have = _plain(column.type)
        if have == field.type or pa.types.is_null(have):
            continue
        found = f"column {field.name!r} has type {have}; expected type {field.type}"
        kind = _change(have, field.type)
        action = {"widened": table.policy.widened, "narrowed": table.policy.narrowed}.get(kind, REJECT)
        if action == "cast" and _cast(column, field.type) is None:
            found, action = f"{found}, or values that it can hold unchanged", REJECT
        yield Difference(kind, field.name, found, action)


def _change(have: pa.DataType, wanted: pa.DataType) -> str:
    whole, fraction = pa.types.is_integer, pa.types.is_floating
    if whole(have) and fraction(wanted):
        return "widened"
    return "narrowed" if fraction(have) and whole(wanted) else "retyped"


def _values(rows: pa.Table, contract: pa.Schema, table: Table, past: Past, lacking: Collection[str]) -> Iterator[Difference]:
    """Values missing where none ever was, and texts that never were. Neither is asked of the key; NotNull guards that."""
    for field in contract:
        name, column = field.name, rows[field.name]
        if name in (*table.keys, table.time):
            continue
        absent = int(pc.sum(pc.is_null(column, nan_is_null=True)).as_py() or 0)
        if absent and name not in lacking:
            found = (
                f"column {name!r} lacks {absent:,} of {len(column):,} values and never lacked one; expected a value in each row"
            )
            yield Difference("nullability", name, found, table.policy.nullability, absent)
        if table.policy.category != "accept" and pa.types.is_string(field.type) and (known := past.values(name)) is not None:
            index, distinct = codes(column)
            fresh = {at: value for at, value in enumerate(distinct) if value is not None and value not in known}
            if fresh:
                told = "" if any(part.column == name for part in table.personal) else f": {_shown(sorted(fresh.values()))}"
                found = f"column {name!r} has {len(fresh)} new value(s){told}; expected those of earlier shards"
                yield Difference("category", name, found, table.policy.category, int(sum((index == at).sum() for at in fresh)))


def _shown(values: Sequence[str]) -> str:
    more = f" and {len(values) - _SHOWN} more" if len(values) > _SHOWN else ""
    return ", ".join(repr(value[:40]) for value in values[:_SHOWN]) + more


def _alike(field: pa.Field, name: str, rows: pa.Table, past: Past) -> bool:
    """Could the new column be the missing one under another name? By type, then by name or by what it holds."""
    if _kind(rows[name].type) not in (kind_of(field.type), "null"):
        return False
    if SequenceMatcher(None, field.name.lower(), name.lower()).ratio() >= _ALIKE:
        return True
    if pa.types.is_string(field.type):
        known, distinct = past.values(field.name), {value for value in codes(rows[name])[1] if value is not None}
        return bool(known and distinct) and len(distinct & (known or set())) >= 0.8 * len(distinct)
    if kind_of(field.type) != "number":
        return False
    known_range = past.quantiles(field.name, 0.25, 0.5, 0.75)
    values = rows[name].cast(pa.float64(), safe=False)
    middle = pc.quantile(values, [0.25, 0.5, 0.75]).to_pylist()
    if known_range is None or middle[0] is None:
        return False
    spread = max(known_range[2] - known_range[0], 1e-9 * abs(known_range[1]))
    return all(abs(a - b) <= 0.3 * spread for a, b in zip(known_range, middle, strict=True))


def _column(rows: pa.Table, field: pa.Field) -> pa.ChunkedArray:
    if field.name not in rows.column_names:
        return pa.chunked_array([pa.nulls(rows.num_rows, field.type)])
    column = rows[field.name]
    return column if _plain(column.type) == field.type else _cast(column, field.type)


def _cast(column: pa.ChunkedArray, wanted: pa.DataType) -> pa.ChunkedArray | None:
    """The column as `wanted`, if no value changes; else None."""
    try:
        return column.cast(wanted)
    except pa.ArrowInvalid:
        return None


def _plain(type_: pa.DataType) -> pa.DataType:
    return type_.value_type if pa.types.is_dictionary(type_) else type_
