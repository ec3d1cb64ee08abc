"""The online store: what the features need to know of each entity, filled from shards and from fresh rows, read as a History.

It is a cache: it can be thrown away and filled again from published shards. What was asked for stays in memory as well, kept true by
a short log of fresh rows that every process reads: a request costs a look at that log and nothing else.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ct.data.columns import NO_TIME, to_columns
from ct.data.hashing import row_hash
from ct.data.shards import opened as opened_shard
from ct.data.tables import ShardFile
from ct.features.online.rows import (
    Block,
    Freshness,
    Key,
    Source,
    block_of,
    by_table,
    entities,
    entries,
    name_of,
    sources_of,
    tie_bytes,
)
from ct.features.online.shelf import LOG_ROWS, Batch, Look, Shelf, Size
from ct.features.transform import Spans, span_us
from ct.roles import Columns, Lookup
from ct.settings import Settings

Ints = NDArray[np.int64]
Step = Callable[[str], None]
MEMORY_BYTES = 1 << 28
"""Entities in memory may take so much; then all are forgotten."""
_START = np.zeros(1, dtype=np.int64)


def opened(settings: Settings) -> OnlineStore:
    """The project's online store: Redis where `online_url` says so, else a SQLite file. Raises InvalidSettings or Unavailable."""
    if settings.online_url:
        from ct.features.online.redis import RedisShelf

        return OnlineStore(RedisShelf(settings.online_url))
    from ct.features.online.sqlite import SqliteShelf

    return OnlineStore(SqliteShelf(settings.online))


def in_use(settings: Settings) -> bool:
    """Has anybody opened the project's online store before?"""
    return bool(settings.online_url) or settings.online.exists()


