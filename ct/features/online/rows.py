"""What an online store holds: the rows that lookups read, each as the bytes by which it is ordered. Knows no store.

A row is known-at and tie as big-endian numbers that sort as bytes do, then its numbers: equal rows are equal bytes, and the order
of the bytes is the order of `history.TableHistory`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ct.data.columns import NO_TIME
from ct.features.frame import key_hash
from ct.features.transform import kept, packed, span_us
from ct.ids import canonical
from ct.roles import Columns, Lookup

Ints = NDArray[np.int64]
Key: TypeAlias = tuple[str, str]
"""A source's name and an entity."""
Entry: TypeAlias = tuple[str, bytes]
"""An entity and a row."""
_SIGN = np.uint64(1 << 63)


@dataclass(frozen=True)
class Source:
    """What lookups that differ only in their span have in common: one set of rows by entity. `reach` is the longest span, in microseconds."""

    name: str
    lookup: Lookup
    reach: int

    @property
    def width(self) -> int:
        """Numbers a row."""
        return len(self.lookup.columns)


@dataclass(frozen=True)
class Freshness:
    """How new what a store holds of a source is. In microseconds UTC: the longest span that was asked for, the newest known-at, when a
    row last came in, and the known-at before which rows were trimmed (0 for none)."""

    name: str
    reach: int
    newest: int
    stored: int
    trimmed: int

    def about(self) -> dict[str, Any]:
        """What the source is made of: table, by, columns, known_at, where."""
        table, by, columns, known_at, _, where = json.loads(self.name)
        return {"table": table, "by": by, "columns": columns, "known_at": known_at, "where": where}

    @property
    def title(self) -> str:
        """The source in a few words, without quotes."""
        about = self.about()
        only = "".join(f" where {column} {sign} {value}" for column, sign, value in about["where"])
        made = f"{about['table']} by {'+'.join(about['by'])}: {', '.join(about['columns'])} known at {about['known_at']}{only}"
        return made.replace("\\", "/").replace('"', "'").replace("\n", " ")


@dataclass(frozen=True)
class Block:
    """The rows of one entity, m of them in order: known-at [m], ties [m], values [k, m]. It is never changed."""

    known: Ints
    ties: Ints
    values: NDArray[np.float64]

    @property
    def size(self) -> int:
        """About how many bytes of memory it takes."""
        return 400 + self.known.nbytes + self.ties.nbytes + self.values.nbytes

    def merged(self, rows: Iterable[bytes]) -> Block:
        """With more rows; one that is there already changes nothing."""
        made = self
        for row in sorted(set(rows)):
            (moment,), (tie,), values = _parts(np.frombuffer(row, _dtype(len(self.values))))
            at = int(made.known.searchsorted(moment))
            end = int(made.known.searchsorted(moment, side="right"))
            if at < end:
                equal = made.rows(at, end)
                if row in equal:
                    continue
                at += sum(known < row for known in equal)
            made = Block(
                np.insert(made.known, at, moment),
                np.insert(made.ties, at, tie),
                np.insert(made.values, at, values[:, 0], axis=1),
            )
        return made

    def rows(self, start: int, stop: int) -> list[bytes]:
        """Some of its rows as bytes."""
        return encoded(self.known[start:stop], self.ties[start:stop], self.values[:, start:stop].T)


def block_of(rows: Iterable[bytes], width: int) -> Block:
    """The block of an entity's rows, in any order, each once."""
    return Block(*_parts(np.frombuffer(b"".join(sorted(rows)), _dtype(width))))


def _dtype(width: int) -> np.dtype[Any]:
    return np.dtype([("known", ">u8"), ("tie", ">u8"), ("values", "<f8", (width,))])


def _parts(found: NDArray[Any]) -> tuple[Ints, Ints, NDArray[np.float64]]:
    known, ties = ((found[name].astype(np.uint64) ^ _SIGN).view(np.int64) for name in ("known", "tie"))
    return known, ties, np.ascontiguousarray(found["values"].T.astype(np.float64))


def encoded(known: Ints, ties: Ints, values: NDArray[np.float64]) -> list[bytes]:
    """Rows as bytes: known-at [n], ties [n], values [n, k]."""
    made = np.empty(len(known), _dtype(values.shape[1]))
    made["known"], made["tie"], made["values"] = known.view(np.uint64) ^ _SIGN, ties.view(np.uint64) ^ _SIGN, values
    data, size = made.tobytes(), made.dtype.itemsize
    return [data[at : at + size] for at in range(0, len(data), size)]


def border(moment: int) -> bytes:
    """Less than every row that became known at `moment` or later, and not less than any other."""
    low, high = np.iinfo(np.int64).min, np.iinfo(np.int64).max
    return (min(max(moment, low), high) + (1 << 63)).to_bytes(8, "big")


def tie_bytes(ties: Ints) -> frozenset[bytes]:
    """Ties as they stand in rows, from byte 8 to 16."""
    return frozenset(int(tie).to_bytes(8, "big") for tie in (ties.view(np.uint64) ^ _SIGN))


def sources_of(lookups: Sequence[Lookup]) -> tuple[Source, ...]:
    """The sources of some lookups, each once, with the longest span among them."""
    found: dict[str, Source] = {}
    for lookup in lookups:
        name = name_of(lookup)
        reach = max(span_us(lookup), found[name].reach if name in found else 0)
        found[name] = Source(name, lookup, reach)
    return tuple(found.values())


def name_of(lookup: Lookup) -> str:
    """The source's name: all of the lookup but its span."""
    return canonical([lookup.table, lookup.by, lookup.columns, lookup.known_at, lookup.key, lookup.where])


def entries(lookup: Lookup, rows: Columns) -> list[Entry]:
    """The rows that count for a lookup, ordered. Rows without known-at or entity, and those that break `where`, are left out.

    Raises InvalidPipeline when a number's column holds something else.
    """
    names = entities(rows, lookup.by)
    values, known = packed(rows, lookup.columns), rows[lookup.known_at]
    usable = known != NO_TIME
    if lookup.where:
        usable &= kept(rows, lookup)
    made = encoded(known, key_hash(rows, lookup.key), values)
    found = [(name, row) for name, row, good in zip(names, made, usable.tolist(), strict=True) if good and name is not None]
    return sorted(found)


def entities(rows: Columns, by: Sequence[str]) -> list[str | None]:
    """Each row's entity as one text, None where a part is missing. Different entities have different texts."""
    columns = [_texts(rows[name]) for name in by]
    if len(columns) == 1:
        return columns[0]
    return [
        None if None in values else "".join(f"{len(value)}:{value}" for value in values if value is not None)
        for values in zip(*columns, strict=True)
    ]


def _texts(values: NDArray[Any]) -> list[str | None]:
    kind, plain = values.dtype.kind, values.tolist()
    if kind == "O":
        return list(plain)
    if kind == "i":
        return [None if value == NO_TIME else str(value) for value in plain]
    return [None if value != value else repr(value + 0.0) for value in plain]  # minus zero is zero


def newest(found: Sequence[Entry]) -> int:
    """The newest known-at among entries, in microseconds; the earliest moment there is without any."""
    latest = max((row[:8] for _, row in found), default=bytes(8))
    return int.from_bytes(latest, "big") - (1 << 63)


def by_table(sources: Iterable[Source]) -> Mapping[str, tuple[Source, ...]]:
    """Sources by the table that they read."""
    found: dict[str, list[Source]] = {}
    for source in sources:
        found.setdefault(source.lookup.table, []).append(source)
    return {table: tuple(held) for table, held in found.items()}
