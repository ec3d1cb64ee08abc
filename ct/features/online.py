"""The online store: what the features need to know of each entity, in one SQLite file, filled from shards and from fresh rows.

It is a cache: it can be thrown away and filled again from published shards. What was asked for stays in memory as well, kept
true by a short log of fresh rows that every process reads; a request then costs no query.
"""

from __future__ import annotations

import sqlite3
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ct.data.columns import NO_TIME, to_columns
from ct.data.tables import ShardFile
from ct.features.transform import Spans, key_text, packed, span_us
from ct.roles import Columns, Lookup

FORMAT = 3
LOG_ROWS = 10_000
MEMORY_ENTITIES = 100_000
_SCHEMA = """
CREATE TABLE source (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, reach INTEGER NOT NULL);
CREATE TABLE known (
  source INTEGER, entity TEXT, known_at INTEGER, tie TEXT, numbers BLOB,
  PRIMARY KEY (source, entity, known_at, tie, numbers)
) WITHOUT ROWID;
CREATE TABLE fresh (seq INTEGER PRIMARY KEY AUTOINCREMENT, source INTEGER, entity TEXT, known_at INTEGER, tie TEXT, numbers BLOB);
CREATE TABLE filled (source INTEGER, shard TEXT, since INTEGER, PRIMARY KEY (source, shard)) WITHOUT ROWID;
"""
_SELECT = "SELECT known_at, tie, numbers FROM known WHERE source = ? AND entity = ? ORDER BY known_at, tie, numbers"
_FRESH = "SELECT seq, source, entity, known_at, tie, numbers FROM fresh WHERE seq > ? ORDER BY seq"
_FORGET = "INSERT INTO fresh (source) VALUES (NULL)"
_Entry = tuple[int, str, int, str, bytes]
_Row = tuple[int, str, bytes]


