"""The online store in one SQLite file: the default, for all processes of one machine."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from ct.features.online.rows import Freshness, Key, Source, border, newest
from ct.features.online.shelf import LOG_ROWS, Batch, Look, Size

FORMAT = 4
_SCHEMA = """
CREATE TABLE source (
  id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, reach INTEGER, newest INTEGER, stored INTEGER, trimmed INTEGER DEFAULT 0
);
CREATE TABLE known (source INTEGER, entity TEXT, row BLOB, stored INTEGER, PRIMARY KEY (source, entity, row)) WITHOUT ROWID;
CREATE TABLE fresh (seq INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT, entity TEXT, row BLOB);
CREATE TABLE filled (source INTEGER, shard TEXT, since INTEGER, PRIMARY KEY (source, shard)) WITHOUT ROWID;
"""
_ID = "(SELECT id FROM source WHERE name = ?)"
_SELECT = f"SELECT row FROM known WHERE source = {_ID} AND entity = ?"
_FRESH = "SELECT seq, name, entity, row FROM fresh WHERE seq > ? ORDER BY seq"
_FORGET = "INSERT INTO fresh (name) VALUES (NULL)"
_FRESHNESS = "SELECT name, reach, newest, stored, trimmed FROM source ORDER BY name"
_REGISTER = """
INSERT INTO source (name, reach, newest, stored) VALUES (?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET
  reach = max(reach, excluded.reach), newest = max(newest, excluded.newest), stored = max(stored, excluded.stored)
"""
_NOTHING: Mapping[Key, Sequence[bytes]] = {}


class SqliteShelf:
    """See `Shelf`. Open it in the process that uses it: a connection does not survive a fork."""

    near = True

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._writing, self._reading = threading.Lock(), threading.Lock()
        self._writer = _connect(path)
        self._create()
        self._reader = _connect(path)
        self._version, self._position = -1, -1

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
        with self._writing:
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
                self._writer.execute("COMMIT")
            except BaseException:
                self._writer.execute("ROLLBACK")
                raise

    def put(self, batches: Sequence[Batch], *, now: int, tell: bool) -> int:
        """See `Shelf`."""
        with self._write() as writer:
            stored = 0
            for batch in batches:
                stored += _put(writer, batch, now)
                if tell:
                    name = batch.source.name
                    told = ((name, entity, row) for entity, row in batch.entries)
                    writer.executemany("INSERT INTO fresh (name, entity, row) VALUES (?, ?, ?)", told)
            if not tell:
                writer.execute(_FORGET)
            writer.execute("DELETE FROM fresh WHERE seq <= (SELECT max(seq) FROM fresh) - ?", (LOG_ROWS,))
            return stored

    def look(self, position: int, missing: Sequence[Key], keys: Sequence[Key]) -> Look:
        """See `Shelf`."""
        with self._reading:
            version = self._reader.execute("PRAGMA data_version").fetchone()[0]
            if version == self._version and position == self._position:
                return Look(position, (), self._found(missing) if missing else _NOTHING)
            told = self._reader.execute(_FRESH, (position,)).fetchall()
            lost = position < 0 or (told and (told[0][0] != position + 1 or any(row[1] is None for row in told)))
            self._version, self._position = version, told[-1][0] if told else max(position, 0)
            freshness = [Freshness(*row) for row in self._reader.execute(_FRESHNESS)]
            if lost:
                return Look(self._position, None, self._found(keys), freshness)
            fresh = [((name, entity), row) for _, name, entity, row in told]
            return Look(self._position, fresh, self._found(missing), freshness)

    def _found(self, keys: Sequence[Key]) -> dict[Key, list[bytes]]:
        return {key: [row for (row,) in self._reader.execute(_SELECT, key)] for key in keys}

    def filled(self, source: Source) -> Mapping[str, int]:
        """See `Shelf`."""
        with self._reading:
            return dict(
                self._reader.execute(f"SELECT shard, since FROM filled WHERE source = {_ID}", (source.name,)).fetchall()
            )

    def rows(self, key: Key, *, until: int) -> Sequence[bytes]:
        """See `Shelf`."""
        with self._reading:
            return [row for (row,) in self._reader.execute(f"{_SELECT} AND stored <= ?", (*key, until))]

    def discard(self, name: str, *, before: int | None = None, ties: frozenset[bytes] = frozenset()) -> int:
        """See `Shelf`."""
        with self._write() as writer:
            dropped = 0
            if before is not None:
                dropped += writer.execute(
                    f"DELETE FROM known WHERE source = {_ID} AND row < ?", (name, border(before))
                ).rowcount
                writer.execute(f"UPDATE filled SET since = max(since, ?) WHERE source = {_ID}", (before, name))
                writer.execute("UPDATE source SET trimmed = max(trimmed, ?) WHERE name = ?", (before, name))
            for tie in ties:
                dropped += writer.execute(
                    f"DELETE FROM known WHERE source = {_ID} AND substr(row, 9, 8) = ?", (name, tie)
                ).rowcount
                writer.execute("DELETE FROM fresh WHERE name = ? AND substr(row, 9, 8) = ?", (name, tie))
            writer.execute(_FORGET)
            return dropped

    def freshness(self) -> tuple[Freshness, ...]:
        """See `Shelf`."""
        with self._reading:
            return tuple(Freshness(*row) for row in self._reader.execute(_FRESHNESS))

    def size(self, name: str) -> Size:
        """See `Shelf`."""
        with self._reading:
            found = f"SELECT count(*), count(DISTINCT entity) FROM known WHERE source = {_ID}"
            return Size(*self._reader.execute(found, (name,)).fetchone())

    def close(self) -> None:
        """See `Shelf`."""
        with self._writing, self._reading:
            self._reader.close()
            self._writer.close()


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "cache_size=-65536", "mmap_size=268435456"):
        connection.execute(f"PRAGMA {pragma}")
    return connection


def _put(writer: sqlite3.Connection, batch: Batch, now: int) -> int:
    name, latest = batch.source.name, newest(batch.entries)
    writer.execute(_REGISTER, (name, batch.source.reach, latest, now if batch.entries else 0))
    source = writer.execute("SELECT id FROM source WHERE name = ?", (name,)).fetchone()[0]
    before = writer.total_changes
    rows = ((source, entity, row, now) for entity, row in batch.entries)
    writer.executemany("INSERT OR IGNORE INTO known VALUES (?, ?, ?, ?)", rows)
    stored = writer.total_changes - before
    if batch.shard:
        writer.execute("INSERT OR REPLACE INTO filled VALUES (?, ?, ?)", (source, batch.shard, batch.since))
    return stored
