"""Erasing the rows of one key from a table: filtered at once, then written out of its files, its snapshots and its quarantine.

The journal never holds the key: only its HMAC with the project's secret, or its salted hash where there is none.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ct.data import catalog, maintenance, personal, publishing, shards, traces
from ct.data.columns import to_columns
from ct.data.hashing import row_hash
from ct.data.iceberg import NAMESPACE, tries
from ct.data.publishing import Stores
from ct.data.tables import ShardFile
from ct.data.traces import Wanted
from ct.errors import Conflict, InvalidRequest
from ct.ids import canonical, sha256
from ct.pipeline import Table
from ct.roles import Columns
from ct.store.files import Files, delete
from ct.store.journal import Event, Journal, New

_ROWS = 1 << 20
_TRIES = 10


@dataclass(frozen=True)
class Subject:
    """The key whose rows shall go: the table, the key's columns with one value each (arrays [1]), its parts as texts, and published keys that hold it as a part."""

    table: Table
    columns: Columns
    parts: tuple[str, ...]
    others: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The key as one text."""
        return "|".join(self.parts)

    def wanted(self) -> Wanted:
        """What to look for in files."""
        row = tuple((name, _plain(self.columns[name])) for name in self.table.keys)
        return Wanted(self.text, (*self.table.keys, "_key", "key", "unit"), row, self.others)

    def asked_for(self, record: Mapping[str, Any]) -> bool:
        """Is a prediction's record about this key? By its key, its unit, or the values of its request."""
        asked = record.get("request") or {}
        values = [asked.get(name) for name in self.table.keys]
        return self.text in (record.get("key"), record.get("unit")) or all(
            value is not None and _spelled(value) == part for value, part in zip(values, self.parts, strict=True)
        )


def subject(journal: Journal, table: Table, key: Sequence[str]) -> Subject:
    """The key given as texts: one for each column, or all in one text joined by "|". Raises InvalidRequest or NotFound."""
    parts = tuple(key[0].split("|")) if len(key) == 1 and len(table.keys) > 1 else tuple(key)
    if len(parts) != len(table.keys) or not all(parts):
        raise InvalidRequest(
            f"a key of {len(parts)} part(s)", f"the values of {', '.join(table.keys)}", "name them in this order, joined by |"
        )
    kinds = catalog.kinds(journal, table.name)
    read = [_read(kinds[name], name, text) for name, text in zip(table.keys, parts, strict=True)]
    found = Subject(table, dict(zip(table.keys, read, strict=True)), tuple(_spelled(_plain(value)) for value in read))
    return replace(found, others=_longer(journal, found))


def _longer(journal: Journal, key: Subject) -> tuple[str, ...]:
    """The keys of published rows that hold the key as a part, as "customer-10" holds "customer-1"."""
    found: set[str] = set()
    for shard in catalog.published(journal, key.table.name):
        rows = shards.read(shard, key.table.keys)
        texts = pc.binary_join_element_wise(*(rows[name].cast(pa.string()) for name in key.table.keys), "|")
        found |= set(texts.filter(pc.match_substring(texts, key.text)).unique().to_pylist())
    return tuple(sorted(found - {key.text, None}))


def _read(kind: str, name: str, text: str) -> np.ndarray[Any, Any]:
    try:
        if kind == "number":
            return np.array([float(text)])
        if kind == "time":
            moment = datetime.fromisoformat(text)
            if moment.tzinfo is None:
                raise ValueError
            return np.array([round(moment.timestamp() * 1e6)], dtype=np.int64)
    except ValueError:
        raise InvalidRequest(f"the part for {name!r} is no {kind}", f"a {kind}", "see `ct tables` for its type") from None
    return np.array([text], dtype=object)


def _plain(value: np.ndarray[Any, Any]) -> Any:
    return value.tolist()[0]


