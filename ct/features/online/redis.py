"""The online store on a Redis server, for replicas on several machines. One database of the server belongs to one project.

Keys begin with `ct:online:4:`. `rows:SOURCE:ENTITY` is a hash of rows with the moment each was stored; `log` a list of the newest
rows, numbered by `seq`, which readers follow. Each script runs whole or not at all, and is safe to run twice.
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from ct.errors import InvalidSettings, Unavailable
from ct.features.online.rows import Freshness, Key, Source, border, newest
from ct.features.online.shelf import LOG_ROWS, Batch, Look, Size
from ct.ids import sha256

_PREFIX = "ct:online:4:"
_SECONDS = 2.0
_AT_ONCE, _ENTRIES = 500, 5_000
_FACTS = ("reach", "newest", "stored", "trimmed")
_SIZE = struct.Struct(">I")
_SOURCE = 16

# `seq` begins anywhere, so that readers notice when a server has lost what it knew. Facts are numbers of 20 digits, which compare as texts.
_PUT = """
local seq, log, names, filled, members = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local source, stem, now, tell, most = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
redis.call('SET', seq, ARGV[6], 'NX')
redis.call('HSETNX', names, source, ARGV[7])
local function raise(fact, value)
  local have = redis.call('HGET', names, source .. ':' .. fact)
  if not have or have < value then redis.call('HSET', names, source .. ':' .. fact, value) end