class OnlineStore:
    """Rows by lookup and entity: a set, so that pushing a row twice changes nothing. For any number of readers and writers, in several
    threads and processes; open it after a fork, not before."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._memory = _Memory(shelf)
        self._plans: dict[int, _Plan] = {}

    @property
    def near(self) -> bool:
        """Does it answer within microseconds, so that nobody need wait for it in a thread?"""
        return self._shelf.near

    def push(self, lookups: Sequence[Lookup], table: str, rows: Columns) -> int:
        """Store fresh rows of `table` for the lookups that read it, all or none. Rows with no known-at or entity are left out.

        Returns the number of entries that were new. Raises InvalidPipeline when a number's column holds something else.
        """
        sources = by_table(sources_of(lookups)).get(table, ())
        batches = [Batch(source, entries(source.lookup, rows)) for source in sources]
        if not batches:
            return 0
        # Many rows at once are not worth telling one by one.
        tell = sum(len(batch.entries) for batch in batches) <= LOG_ROWS // 10
        return self._shelf.put(batches, now=_now(), tell=tell)

    def materialize(
        self,
        lookups: Sequence[Lookup],
        shards: Mapping[str, Sequence[ShardFile]],
        *,
        since: int | None = None,
        on_step: Step = lambda _: None,
    ) -> int:
        """Fill in from published shards what rows with event time from `since` on (microseconds) will ask for.

        `since` is the beginning of the newest shard by default. What a shard gave already is not read again, nor are parts of shards
        that are too old. Nothing is forgotten: see `trim`. Returns the number of new entries.
        """
        if since is None:
            newest = [max(files, key=lambda shard: shard.time_max).time_min for files in shards.values() if files]
            since = min(newest, default=0)
        stored = 0
        for table, sources in by_table(sources_of(lookups)).items():
            done = {source.name: self._shelf.filled(source) for source in sources}
            for shard in shards.get(table, ()):
                wanted = {
                    source: since - source.reach
                    for source in sources
                    if _reaches(shard, source, since) and done[source.name].get(shard.identity, since) > since - source.reach
                }
                if wanted:
                    on_step(f"{table}/{shard.shard}: {shard.rows:,} rows")
                    stored += self._fill(shard, wanted)
        return stored

    def _fill(self, shard: ShardFile, wanted: Mapping[Source, int]) -> int:
        """Row group by row group. Only when all have been taken in, the shard counts as filled."""
        columns = tuple(dict.fromkeys(name for source in wanted for name in source.lookup.reads))
        stored = 0
        with opened_shard(shard) as reader:
            newest = {
                name: {piece.start: piece.high for piece in reader.pieces(name)}
                for name in {source.lookup.known_at for source in wanted}
            }
            for piece in reader.pieces():
                high = {name: known[piece.start] for name, known in newest.items()}
                some = {s: since for s, since in wanted.items() if (top := high[s.lookup.known_at]) is None or top >= since}
                if some:
                    rows = to_columns(reader.read(columns, start=piece.start, stop=piece.stop))
                    batches = [Batch(s, entries(s.lookup, _later(rows, s, since))) for s, since in some.items()]
                    stored += self._shelf.put(batches, now=_now(), tell=False)
        marks = [Batch(source, (), shard.identity, since) for source, since in wanted.items()]
        return stored + self._shelf.put(marks, now=_now(), tell=False)

    def trim(self, before: int) -> int:
        """Forget what no row with event time from `before` on (microseconds) can ask for. Returns the number of entries."""
        return sum(self._shelf.discard(held.name, before=before - held.reach) for held in self._shelf.freshness())

    def erase(self, lookups: Sequence[Lookup], table: str, keys: Columns) -> int:
        """Forget the rows of `table` with these values of its key, in every source of it. Returns the number of entries."""
        return sum(
            self._shelf.discard(source.name, ties=tie_bytes(row_hash(keys, source.lookup.key)))
            for source in by_table(sources_of(lookups)).get(table, ())
        )

    def freshness(self) -> tuple[Freshness, ...]:
        """How new what the store holds is, by source."""
        return self._shelf.freshness()

    def size(self, name: str) -> Size:
        """Rows and entities of a source; counted, so not for every request."""
        return self._shelf.size(name)

    def history(self, rows: Columns, lookups: Sequence[Lookup]) -> Known:
        """What is known now of the entities of a few rows, in one look: at most one round trip, and the same moment for all lookups."""
        plan = self._plan(lookups)
        names = {by: entities(rows, by) for by in plan.by}
        wanted = [
            [None if entity is None else (source.name, entity) for entity in names[source.lookup.by]] for source in plan.sources
        ]
        blocks = self._memory.blocks(
            {key: source.width for source, keys in zip(plan.sources, wanted, strict=True) for key in keys if key}
        )
        return Known(self, rows, plan, [[blocks[key] if key else None for key in keys] for keys in wanted])

    def history_at(self, rows: Columns, lookups: Sequence[Lookup], moment: int) -> Known:
        """What was known of the entities when it was `moment` (microseconds), as far as it has not been trimmed; one query an entity."""
        plan = self._plan(lookups)
        made = [
            [
                block_of(self._shelf.rows((source.name, entity), until=moment), source.width) if entity is not None else None
                for entity in entities(rows, source.lookup.by)
            ]
            for source in plan.sources
        ]
        return Known(self, rows, plan, made)

    def spans(self, rows: Columns, times: Ints, lookup: Lookup) -> Spans:
        """For each of a few rows its history, as `TableHistory.spans` gives it. For several lookups ask `history` once."""
        return self.history(rows, (lookup,)).spans(rows, times, lookup)

    def _plan(self, lookups: Sequence[Lookup]) -> _Plan:
        plan = self._plans.get(id(lookups))
        if plan is None or plan.lookups is not lookups:
            if len(self._plans) >= 100:
                self._plans.clear()
            plan = self._plans[id(lookups)] = _Plan(lookups)
        return plan

    def close(self) -> None:
        """Give the file or the connection back."""
        self._shelf.close()


class _Plan:
    """Where each of some lookups finds its rows. It keeps the lookups, so that their identity can name them."""

    def __init__(self, lookups: Sequence[Lookup]) -> None:
        self.lookups = lookups
        self.sources = sources_of(lookups)
        self.by = tuple(dict.fromkeys(source.lookup.by for source in self.sources))
        self._places = {source.name: at for at, source in enumerate(self.sources)}
        self._known: dict[int, tuple[Lookup, int, int]] = {}

    def find(self, lookup: Lookup) -> tuple[Lookup, int, int]:
        """The lookup, its source's place, and its span in microseconds. Raises KeyError for a lookup that is not planned."""
        found = self._known.get(id(lookup))
        if found is None or found[0] is not lookup:
            if len(self._known) >= 1000:
                self._known.clear()
            found = self._known[id(lookup)] = (lookup, self._places[name_of(lookup)], span_us(lookup))
        return found


@dataclass(frozen=True)
class Known:
    """A History of a few rows, as it was when it was looked up: `blocks` [sources][n], None for a row with no entity."""

    store: OnlineStore
    rows: Columns
    plan: _Plan
    blocks: Sequence[Sequence[Block | None]]

    def spans(self, rows: Columns, times: Ints, lookup: Lookup) -> Spans:
        """For each of n rows its history, as `TableHistory.spans` gives it. Other rows than it was made for are looked up anew."""
        if rows is not self.rows:
            return self.store.spans(rows, times, lookup)
        _, source, over = self.plan.find(lookup)
        blocks = self.blocks[source]
        if len(blocks) == 1:
            return _one(blocks[0], times.item(), over, lookup)
        return _many(blocks, times.tolist(), over, lookup)

    def held(self, times: Ints, lookup: Lookup) -> set[bytes]:
        """The rows in all spans, as the store keeps them."""
        _, source, over = self.plan.find(lookup)
        found: set[bytes] = set()
        for block, time_ in zip(self.blocks[source], times.tolist(), strict=True):
            if block is not None and time_ != NO_TIME:
                start, stop = block.known.searchsorted((time_ - over, time_)).tolist()
                found.update(block.rows(start, stop))
        return found


