"""What a person asks of the tables: one line each, or everything known of one. Journal, profiles and Iceberg's own history; nothing is changed."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from typing import Any

from ct.clock import Clock, SystemClock
from ct.control.place import Place
from ct.data import catalog, profiled
from ct.data.columns import kind_of
from ct.data.reading import TYPES
from ct.data.tables import ShardFile, Warehouse
from ct.errors import NotFound
from ct.ids import canonical, describe, fingerprint
from ct.pipeline import Pipeline, Table
from ct.roles import Feature


def overview(place: Place, *, clock: Clock | None = None) -> list[dict[str, Any]]:
    """Each declared table in short: rows, shards, newest event and how long ago, owner, quarantine, snapshot."""
    house, now = Warehouse(place.settings), (clock or SystemClock()).now()
    return [_short(place, house, table, now) for table in place.pipeline.all_tables]


def _short(place: Place, house: Warehouse, table: Table, now: datetime) -> dict[str, Any]:
    known = catalog.published(place.journal, table.name)
    newest = max((shard.time_max for shard in known), default=None)
    return {
        "table": table.name,
        "rows": sum(shard.rows for shard in known),
        "shards": len(known),
        "newest": None if newest is None else moment(newest),
        "fresh": None if newest is None else span(now - datetime.fromtimestamp(newest / 1e6, UTC)),
        "owner": table.owner,
        "quarantined": len(catalog.quarantined(place.journal, table.name)),
        "aside": sum(item["rows"] for item in catalog.aside(place.journal, table.name)),
        "snapshot": house.snapshot(table.name),
    }


def details(place: Place, name: str, *, clock: Clock | None = None) -> dict[str, Any]:
    """Everything known of one table. Raises NotFound for one that the pipeline does not declare."""
    line, journal = place.pipeline, place.journal
    table = next((item for item in line.all_tables if item.name == name), None)
    if table is None:
        raise NotFound(
            f"the pipeline has no table {name!r}", f"one of {[t.name for t in line.all_tables]}", "check the spelling"
        )
    house, now = Warehouse(place.settings), (clock or SystemClock()).now()
    return {
        **_short(place, house, table, now),
        "description": table.description,
        "key": list(table.keys),
        "time": table.time,
        "source": table.source.explain() if table.source is not None else f"landing/{name}/",
        "retention": table.retention,
        "policy": {field: value for field, value in describe(table.policy).items() if field != "kind" and value},
        "columns": _columns(place, table),
        "checks": [{"check": check.explain(), "does": _severity(check), "up_to": check.limit()} for check in table.checks],
        "history": catalog.history(journal, name),
        "read_by": [_reader(feature) for feature in line.features if _reads(line, feature, name)],
        "snapshots": _snapshots(house, name),
        "published": [_shard(shard) for shard in catalog.published(journal, name)],
        "quarantine": [
            {
                "shard": item["shard"],
                "at": item["at"],
                "rows": item["rows"],
                "file": item["file"],
                "reasons": [f"{reason['check']}: {reason['found']}" for reason in item["reasons"]],
            }
            for item in catalog.quarantined(journal, name)
        ],
        "rows_aside": catalog.aside(journal, name),
        "erasures": catalog.erasures(journal, name),
    }


def _columns(place: Place, table: Table) -> list[dict[str, Any]]:
    """The contract's columns with what was declared and measured; personal ones that are dropped at the end."""
    schema = catalog.contract(place.journal, table.name)
    made = profiled.whole(place.journal, place.artifacts, table.name) if schema is not None else None
    personal = {part.column: type(part).__name__.strip("_").lower() for part in table.personal}
    found = []
    for field in schema or ():
        measured = made.whole.columns.get(field.name) if made is not None else None
        rows = made.whole.rows if made is not None else 0
        found.append(
            {
                "column": field.name,
                "type": str(field.type),
                "kind": kind_of(TYPES[str(field.type)]),
                "role": _role(table, field.name),
                "nullable": bool(measured is None or measured.missing),
                "missing": measured.missing / rows if measured is not None and rows else None,
                "distinct": measured.distinct if measured is not None else None,
                "personal": personal.pop(field.name, ""),
                "description": table.columns.get(field.name, ""),
            }
        )
    blank = {"type": "", "kind": "", "role": "", "nullable": True, "missing": None, "distinct": None}
    hidden = [
        {"column": name, **blank, "personal": how, "description": table.columns.get(name, "")} for name, how in personal.items()
    ]
    return found + hidden


def _role(table: Table, name: str) -> str:
    roles = {"key": name in table.keys, "event time": name == table.time, "slice": name in table.slices}
    return ", ".join(role for role, is_so in roles.items() if is_so)


def _severity(check: Any) -> str:
    return str(getattr(check, "severity", "reject"))


def _reads(line: Pipeline, feature: Feature, table: str) -> bool:
    """Does a feature read rows of the table, its own or earlier ones?"""
    own = table == line.table.name and bool(feature.inputs())
    return own or any(lookup.table == table for lookup in feature.lookups())


def _reader(feature: Feature) -> dict[str, Any]:
    """A transformation as text (without what it has by default) and hash, and the columns it makes."""
    said, plain = describe(feature), dict[str, Any]()
    if dataclasses.is_dataclass(feature):
        plain = {item.name: item.default for item in dataclasses.fields(feature)}
    parts = [
        f"{name}={canonical(value)}" for name, value in said.items() if name != "kind" and not _same(value, plain.get(name))
    ]
    return {
        "makes": [column.name for column in feature.outputs()],
        "text": f"{said.get('kind', type(feature).__name__)}({', '.join(parts)})",
        "hash": fingerprint(feature),
    }


def _same(value: Any, default: Any) -> bool:
    return bool(default is not dataclasses.MISSING and value == (list(default) if isinstance(default, tuple) else default))


def _snapshots(house: Warehouse, name: str) -> list[dict[str, Any]]:
    if not house.exists(name):
        return []
    names: dict[int, list[str]] = {}
    for ref, snapshot in house.refs(name).items():
        names.setdefault(snapshot, []).append(ref)
    return [
        {
            "snapshot": state.id,
            "at": state.at.isoformat(timespec="seconds"),
            "operation": state.operation,
            "rows": state.rows,
            "names": sorted(names.get(state.id, [])),
        }
        for state in house.history(name)
    ]


def _shard(shard: ShardFile) -> dict[str, Any]:
    hidden = ("spans", "window", "owner")
    return {
        "shard": shard.shard,
        "rows": shard.rows,
        "from": moment(shard.time_min),
        "to": moment(shard.time_max),
        "tags": {name: value for name, value in shard.tags.items() if name not in hidden},
        "sha256": shard.sha256,
        "file": shard.path,
    }


def moment(us: int) -> str:
    """Microseconds since 1970 as a date and time in UTC."""
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us)).isoformat(timespec="seconds")


def span(length: timedelta) -> str:
    """A span in its two largest units, such as 3d 4h."""
    seconds = int(abs(length).total_seconds())
    parts = [f"{seconds // size % top}{unit}" for unit, size, top in _UNITS if seconds >= size]
    return ("-" if length < timedelta(0) else "") + (" ".join(parts[:2]) or "0s")


_UNITS = (("d", 86_400, 10**9), ("h", 3600, 24), ("m", 60, 60), ("s", 1, 60))