def _spelled(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def places(shard: ShardFile, key: Subject) -> tuple[int, ...]:
    """Where the key's rows lie in a shard, those left out already not counted."""
    names, raw, found = list(key.table.keys), replace(shard, rows=shards.places(shard), without=()), []
    for start in range(0, raw.rows, _ROWS):
        rows = to_columns(shards.read(raw, names, start=start, stop=start + _ROWS))
        found += [start + at for at in _same(rows, key)]
    return tuple(sorted(set(found) - set(shard.without)))


def _same(rows: Columns, key: Subject) -> list[int]:
    """The places of the rows that have the key."""
    names = list(key.table.keys)
    near = np.flatnonzero(row_hash(rows, names) == row_hash(key.columns, names)[0])  # different keys may share a hash
    return [at for at in near.tolist() if all(rows[name][at] == key.columns[name][0] for name in names)]


def kept(rows: pa.Table, key: Subject) -> pa.Table | None:
    """The rows without the key's; None where they lack a column of the key, so that nobody can tell."""
    if not set(key.table.keys) <= set(rows.column_names):
        return None
    mask = np.ones(rows.num_rows, dtype=np.bool_)
    mask[_same(to_columns(rows.select(key.table.keys)), key)] = False
    return rows.filter(pa.array(mask))


def find(journal: Journal, key: Subject) -> dict[str, tuple[int, ...]]:
    """The places of the key's rows in every published shard that has some, by the shard's SHA-256."""
    found = {shard.sha256: places(shard, key) for shard in catalog.published(journal, key.table.name)}
    return {digest: at for digest, at in found.items() if at}


def request(stores: Stores, key: Subject) -> int:
    """Record that the key's rows shall go: from now on every reader leaves them out. Returns their number, 0 when none is left."""
    name = key.table.name
    for _ in range(_TRIES):
        position = stores.journal.version(catalog.stream(name))
        if publishing.enter(key.table, stores, position):
            continue
        found = find(stores.journal, key)
        if not found:
            return 0
        erasure = f"erasure-{position + 1}"
        event = {
            "erasure": erasure,
            **hashed(key, salt()),
            "columns": list(key.table.keys),
            "rows": (count := sum(map(len, found.values()))),
            "shards": {
                shard.sha256: _without(shard, found[shard.sha256], key.table, erasure)
                for shard in catalog.published(stores.journal, name)
                if shard.sha256 in found
            },
        }
        try:
            stores.journal.append(catalog.stream(name), [New(catalog.REQUESTED, event)], expected=position)
        except Conflict:
            continue
        return count
    raise Conflict(f"table {name!r} changed {_TRIES} times meanwhile", "a free moment", "erase again")


def _without(shard: ShardFile, gone: Iterable[int], table: Table, erasure: str) -> dict[str, Any]:
    without = sorted({*shard.without, *gone})
    left = replace(shard, rows=shards.places(shard) - len(without), without=tuple(without))
    times = [name for name, text in shard.types.items() if text.startswith(("timestamp", "date"))]
    changed = maintenance.bounds(shards.read(left, list(dict.fromkeys([table.time, *times, *table.slices]))), table)
    content = sha256(canonical([shard.identity, erasure]))
    return {"without": without, "erased": len(without) - len(shard.without), "content": content, **changed}


def salt() -> str:
    """A new salt."""
    return secrets.token_hex(16)


def hashed(key: Subject, salt: str, by: str = "") -> dict[str, str]:
    """The key as the journal names it: its HMAC with the project's secret where there is one, else its hash with `salt`."""
    text = canonical([key.table.name, salt, *key.parts]).encode()
    by = by or ("hmac-sha256" if os.environ.get(personal.VARIABLE) else "sha256")
    digest = hmac.new(personal.secret(), text, hashlib.sha256).hexdigest() if by == "hmac-sha256" else sha256(text)
    return {"key": digest, "salt": salt, "by": by}


def requests(journal: Journal, key: Subject) -> tuple[Event, ...]:
    """The erasures of this key that were requested before. Raises InvalidSettings when they were named with a secret that is not here."""
    events = journal.read(catalog.stream(key.table.name), types=[catalog.REQUESTED])
    return tuple(event for event in events if hashed(key, event.data["salt"], event.data["by"])["key"] == event.data["key"])


def write_out(stores: Stores, table: Table) -> int:
    """Rewrite every file with rows that are left out, each in one commit. Returns the number of files."""
    maintenance.settle(stores, table.name)
    count = 0
    for _ in tries(f"others kept changing table {table.name!r}"):
        with suppress(Conflict):
            for file in sorted({shard.path for shard in catalog.arrived(stores.journal, table.name) if shard.without}):
                count += maintenance.rewrite(stores, table, [file], reason="erasure")
            break
    return count


@dataclass(frozen=True)
class Old:
    """What still reaches rows that are published no more: branches and tags, snapshots, and the files that hold the rows."""

    refs: tuple[str, ...] = ()
    snapshots: tuple[int, ...] = ()
    files: tuple[str, ...] = ()


def old(stores: Stores, table: str, key: Subject) -> Old:
    """The files of a table that hold the key and are not in its newest snapshot, and what reaches them. Changes nothing."""
    house = stores.warehouse
    if not house.exists(table):
        return Old()
    head, wanted = house.snapshot(table), key.wanted()
    current = {*house.files(table), *(shard.path for shard in catalog.arrived(stores.journal, table))}
    place = Files(stores.settings.place("warehouse"))
    names = [place.address(entry.name) for entry in place.list(f"{NAMESPACE}/{table}/shards")]
    held = frozenset(name for name in names if name not in current and traces.look(name, wanted)[0])
    tainted = tuple(snapshot for snapshot in house.reaching(table, held) if snapshot != head)
    refs = tuple(ref for ref, snapshot in sorted(house.refs(table).items()) if snapshot in tainted)
    return Old(refs, tainted, tuple(sorted(held)))


def drop(stores: Stores, table: str, key: Subject) -> Old:
    """Drop the branches, tags and snapshots that reach old rows of the key, then the files. Raises Conflict when one is needed again."""
    house, found = stores.warehouse, old(stores, table, key)
    for ref in found.refs:
        house.drop_ref(table, ref)
    if found.snapshots:
        keep = {state.id for state in house.history(table)} - set(found.snapshots)
        house.expire(table, keep=keep, dry_run=False)
    if found.files and set(found.files) & house.reachable(table):
        raise Conflict("a snapshot that came meanwhile reaches old rows", "a table that nobody changes", "erase again")
    for file in found.files:
        delete(file)
    return found