end
raise('reach', ARGV[8])
raise('newest', ARGV[9])
if #ARGV > 12 then raise('stored', ARGV[10]) end
local new = 0
for at = 13, #ARGV, 2 do
  local entity, row = ARGV[at], ARGV[at + 1]
  if redis.call('HSETNX', stem .. entity, row, now) == 1 then
    new = new + 1
    redis.call('SADD', members, entity)
    if tell == '1' then
      redis.call('RPUSH', log, source .. struct.pack('>I4', #entity) .. entity .. row)
      redis.call('INCR', seq)
    end
  end
end
if tell == '1' then redis.call('LTRIM', log, -most, -1)
else redis.call('INCRBY', seq, most + 1); redis.call('DEL', log) end
if ARGV[11] ~= '' then redis.call('HSET', filled, ARGV[11], ARGV[12]) end
return new
"""
_LOOK = """
local seq, position, missing = tonumber(redis.call('GET', KEYS[1]) or '0'), tonumber(ARGV[1]), tonumber(ARGV[2])
local fresh, names, lost = {}, {}, 0
if seq ~= position then
  names = redis.call('HGETALL', KEYS[3])
  if position >= 0 and seq > position and seq - position <= redis.call('LLEN', KEYS[2]) then
    fresh = redis.call('LRANGE', KEYS[2], position - seq, -1)
  else
    lost, missing = 1, #KEYS - 3
  end
end
local found = {}
for at = 4, 3 + missing do found[at - 3] = redis.call('HKEYS', KEYS[at]) end
return {seq, lost, fresh, names, found}
"""
_DROP = """
local dropped = 0
for at = 2, #ARGV do dropped = dropped + redis.call('HDEL', KEYS[2], ARGV[at]) end
if redis.call('EXISTS', KEYS[2]) == 0 then redis.call('SREM', KEYS[1], ARGV[1]) end
return dropped
"""


class RedisShelf:
    """See `Shelf`. A read is one round trip. Not for Redis Cluster, whose scripts see one key's machine only.

    Raises InvalidSettings for a URL that names no server and where the package `redis` is not installed; Unavailable, in every method,
    when the server does not answer within two seconds.
    """

    near = False

    def __init__(self, url: str) -> None:
        self._client = _client(url)
        self._at = f"the online store at {urlsplit(url).hostname or urlsplit(url).path}"
        self._put = self._client.register_script(_PUT)
        self._look = self._client.register_script(_LOOK)
        self._drop = self._client.register_script(_DROP)
        self._ids: dict[str, str] = {}
        with self._asked():
            self._client.ping()

    @contextmanager
    def _asked(self) -> Iterator[None]:
        import redis

        try:
            yield
        except redis.RedisError as error:
            said = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise Unavailable(f"{self._at}: {said}", "a Redis server that answers", "start it, or mend online_url") from None

    def put(self, batches: Sequence[Batch], *, now: int, tell: bool) -> int:
        """See `Shelf`. Rows that are not told go in parts, the last of which says what was filled; a part put twice changes nothing."""
        parts = [part for batch in batches for part in _parts(batch)]
        groups = [parts] if tell else [[part] for part in parts]
        stored = 0
        with self._asked():
            for group in groups:
                with self._client.pipeline(transaction=True) as pipe:
                    for batch in group:
                        self._queue(pipe, batch, now, tell)
                    stored += sum(pipe.execute())
        return stored

    def _queue(self, pipe: Any, batch: Batch, now: int, tell: bool) -> None:
        source = self._id(batch.source.name)
        keys = [_name("seq"), _name("log"), _name("sources"), _name("filled", source), _name("entities", source)]
        given: list[Any] = [source, _name("rows", source, ""), now, int(tell), LOG_ROWS, secrets.randbits(48) + 1]
        given += [batch.source.name, _digits(batch.source.reach), _digits(newest(batch.entries)), _digits(now)]
        given += [batch.shard, batch.since]
        for entity, row in batch.entries:
            given += (entity, row)
        self._put(keys=keys, args=given, client=pipe)

    def look(self, position: int, missing: Sequence[Key], keys: Sequence[Key]) -> Look:
        """See `Shelf`."""
        wanted = [*missing, *(key for key in keys if key not in missing)]
        names = [_name("seq"), _name("log"), _name("sources"), *(self._rows(key) for key in wanted)]
        with self._asked():
            reached, lost, told, facts, found = self._look(keys=names, args=[position, len(missing)])
        known = _facts(facts)
        fresh = None if lost else [_told(item, known) for item in told]
        rows = dict(zip(wanted, found, strict=False))
        return Look(int(reached), fresh, rows, None if reached == position else _freshness(known))

    def filled(self, source: Source) -> Mapping[str, int]:
        """See `Shelf`."""
        with self._asked():
            found = self._client.hgetall(_name("filled", self._id(source.name)))
        return {shard.decode(): int(since) for shard, since in found.items()}

    def rows(self, key: Key, *, until: int) -> Sequence[bytes]:
        """See `Shelf`."""
        with self._asked():
            found = self._client.hgetall(self._rows(key))
        return [row for row, stored in found.items() if int(stored) <= until]

    def discard(self, name: str, *, before: int | None = None, ties: frozenset[bytes] = frozenset()) -> int:
        """See `Shelf`. Entity by entity: a row that comes in meanwhile is not touched."""
        source, first = self._id(name), b"" if before is None else border(before)
        entities, filled = _name("entities", source), _name("filled", source)
        dropped = 0
        with self._asked():
            for some in _grouped(self._client.sscan_iter(entities, count=_AT_ONCE)):
                dropped += self._discard(source, entities, some, first, ties)
            if before is not None:
                marks = {shard: before for shard, since in self._client.hgetall(filled).items() if int(since) < before}
                if marks:
                    self._client.hset(filled, mapping=marks)
                self._client.hset(_name("sources"), f"{source}:trimmed", _digits(before))
            with self._client.pipeline(transaction=True) as pipe:
                pipe.incrby(_name("seq"), LOG_ROWS + 1).delete(_name("log")).execute()
        return dropped

    def _discard(self, source: str, entities: str, some: list[bytes], first: bytes, ties: frozenset[bytes]) -> int:
        keys = [_name("rows", source, "").encode() + entity for entity in some]
        with self._client.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.hkeys(key)
            found = pipe.execute()
        with self._client.pipeline(transaction=False) as pipe:
            for key, entity, rows in zip(keys, some, found, strict=True):
                gone = [row for row in rows if row < first or row[8:16] in ties]
                if gone:
                    self._drop(keys=[entities, key], args=[entity, *gone], client=pipe)
            return sum(pipe.execute())

    def freshness(self) -> tuple[Freshness, ...]:
        """See `Shelf`."""
        with self._asked():
            found = self._client.hgetall(_name("sources"))
        return _freshness({name.decode(): value.decode() for name, value in found.items()})

    def size(self, name: str) -> Size:
        """See `Shelf`."""
        source, rows, entities = self._id(name), 0, 0
        with self._asked():
            for some in _grouped(self._client.sscan_iter(_name("entities", source), count=_AT_ONCE)):
                with self._client.pipeline(transaction=False) as pipe:
                    for entity in some:
                        pipe.hlen(_name("rows", source, "").encode() + entity)
                    counts = pipe.execute()
                rows, entities = rows + sum(counts), entities + len(counts)
        return Size(rows, entities)

    def close(self) -> None:
        """See `Shelf`."""
        self._client.close()

    def _rows(self, key: Key) -> str:
        return _name("rows", self._id(key[0]), key[1])

    def _id(self, name: str) -> str:
        if name not in self._ids:
            self._ids[name] = sha256(name)[:_SOURCE]
        return self._ids[name]


def _client(url: str) -> Any:
    try:
        import redis
    except ModuleNotFoundError:
        raise InvalidSettings(
            "online_url names Redis, whose client is not installed", "the package redis", "pip install 'ct[redis]'"
        ) from None
    try:
        return redis.Redis.from_url(url, socket_timeout=_SECONDS, socket_connect_timeout=_SECONDS)
    except ValueError as error:
        raise InvalidSettings(f"online_url: {error}", "redis://host:port/db, rediss:// or unix://path", "mend it") from None


def _name(*parts: str) -> str:
    return _PREFIX + ":".join(parts)


def _digits(value: int) -> str:
    return f"{value + (1 << 63):020d}"


def _parts(batch: Batch) -> Iterator[Batch]:
    """The batch in parts that do not hold the server up for long."""
    for at in range(0, len(batch.entries), _ENTRIES) or (0,):
        last = at + _ENTRIES >= len(batch.entries)
        yield Batch(batch.source, batch.entries[at : at + _ENTRIES], batch.shard if last else "", batch.since)


def _facts(flat: Sequence[bytes]) -> dict[str, str]:
    texts = [item.decode() for item in flat]
    return dict(zip(texts[::2], texts[1::2], strict=True))


def _freshness(facts: Mapping[str, str]) -> tuple[Freshness, ...]:
    sources = sorted((name, source) for source, name in facts.items() if ":" not in source)
    empty = {"reach": _digits(0), "stored": _digits(0), "trimmed": _digits(0)}
    return tuple(
        Freshness(name, *(int(facts.get(f"{source}:{fact}", empty.get(fact, ""))) - (1 << 63) for fact in _FACTS))
        for name, source in sources
    )


def _told(item: bytes, names: Mapping[str, str]) -> tuple[Key, bytes]:
    """A line of the log: the source, the entity's length, the entity, the row."""
    (size,) = _SIZE.unpack_from(item, _SOURCE)
    begin = _SOURCE + _SIZE.size
    return (names[item[:_SOURCE].decode()], item[begin : begin + size].decode()), item[begin + size :]


def _grouped(found: Iterator[bytes]) -> Iterator[list[bytes]]:
    some: list[bytes] = []
    for item in found:
        some.append(item)
        if len(some) == _AT_ONCE:
            yield some
            some = []
    if some:
        yield some