class OnlineStore:
    """Rows by lookup and entity: a set, so that pushing a row twice changes nothing. One writer at a time, any number of readers,
    across threads and processes."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._writer = _connect(path)
        self._create()
        self._memory = _Memory(_connect(path))

    def _create(self) -> None:
        with self._write() as writer:
            if writer.execute("PRAGMA user_version").fetchone()[0] == FORMAT:
                return
            for name in ("source", "known", "fresh", "filled"):
                writer.execute(f"DROP TABLE IF EXISTS {name}")
            for statement in _SCHEMA.strip().split(";\n"):
                writer.execute(statement)
            writer.execute(f"PRAGMA user_version = {FORMAT}")

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        """One transaction: all of it or nothing."""
        with self._lock:
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
                self._writer.execute("COMMIT")
            except BaseException:
                self._writer.execute("ROLLBACK")
                raise

    def push(self, lookups: Sequence[Lookup], table: str, rows: Columns) -> int:
        """Store fresh rows of `table` for the lookups that read it, all or none. Rows with no known-at or entity are left out.

        Returns the number of entries that were new. Raises InvalidPipeline when a number's column holds something else.
        """
        with self._write() as writer:
            entries: list[_Entry] = []
            for lookup in lookups:
                if lookup.table == table:
                    entries += _entries(_register(writer, lookup), lookup, rows)
            before = writer.total_changes
            _insert(writer, entries)
            stored = writer.total_changes - before
            _note(writer, entries)
            return stored

    def materialize(
        self, lookups: Sequence[Lookup], shards: Mapping[str, Sequence[ShardFile]], *, since: int | None = None
    ) -> int:
        """Fill in from published shards what rows with event time from `since` on (microseconds) will ask for.

        `since` is the beginning of the newest shard by default. What a shard gave already is not read again. Nothing is
        forgotten: see `trim`. Returns the number of new entries.
        """
        if since is None:
            newest = [max(files, key=lambda shard: shard.time_max).time_min for files in shards.values() if files]
            since = min(newest, default=0)
        stored = 0
        for lookup in lookups:
            for shard in shards.get(lookup.table, ()):
                stored += self._fill(lookup, shard, since - span_us(lookup))
        return stored

    def _fill(self, lookup: Lookup, shard: ShardFile, since: int) -> int:
        spans = shard.tags.get("spans")
        if spans is not None and spans.get(lookup.known_at, (0, since - 1))[1] < since:
            return 0
        with self._write() as writer:
            source = _register(writer, lookup)
            done = writer.execute("SELECT since FROM filled WHERE source = ? AND shard = ?", (source, shard.sha256)).fetchone()
            if done is not None and done[0] <= since:
                return 0
            rows = to_columns(pq.read_table(shard.path, columns=list(lookup.reads)))
            kept = rows[lookup.known_at] >= since
            before = writer.total_changes
            _insert(writer, _entries(source, lookup, {name: values[kept] for name, values in rows.items()}))
            stored = writer.total_changes - before
            writer.execute("INSERT OR REPLACE INTO filled VALUES (?, ?, ?)", (source, shard.sha256, since))
            writer.execute(_FORGET)
            return stored

    def trim(self, before: int) -> int:
        """Forget what no row with event time from `before` on (microseconds) can ask for. Returns the number of entries."""
        with self._write() as writer:
            dropped = 0
            for source, reach in writer.execute("SELECT id, reach FROM source").fetchall():
                done = writer.execute("DELETE FROM known WHERE source = ? AND known_at < ?", (source, before - reach))
                dropped += done.rowcount
                writer.execute("UPDATE filled SET since = max(since, ?) WHERE source = ?", (before - reach, source))
            writer.execute(_FORGET)
            return dropped

    def spans(self, rows: Columns, times: NDArray[np.int64], lookup: Lookup) -> Spans:
        """For each of a few rows its history, as `TableHistory.spans` gives it."""
        blobs: list[bytes] = []
        bounds = [0]
        over = span_us(lookup)
        with self._memory.current(lookup) as find:
            for entity, time in zip(_entities(rows, lookup.by), times.tolist(), strict=True):
                if entity is not None and time != NO_TIME:
                    known = find(entity)
                    start, stop = bisect_left(known, (time - over,)), bisect_left(known, (time,))
                    blobs += [row[2] for row in known[start:stop]]
                bounds.append(len(blobs))
        values = np.frombuffer(b"".join(blobs), dtype="<f8").reshape(-1, len(lookup.columns))
        edges = np.array(bounds, dtype=np.int64)
        return {name: np.ascontiguousarray(values[:, at]) for at, name in enumerate(lookup.columns)}, edges[:-1], edges[1:]

    def close(self) -> None:
        """Give the file back."""
        self._memory.close()
        self._writer.close()


class _Memory:
    """The rows of the entities that were asked for, each entity's sorted by known-at, tie and numbers."""

    def __init__(self, reader: sqlite3.Connection) -> None:
        self._reader = reader
        self._lock = threading.Lock()
        self._ids: dict[str, int] = {}
        self._rows: dict[tuple[int, str], list[_Row]] = {}
        self._version, self._position = -1, 0

    @contextmanager
    def current(self, lookup: Lookup) -> Iterator[Callable[[str], Sequence[Any]]]:
        """Reads entities of a lookup, as of the newest commit of any process."""
        with self._lock:
            self._catch_up()
            source = self._source(_name(lookup))
            yield lambda entity: self._find((source, entity)) if source is not None else ()

    def _catch_up(self) -> None:
        version = self._reader.execute("PRAGMA data_version").fetchone()[0]
        if version == self._version:
            return
        fresh = self._reader.execute(_FRESH, (self._position,)).fetchall()
        if fresh and (fresh[0][0] != self._position + 1 or any(row[1] is None for row in fresh)):
            self._rows.clear()
        for _, source, entity, *row in fresh:
            if (known := self._rows.get((source, entity))) is not None:
                at = bisect_left(known, (entry := (row[0], row[1], row[2])))
                if at == len(known) or known[at] != entry:
                    known.insert(at, entry)
        self._version, self._position = version, fresh[-1][0] if fresh else self._position

    def _find(self, name: tuple[int, str]) -> list[_Row]:
        known = self._rows.get(name)
        if known is None:
            if len(self._rows) >= MEMORY_ENTITIES:
                self._rows.clear()
            known = self._rows[name] = self._reader.execute(_SELECT, name).fetchall()
        return known

    def _source(self, name: str) -> int | None:
        if name not in self._ids:
            found = self._reader.execute("SELECT id FROM source WHERE name = ?", (name,)).fetchone()
            if found is None:
                return None
            self._ids[name] = found[0]
        return self._ids[name]

    def close(self) -> None:
        self._reader.close()


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "cache_size=-65536", "mmap_size=268435456"):
        connection.execute(f"PRAGMA {pragma}")
    return connection


