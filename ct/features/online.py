"""The online store: what the features need to know of each entity, in one SQLite file, filled from shards and from fresh rows."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ct.data.columns import NO_TIME, to_columns
from ct.data.tables import ShardFile
from ct.features.transform import Spans, key_text
from ct.pipeline import Columns, Feature, Lookup

_SCHEMA = """
CREATE TABLE IF NOT EXISTS known (
  source TEXT, entity TEXT, known_at INTEGER, tie TEXT, numbers BLOB,
  PRIMARY KEY (source, entity, known_at, tie)
) WITHOUT ROWID
"""
_SELECT = "SELECT numbers FROM known WHERE source = ? AND entity = ? AND known_at >= ? AND known_at < ? ORDER BY known_at, tie"


def lookups_of(features: Sequence[Feature]) -> tuple[Lookup, ...]:
    """All lookups of some features, each once."""
    return tuple(dict.fromkeys(lookup for feature in features for lookup in feature.lookups()))


class OnlineStore:
    """Rows by lookup and entity. One writer at a time, any number of readers, across processes."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._connection = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "busy_timeout=30000"):
            self._connection.execute(f"PRAGMA {pragma}")
        self._connection.execute(_SCHEMA)

    def push(self, lookups: Sequence[Lookup], table: str, rows: Columns) -> int:
        """Store fresh rows of `table` for the lookups that read it. A row that is pushed again takes its old place. Returns the rows stored."""
        stored = 0
        for lookup in lookups:
            if lookup.table == table:
                entries = _entries(lookup, rows)
                stored += len(entries)
                self._write(entries)
        return stored

    def _write(self, entries: list[tuple[str, str, int, str, bytes]]) -> None:
        if not entries:
            return
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            self._connection.executemany("INSERT OR REPLACE INTO known VALUES (?, ?, ?, ?, ?)", entries)
            self._connection.execute("COMMIT")
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise

    def materialize(self, lookups: Sequence[Lookup], shards: Mapping[str, Sequence[ShardFile]]) -> int:
        """Fill from published shards what the newest rows will ask for, and forget what no row can ask for any more. Returns the rows stored."""
        stored = 0
        for lookup in lookups:
            files = [shard for shard in shards.get(lookup.table, ()) if lookup.known_at in shard.tags["spans"]]
            if not files:
                continue
            newest = max(shard.time_max for shard in files)
            since = newest - _span(lookup)
            for shard in files:
                if shard.tags["spans"][lookup.known_at][1] >= since:
                    rows = to_columns(pq.read_table(shard.path, columns=list(lookup.reads)))
                    kept = rows[lookup.known_at] >= since
                    stored += self.push([lookup], lookup.table, {name: values[kept] for name, values in rows.items()})
            self._connection.execute(
                "DELETE FROM known WHERE source = ? AND known_at < ?", (_source(lookup), since - _span(lookup))
            )
        return stored

    def spans(self, rows: Columns, times: NDArray[np.int64], lookup: Lookup) -> Spans:
        """For each of a few rows its history, as `TableHistory.spans` gives it."""
        blobs: list[bytes] = []
        start, stop = np.zeros(len(times), dtype=np.int64), np.zeros(len(times), dtype=np.int64)
        source, over = _source(lookup), _span(lookup)
        for at, time in enumerate(times.tolist()):
            start[at] = len(blobs)
            values = [rows[name][at] for name in lookup.by]
            if None not in values:
                found = self._connection.execute(_SELECT, (source, "|".join(map(str, values)), time - over, time))
                blobs += [row[0] for row in found]
            stop[at] = len(blobs)
        numbers = np.frombuffer(b"".join(blobs), dtype="<f8").reshape(-1, len(lookup.columns))
        return {name: np.ascontiguousarray(numbers[:, at]) for at, name in enumerate(lookup.columns)}, start, stop

    def close(self) -> None:
        """Give the file back."""
        self._connection.close()


def _span(lookup: Lookup) -> int:
    return int(lookup.over.total_seconds() * 1e6)


def _source(lookup: Lookup) -> str:
    """Lookups that differ only in their span share their rows."""
    return "/".join([lookup.table, "+".join(lookup.by), "+".join(lookup.columns), lookup.known_at])


def _entries(lookup: Lookup, rows: Columns) -> list[tuple[str, str, int, str, bytes]]:
    usable = np.flatnonzero(rows[lookup.known_at] != NO_TIME)
    if not len(usable):
        return []
    kept = {name: rows[name][usable] for name in lookup.reads}
    numbers = np.stack([np.asarray(kept[name], dtype="<f8") for name in lookup.columns], axis=1)
    ties, source = key_text(kept, lookup.key).to_pylist(), _source(lookup)
    entries = []
    for at in range(len(usable)):
        values = [kept[name][at] for name in lookup.by]
        if None not in values:
            entries.append(
                (source, "|".join(map(str, values)), int(kept[lookup.known_at][at]), ties[at], numbers[at].tobytes())
            )
    return entries