def _one(block: Block | None, time_: int, over: int, lookup: Lookup) -> Spans:
    if block is None or time_ == NO_TIME:
        return {name: np.empty(0) for name in lookup.columns} | {lookup.known_at: np.empty(0, np.int64)}, _START, _START
    start, stop = block.known.searchsorted((time_ - over, time_)).tolist()
    values = block.values
    found: dict[str, NDArray[Any]] = {name: values[at, start:stop] for at, name in enumerate(lookup.columns)}
    found[lookup.known_at] = block.known[start:stop]
    return found, _START, np.array((stop - start,))


def _many(blocks: Sequence[Block | None], times: Sequence[int], over: int, lookup: Lookup) -> Spans:
    """Each entity's rows once, one entity after the other."""
    begins: dict[int, int] = {}
    parts: list[Block] = []
    size = 0
    bounds = np.zeros((2, len(blocks)), dtype=np.int64)
    for at, (block, moment) in enumerate(zip(blocks, times, strict=True)):
        if block is None or moment == NO_TIME:
            continue
        if id(block) not in begins:
            begins[id(block)] = size
            parts.append(block)
            size += len(block.known)
        bounds[:, at] = begins[id(block)] + block.known.searchsorted((moment - over, moment))
    values = np.concatenate([part.values for part in parts], axis=1) if parts else np.empty((len(lookup.columns), 0))
    found: dict[str, NDArray[Any]] = {name: values[at] for at, name in enumerate(lookup.columns)}
    found[lookup.known_at] = np.concatenate([part.known for part in parts]) if parts else np.empty(0, np.int64)
    return found, bounds[0], bounds[1]


class _Memory:
    """The rows of the entities that were asked for, true as of the last look."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._lock = threading.Lock()
        self._blocks: dict[Key, Block] = {}
        self._bytes = 0
        self._position = -1

    def blocks(self, keys: Mapping[Key, int]) -> Mapping[Key, Block]:
        """The blocks of keys, whose rows have the given widths."""
        with self._lock:
            position, missing = self._position, self._missing(keys)
            if self._shelf.near:
                return self._told(self._shelf.look(position, missing, tuple(keys)), keys)
        look = self._shelf.look(
            position, missing, tuple(keys)
        )  # not under the lock: several threads may wait for a server at once
        with self._lock:
            if self._position != position or any(key not in self._blocks and key not in look.found for key in keys):
                look = self._shelf.look(
                    self._position, self._missing(keys), tuple(keys)
                )  # another thread was faster: what was found may be older than what is held
            return self._told(look, keys)

    def _missing(self, keys: Mapping[Key, int]) -> list[Key]:
        return [key for key in keys if key not in self._blocks]

    def _told(self, look: Look, keys: Mapping[Key, int]) -> Mapping[Key, Block]:
        if look.fresh is None:
            self._blocks, self._bytes = {}, 0
        elif look.fresh:
            self._merge(look.fresh)
        for key, rows in look.found.items():
            self._blocks[key] = block = block_of(rows, keys[key])
            self._bytes += block.size
        self._position = look.position
        found = {key: self._blocks[key] for key in keys}
        if self._bytes > MEMORY_BYTES:
            self._blocks, self._bytes = dict(found), sum(block.size for block in found.values())
        return found

    def _merge(self, fresh: Sequence[tuple[Key, bytes]]) -> None:
        told: dict[Key, list[bytes]] = {}
        for key, row in fresh:
            if key in self._blocks:
                told.setdefault(key, []).append(row)
        for key, rows in told.items():
            old = self._blocks[key]
            self._blocks[key] = block = old.merged(rows)
            self._bytes += block.size - old.size


def _reaches(shard: ShardFile, source: Source, since: int) -> bool:
    """May the shard hold rows that were known from `since` less the source's reach on?"""
    spans = shard.tags.get("spans")
    return spans is None or (source.lookup.known_at in spans and spans[source.lookup.known_at][1] >= since - source.reach)


def _later(rows: Columns, source: Source, since: int) -> Columns:
    kept = rows[source.lookup.known_at] >= since
    return {name: rows[name][kept] for name in source.lookup.reads}


def _now() -> int:
    return time.time_ns() // 1000
