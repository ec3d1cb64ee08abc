"""Append-only events in streams, hash-chained, guarded by compare-and-set; and the fold over them. SQLite or PostgreSQL."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import reduce
from typing import Any, TypeVar

import sqlalchemy as sa

from ct.clock import Clock, SystemClock
from ct.errors import Conflict, Corrupt, Unavailable
from ct.ids import Json, canonical, sha256
from ct.store import database

S = TypeVar("S")
Guard = Callable[[sa.Connection], None]
_META = sa.MetaData()
_EVENTS = sa.Table(
    "ct_events",
    _META,
    sa.Column("seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=False),
    sa.Column("stream", sa.String(200), nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("type", sa.String(100), nullable=False),
    sa.Column("data", sa.Text, nullable=False),
    sa.Column("at", sa.String(40), nullable=False),
    sa.Column("actor", sa.String(100), nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
    sa.UniqueConstraint("stream", "version"),
)
_GENESIS = "0" * 64
_SETUP = 0x63745F6A  # names the lock under which PostgreSQL's tables are made
LOST_SECONDS = 10
"""How long an append goes on asking a database that broke off whether it was done, and doing it."""


@dataclass(frozen=True)
class Event:
    """One change. `seq` counts over the whole journal from 1, `version` over its stream from 1."""

    seq: int
    stream: str
    version: int
    type: str
    data: dict[str, Json]
    at: datetime
    actor: str
    hash: str


@dataclass(frozen=True)
class New:
    """An event to be appended."""

    type: str
    data: dict[str, Json]


Watch = Callable[[sa.Connection, str, Sequence[New]], None]
"""Called with each append's connection, stream and events before they are written; what it raises undoes the append."""


class _Speaker(threading.local):
    """In whose name this thread appends, and who watches it."""

    actor: str = ""
    watch: Watch | None = None