def _name(lookup: Lookup) -> str:
    """Lookups that differ only in their span share their rows."""
    return "/".join([lookup.table, "+".join(lookup.by), "+".join(lookup.columns), lookup.known_at, "+".join(lookup.key)])


def _register(writer: sqlite3.Connection, lookup: Lookup) -> int:
    """The lookup's number; the store remembers the longest reach that was ever asked for."""
    writer.execute(
        "INSERT INTO source (name, reach) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET reach = max(reach, excluded.reach)",
        (_name(lookup), span_us(lookup)),
    )
    return int(writer.execute("SELECT id FROM source WHERE name = ?", (_name(lookup),)).fetchone()[0])


def _insert(writer: sqlite3.Connection, entries: list[_Entry]) -> None:
    writer.executemany("INSERT OR IGNORE INTO known VALUES (?, ?, ?, ?, ?)", entries)


def _note(writer: sqlite3.Connection, entries: Sequence[_Entry]) -> None:
    """Tell all readers. Many rows at once are not worth telling one by one: the readers then forget what they hold."""
    if len(entries) > LOG_ROWS // 10:
        writer.execute(_FORGET)
    else:
        writer.executemany("INSERT INTO fresh (source, entity, known_at, tie, numbers) VALUES (?, ?, ?, ?, ?)", entries)
    writer.execute("DELETE FROM fresh WHERE seq <= (SELECT max(seq) FROM fresh) - ?", (LOG_ROWS,))


def _entities(rows: Columns, by: Sequence[str]) -> list[str | None]:
    """Each row's entity as one text, None where a part is missing. Different entities have different texts."""
    columns = [_texts(rows[name]) for name in by]
    if len(columns) == 1:
        return columns[0]
    return [
        None if None in values else "".join(f"{len(value)}:{value}" for value in values if value is not None)
        for values in zip(*columns, strict=True)
    ]


def _texts(values: NDArray[Any]) -> list[str | None]:
    if values.dtype == object:
        return list(values)
    if values.dtype == np.int64:
        return [None if value == NO_TIME else str(value) for value in values.tolist()]
    return [None if value != value else repr(value + 0.0) for value in values.tolist()]  # minus zero is zero


def _entries(source: int, lookup: Lookup, rows: Columns) -> list[_Entry]:
    """One row of the table `known` for each usable row, in the order of its key, which SQLite inserts fastest."""
    entities = _entities(rows, lookup.by)
    known_at = rows[lookup.known_at].tolist()
    ties = key_text(rows, lookup.key).to_pylist()
    data = packed(rows, lookup.columns).tobytes()
    width = 8 * len(lookup.columns)
    return sorted(
        (source, entity, moment, tie, data[at * width : (at + 1) * width])
        for at, (entity, moment, tie) in enumerate(zip(entities, known_at, ties, strict=True))
        if entity is not None and moment != NO_TIME
    )
