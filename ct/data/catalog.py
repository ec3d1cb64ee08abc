"""What the journal says of a table: its contract, its published shards, its quarantine, its history. Folds only."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa

from ct.data.columns import kind_of
from ct.data.reading import TYPES
from ct.data.tables import ShardFile
from ct.errors import NotFound
from ct.store.journal import Event, Journal

_CONTRACTS = ("TableCreated", "ContractChanged")
REQUESTED, REWRITTEN, REPROFILED = "ErasureRequested", "ShardsRewritten", "ProfilesChanged"
VERIFIED, INCOMPLETE = "ErasureVerified", "ErasureIncomplete"


def stream(table: str) -> str:
    """The journal stream of a table."""
    return f"table/{table}"


def contract(journal: Journal, table: str) -> pa.Schema | None:
    """The schema every shard must have, None before the first one. Shards that are older than a column have it missing."""
    for event in reversed(tuple(journal.read(stream(table), types=_CONTRACTS))):
        return pa.schema([(name, TYPES[text]) for name, text in event.data["schema"]])
    return None


def kinds(journal: Journal, table: str) -> dict[str, str]:
    """Each column's kind ("number", "text", "time"). Raises NotFound before the first shard."""
    schema = contract(journal, table)
    if schema is None:
        raise NotFound(f"table {table!r} has no contract yet", "a first shard", f"run `ct ingest {table} FILE`")
    return {field.name: kind_of(field.type) for field in schema}


def published(journal: Journal, table: str) -> tuple[ShardFile, ...]:
    """Every published shard that still has rows, in order of publication."""
    return tuple(shard for shard in arrived(journal, table) if shard.rows)


def arrived(journal: Journal, table: str, *, until: int = 0) -> tuple[ShardFile, ...]:
    """Every shard that was ever published, as it is now, in order of publication; one that is gone has no rows.

    With `until`, as it was before the journal's event of that seq.
    `ErasureRequested` says which places of a shard are left out from that moment on, `ShardsRewritten` where shards lie now.
    """
    shards: dict[str, ShardFile] = {}
    types: dict[str, str] = {}
    for event in journal.read(stream(table), types=[*_CONTRACTS, "ShardPublished", REQUESTED, REWRITTEN]):
        if until and event.seq >= until:
            break
        if event.type in _CONTRACTS:
            types = {name: text for name, text in event.data["schema"]}
            continue
        if event.type == "ShardPublished":
            shards[event.data["sha256"]] = _shard(event)
            continue
        place: dict[str, Any] = {}
        if event.type == REWRITTEN:
            place = {"path": event.data["file"], "file_sha256": event.data["file_sha256"], "without": ()}
        for digest, changed in event.data["shards"].items():
            shards[digest] = _changed(shards[digest], {**place, **changed})
        for digest in event.data.get("gone", ()):
            shards[digest] = replace(shards[digest], path="", file_sha256="", rows=0, without=())
    return tuple(replace(shard, types=types) for shard in shards.values())


def resolve(journal: Journal, table: str, digests: Collection[str]) -> tuple[ShardFile, ...]:
    """The published shards among those of the SHA-256 `digests`, where and as they are now."""
    wanted = frozenset(digests)
    return tuple(shard for shard in published(journal, table) if shard.sha256 in wanted)


def quarantined(journal: Journal, table: str) -> tuple[dict[str, Any], ...]:
    """The quarantined shards with their reasons, each as it was last refused; not those that were published after all."""
    held: dict[str, dict[str, Any]] = {}
    for event in journal.read(stream(table), types=["ShardQuarantined", "ShardPublished"]):
        held.pop(event.data["sha256"], None)
        if event.type == "ShardQuarantined":
            held[event.data["sha256"]] = {"at": event.at.isoformat(), **event.data}
    return tuple(held.values())