class Journal:
    """The events of one project. Safe for several processes; every append is one transaction.

    Every method raises Unavailable when the database does not answer, is busy for too long or full. An append that says so may have
    been done all the same: read again before deciding anew.
    """

    def __init__(self, url: str, *, clock: Clock | None = None, actor: str = "ct") -> None:
        self._url = url
        self._engine = database.engine(url)
        self._clock = clock or SystemClock()
        self._actor, self._speaker = actor, _Speaker()
        if self._engine.dialect.name == "sqlite":
            sa.event.listen(self._engine, "connect", _sqlite_connect)
            sa.event.listen(self._engine, "begin", _sqlite_begin)
        with database.answering(url), self._engine.begin() as connection:
            if self._engine.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_SETUP)))
            _META.create_all(connection)

    @property
    def actor(self) -> str:
        """Who appends: the one that this thread acts for, else the journal's own."""
        return self._speaker.actor or self._actor

    @contextmanager
    def in_name_of(self, actor: str, watch: Watch | None = None) -> Iterator[None]:
        """What this thread appends in the block is `actor`'s (its own when empty), and `watch` looks on in the same transactions."""
        speaker = self._speaker
        before = speaker.actor, speaker.watch
        speaker.actor, speaker.watch = actor, watch
        try:
            yield
        finally:
            speaker.actor, speaker.watch = before

    def append(
        self, stream: str, events: Sequence[New], *, expected: int | None = None, guard: Guard | None = None
    ) -> tuple[Event, ...]:
        """Append `events` to `stream` in one transaction.

        `expected` is the stream's version the caller has read (0: no events yet); None appends whatever stands there. `guard` is
        called first in the same transaction, and what it raises undoes it: a `leases.Lease` lets only its holder write.
        Raises Conflict when the stream has moved on. A PostgreSQL that restarts meanwhile is waited for, some seconds, and is asked
        first whether the transaction that broke off was done.
        """
        begun = time.monotonic()
        tried: tuple[Event, ...] = ()
        while True:
            try:
                with database.answering(self._url), self._engine.begin() as connection:
                    if self._engine.dialect.name == "postgresql":
                        connection.execute(sa.text("LOCK TABLE ct_events IN SHARE ROW EXCLUSIVE MODE"))
                    if tried and self._holds(connection, tried[-1]):
                        return tried
                    tried = ()
                    if guard is not None:
                        guard(connection)
                    if (watch := self._speaker.watch) is not None:
                        watch(connection, stream, events)
                    tried = self.add(connection, stream, events, expected=expected)
                return tried
            except Unavailable:
                # SQLite has rolled back, after half a minute of waiting.
                if self._engine.dialect.name == "sqlite" or time.monotonic() - begun > LOST_SECONDS:
                    raise
            time.sleep(random.uniform(0.05, 0.5))

    def _holds(self, connection: sa.Connection, event: Event) -> bool:
        return connection.scalar(sa.select(_EVENTS.c.seq).where(_EVENTS.c.hash == event.hash)) is not None

    def add(
        self, connection: sa.Connection, stream: str, events: Sequence[New], *, expected: int | None = None
    ) -> tuple[Event, ...]:
        """Append within the transaction of another append, whose `connection` a guard or a watch was given. Raises Conflict as `append`."""
        version = self.version(stream, connection)
        if expected is not None and version != expected:
            raise Conflict(f"stream {stream!r} is at version {version}", f"version {expected}", "read it again and decide anew")
        last = connection.execute(sa.select(_EVENTS.c.seq, _EVENTS.c.hash).order_by(_EVENTS.c.seq.desc()).limit(1)).first()
        seq, previous = (last.seq, last.hash) if last else (0, _GENESIS)
        made = []
        for offset, event in enumerate(events, start=1):
            row = {
                "seq": seq + offset,
                "stream": stream,
                "version": version + offset,
                "type": event.type,
                "data": canonical(event.data),
                "at": self._clock.now().astimezone(UTC).isoformat(),
                "actor": self.actor,
            }
            row["hash"] = previous = _link(previous, row)
            connection.execute(_EVENTS.insert().values(row))
            made.append(_event(row))
        return tuple(made)

    def read(
        self, stream: str | None = None, *, after: int = 0, types: Iterable[str] = (), prefix: str = ""
    ) -> Iterator[Event]:
        """Events in order: of one stream, or of all whose name starts with `prefix`; only those with seq > `after`."""
        query = sa.select(_EVENTS).where(_EVENTS.c.seq > after).order_by(_EVENTS.c.seq)
        if stream is not None:
            query = query.where(_EVENTS.c.stream == stream)
        if prefix:
            query = query.where(_EVENTS.c.stream.startswith(prefix, autoescape=True))
        if wanted := tuple(types):
            query = query.where(_EVENTS.c.type.in_(wanted))
        with self.reading() as connection:
            rows = connection.execute(query).mappings().all()
        for row in rows:
            yield _event(dict(row))

    def version(self, stream: str, connection: sa.Connection | None = None) -> int:
        """The number of events in `stream`; as a transaction sees it, with its `connection`."""
        if connection is None:
            with self.reading() as own:
                return self.version(stream, own)
        return connection.scalar(sa.select(sa.func.max(_EVENTS.c.version)).where(_EVENTS.c.stream == stream)) or 0

    def head(self) -> int:
        """The newest event's seq, 0 for none."""
        with self.reading() as connection:
            return connection.scalar(sa.select(sa.func.max(_EVENTS.c.seq))) or 0

    def fold(self, stream: str, step: Callable[[S, Event], S], initial: S) -> S:
        """The state that `step` makes of a stream's events, beginning with `initial`."""
        return reduce(step, self.read(stream), initial)

    def verify(self) -> int:
        """Recompute the whole hash chain and return its length. Raises Corrupt naming the first event that does not fit."""
        previous, expected_seq = _GENESIS, 1
        with self.reading() as connection:
            for row in connection.execute(sa.select(_EVENTS).order_by(_EVENTS.c.seq)).mappings():
                fields = {key: row[key] for key in ("seq", "stream", "version", "type", "data", "at", "actor")}
                if row["seq"] != expected_seq or row["hash"] != _link(previous, fields):
                    raise Corrupt(
                        f"journal event {row['seq']} ({row['type']} in {row['stream']}) does not fit the hash chain",
                        f"event {expected_seq} following hash {previous[:12]}",
                        "restore the journal from a backup; nothing after the previous event can be trusted",
                    )
                previous, expected_seq = row["hash"], expected_seq + 1
        return expected_seq - 1

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A transaction on the journal's database, for the tables beside it. Raises Unavailable."""
        with database.answering(self._url), self._engine.begin() as connection:
            if self._engine.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_SETUP)))
            yield connection

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A connection to the journal's database that writes nothing. Raises Unavailable."""
        with database.answering(self._url), self._engine.connect() as connection:
            yield connection.execution_options(ct_reading=True)

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()


def _link(previous: str, row: dict[str, Any]) -> str:
    return sha256(previous + canonical({key: row[key] for key in ("seq", "stream", "version", "type", "data", "at", "actor")}))


def _event(row: dict[str, Any]) -> Event:
    return Event(
        row["seq"], row["stream"], row["version"], row["type"], json.loads(row["data"]),
        datetime.fromisoformat(row["at"]), row["actor"], row["hash"],
    )  # fmt: skip


def _sqlite_connect(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # SQLAlchemy's "begin" hook below opens the transaction itself
    database.set_up(connection)


def _sqlite_begin(connection: sa.Connection) -> None:
    reading = connection.get_execution_options().get("ct_reading", False)
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")