def aside(journal: Journal, table: str) -> tuple[dict[str, Any], ...]:
    """The rows that were set aside from published shards: how many, why, and the file they lie in."""
    return tuple(
        {
            "shard": event.data["shard"],
            "sha256": event.data["sha256"],
            "at": event.at.isoformat(timespec="seconds"),
            "rows": event.data["aside"]["rows"],
            "file": event.data["aside"].get("file", ""),
            "reasons": [f"{reason['check']}: {reason['found']}" for reason in event.data["aside"]["reasons"]],
        }
        for event in journal.read(stream(table), types=["ShardPublished"])
        if event.data.get("aside", {}).get("rows")
    )


def history(journal: Journal, table: str) -> tuple[dict[str, str], ...]:
    """How the table's columns came to be as they are, oldest first: when, by which shard, and what changed."""
    found, before = [], dict[str, str]()
    for event in journal.read(stream(table), types=[*_CONTRACTS, "ShardPublished"]):
        at, shard = event.at.isoformat(timespec="seconds"), str(event.data.get("shard", ""))
        if event.type in _CONTRACTS:
            now = {name: text for name, text in event.data["schema"]}
            what = _difference(before, now) if before else f"created with {len(now)} columns: {', '.join(now)}"
            found.append({"at": at, "shard": shard, "what": what})
            before = now
            continue
        for kind, column, action, said in event.data.get("drift", ()):
            if action != "accept":
                found.append({"at": at, "shard": shard, "what": f"{column} {kind} ({action}): {said}"})
    return tuple(found)


def _difference(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    added = [f"added {name} ({now[name]})" for name in now if name not in before]
    gone = [f"dropped {name}" for name in before if name not in now]
    other = [f"{name} from {before[name]} to {now[name]}" for name in now if before.get(name, now[name]) != now[name]]
    return "; ".join([*added, *gone, *other]) or "no change"


def erasures(journal: Journal, table: str) -> tuple[dict[str, Any], ...]:
    """The erasures that were asked for, and whether they are done: never the key."""
    found: dict[str, dict[str, Any]] = {}
    for event in journal.read(stream(table), types=[REQUESTED, VERIFIED, INCOMPLETE]):
        if event.type == REQUESTED:
            name = event.data["erasure"]
            at = event.at.isoformat(timespec="seconds")
            found[name] = {"erasure": name, "at": at, "rows": event.data["rows"], "state": "requested", "versions": []}
        else:
            for name in event.data["erasures"]:
                state = "verified" if event.type == VERIFIED else f"incomplete, {len(event.data['left'])} places"
                found[name] |= {"state": state, "versions": event.data["versions"]}
    return tuple(found.values())


def empty(journal: Journal, table: str) -> frozenset[str]:
    """SHA-256 of files that had the right columns and no rows."""
    return frozenset(event.data["sha256"] for event in journal.read(stream(table), types=["ShardEmpty"]))


def seen(journal: Journal, table: str) -> frozenset[str]:
    """SHA-256 of all files that were published, found empty or quarantined."""
    types = ["ShardPublished", "ShardQuarantined", "ShardEmpty"]
    return frozenset(event.data["sha256"] for event in journal.read(stream(table), types=types))


def _shard(event: Event) -> ShardFile:
    data = event.data
    return ShardFile(
        table=event.stream.partition("/")[2],
        shard=data["shard"],
        sha256=data["sha256"],
        path=data["file"],
        rows=data["rows"],
        snapshot=data["snapshot"],
        time_min=data["time_min"],
        time_max=data["time_max"],
        tags=data["tags"],
        file_sha256=data.get("file_sha256", ""),
    )


_CHANGES = ("path", "file_sha256", "rows", "start", "time_min", "time_max", "content")


def _changed(shard: ShardFile, data: Mapping[str, Any]) -> ShardFile:
    fields = {name: data[name] for name in _CHANGES if name in data}
    if "without" in data:
        fields["without"] = tuple(data["without"])
    if "tags" in data:
        fields["tags"] = {**shard.tags, **data["tags"]}
    return replace(shard, **fields)
