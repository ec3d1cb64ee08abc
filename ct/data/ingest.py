"""Write, audit, publish: a shard becomes visible whole and checked, or goes to quarantine with its reasons. Safe to repeat at any point.

What the Iceberg table holds and the journal does not know yet, because an ingest was killed between the two, is entered first of all.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ct.data import catalog, checks, reading
from ct.data.checks import Reason
from ct.data.columns import NO_TIME, kind_of, to_columns
from ct.data.past import Published
from ct.data.profile import Profile
from ct.data.rules.not_null import NotNull
from ct.data.tables import Attempt, ShardFile, Warehouse
from ct.errors import Conflict, InvalidShard
from ct.ids import fingerprint, sha256_file
from ct.pipeline import Table
from ct.roles import Columns
from ct.settings import Settings
from ct.store.artifacts import Artifacts
from ct.store.files import Files, open_input
from ct.store.files import open_input
from ct.store.journal import Journal, New

READ_SECONDS = 300
SHARD, SOURCE = "ct.shard", "ct.source"
_TRIES = 10
_SUFFIXES = (".parquet", ".csv", ".jsonl")
_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME", "TMPDIR", "VIRTUAL_ENV")


@dataclass(frozen=True)
class Outcome:
    """What became of a file. `kind` is "published", "duplicate", "empty" or "quarantined"."""

    kind: str
    table: str
    shard: str
    sha256: str
    rows: int
    snapshot: int | None = None
    reasons: tuple[Reason, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The outcome as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class _Arrived:
    """A file, the shard it would be, and the table it would belong to. `rules` names the table's declaration."""

    path: Path
    shard: str
    digest: str
    table: Table
    rules: str

    @property
    def stream(self) -> str:
        return catalog.stream(self.table.name)


@dataclass(frozen=True)
class _Stores:
    settings: Settings
    journal: Journal
    warehouse: Warehouse
    artifacts: Artifacts


class _Quarantine(Exception):
    def __init__(self, reasons: tuple[Reason, ...], rows: int = 0) -> None:
        super().__init__(reasons)
        self.reasons, self.rows = reasons, rows


def ingest(
    path: Path, table: Table, *, settings: Settings, journal: Journal, warehouse: Warehouse, artifacts: Artifacts
) -> Outcome:
    """Check a file and publish it as one shard of `table`, or quarantine it. The same bytes twice are a no-op.

    A quarantined file is looked at again only once the table's declaration has changed. Raises InvalidShard when there is no such
    file or somebody writes to it, InvalidPipeline when a check cannot be run, Conflict when other machines' ingests keep overtaking.
    """
    if not path.is_file():
        raise InvalidShard(f"{path} is no file", "a Parquet, CSV or JSON-lines file", "check the path")
    try:
        digest = sha256_file(path)
    except OSError as error:
        raise InvalidShard(f"{path} cannot be read: {error.strerror}", "a readable file", "check its permissions") from None
    shard = "".join(letter if letter.isprintable() else "?" for letter in path.stem)
    arrived = _Arrived(path, shard, digest, table, fingerprint([table.keys, table.time, table.checks]))
    stores = _Stores(settings, journal, warehouse, artifacts)
    with _turn(settings.home / "incoming" / table.name) as folder:
        for _ in range(_TRIES):
            try:
                return _once(arrived, stores, folder)
            except Conflict:  # the table has moved on: look again, decide again
                continue
    raise Conflict(f"table {table.name!r} changed {_TRIES} times meanwhile", "a free moment", "ingest the file again")


@contextmanager
def _turn(folder: Path) -> Iterator[Path]:
    """An empty working folder of the table; one ingest of a table at a time on this machine."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shutil.rmtree(folder, ignore_errors=True)  # a killed ingest may have left something
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _once(arrived: _Arrived, stores: _Stores, folder: Path) -> Outcome:
    base = stores.warehouse.snapshot(arrived.table.name)
    position = stores.journal.version(arrived.stream)
    if known := _known(arrived, stores.journal):
        return known
    shards = catalog.published(stores.journal, arrived.table.name)
    contract = catalog.contract(stores.journal, arrived.table.name)
    try:
        _check_name(arrived, shards)
        rows = _conform(_read(arrived.path, contract, folder), contract, arrived.table)
        if rows.num_rows:
            _check_rows(arrived.table, to_columns(rows), shards)
    except _Quarantine as refused:
        return _quarantine(arrived, refused, stores, position)
    if rows.num_rows == 0:
        event = New("ShardEmpty", {"shard": arrived.shard, "sha256": arrived.digest})
        stores.journal.append(arrived.stream, [event], expected=position)
        return _outcome("empty", arrived)
    return _publish(arrived, rows, stores, position, base)


def _outcome(kind: str, arrived: _Arrived, rows: int = 0, **more: Any) -> Outcome:
    return Outcome(kind, arrived.table.name, arrived.shard, arrived.digest, rows, **more)


def _known(arrived: _Arrived, journal: Journal) -> Outcome | None:
    for shard in catalog.published(journal, arrived.table.name):
        if shard.sha256 == arrived.digest:
            return _outcome("duplicate", arrived, shard.rows, snapshot=shard.snapshot)
    for item in catalog.quarantined(journal, arrived.table.name):
        if item["sha256"] == arrived.digest and item["rules"] == arrived.rules:
            reasons = tuple(Reason(r["check"], r["found"], r["rows"], tuple(r["examples"])) for r in item["reasons"])
            return _outcome("quarantined", arrived, item["rows"], reasons=reasons)
    if arrived.digest in catalog.empty(journal, arrived.table.name):
        return _outcome("empty", arrived)
    return None


def _check_name(arrived: _Arrived, shards: tuple[ShardFile, ...]) -> None:
    """Raises _Quarantine for a file that is a link or whose name is taken or cannot be one."""
    if arrived.path.is_symlink():
        raise _Quarantine((_fault("file", "a symbolic link", "the file itself"),))
    if arrived.shard != arrived.path.stem or len(arrived.shard) > 100:
        raise _Quarantine((_fault("file", f"the name {arrived.shard[:40]!r}…", "at most 100 printable characters"),))
    if any(shard.shard == arrived.shard for shard in shards):
        found = f"shard {arrived.shard!r} is published already, with other bytes"
        raise _Quarantine((_fault("file", found, "a new name for new rows"),))


def _read(path: Path, contract: pa.Schema | None, folder: Path) -> pa.Table:
    """The file's rows, read by a child process that may die of them. Raises _Quarantine, or InvalidShard when the file changes."""
    target = folder / "rows.arrow"
    types = {field.name: str(field.type) for field in contract or ()}
    # -P keeps this package's folder, whose modules are called like some of Python's own, off the child's path.
    command = [sys.executable, "-P", reading.__file__, str(path.resolve()), str(target), json.dumps(types)]
    environ = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ} | {"OMP_NUM_THREADS": "1"}
    before = path.stat()
    try:
        child = subprocess.run(command, capture_output=True, timeout=READ_SECONDS, env=environ, check=False)
    except subprocess.TimeoutExpired:
        raise _Quarantine((Reason("readable", f"reading took over {READ_SECONDS} s", 0),)) from None
    after = path.stat()
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise InvalidShard(f"{path.name} changed while it was read", "a finished file", "rename files into place once whole")
    if child.returncode == reading.REFUSED:
        said = json.loads(child.stdout)
        raise _Quarantine((_fault("readable", said["found"], f"{said['expected']}; {said['remedy']}"),))
    if child.returncode != 0:
        found = f"the process that read it ended with code {child.returncode}"
        raise _Quarantine((_fault("readable", found, "a file that is read within the limits of memory and time"),))
    with pa.OSFile(str(target)) as source:
        rows = pa.ipc.open_file(source).read_all()
    rows.validate(full=True)
    return rows


def _conform(rows: pa.Table, contract: pa.Schema | None, table: Table) -> pa.Table:
    """The rows in the contract's column order. Raises _Quarantine for another schema; only lossless casts are made."""
    reasons = _first_faults(rows.schema, table) if contract is None else _faults(rows, contract)
    if reasons:
        raise _Quarantine(tuple(reasons), rows.num_rows)
    if contract is None:
        return rows
    return pa.table([_cast(rows[field.name], field.type) for field in contract], schema=contract)


def _first_faults(schema: pa.Schema, table: Table) -> list[Reason]:
    """What keeps a first shard from setting the contract."""
    needed = {*table.keys, table.time, *(name for check in table.checks for name in check.columns())}
    missing = sorted(needed - set(schema.names))
    reasons = [_fault("schema", f"column {name!r} is missing", "the columns that the pipeline names") for name in missing]
    if table.time in schema.names and kind_of(schema.field(table.time).type) != "time":
        reasons.append(_fault("schema", f"column {table.time!r} has type {schema.field(table.time).type}", "timestamps in UTC"))
    empty = [field.name for field in schema if pa.types.is_null(field.type)]
    return reasons + [_fault("schema", f"column {name!r} has no value at all", "some, to tell its type") for name in empty]


def _faults(rows: pa.Table, contract: pa.Schema) -> list[Reason]:
    """How the rows' schema differs from the contract."""
    unknown = [name for name in rows.column_names if name not in contract.names]
    reasons = [_fault("schema", f"unknown column {name!r}", f"the columns {', '.join(contract.names)}") for name in unknown]
    for field in contract:
        if field.name not in rows.column_names:
            reasons.append(_fault("schema", f"column {field.name!r} is missing", f"a column of type {field.type}"))
        elif _cast(rows[field.name], field.type) is None:
            reasons.append(_fault("schema", f"column {field.name!r} has type {rows[field.name].type}", f"type {field.type}"))
    return reasons


def _fault(check: str, found: str, expected: str) -> Reason:
    return Reason(check, f"{found}; expected {expected}", 0)


def _cast(column: pa.ChunkedArray, wanted: pa.DataType) -> pa.ChunkedArray | None:
    """The column as `wanted`, if nothing can get lost; else None."""
    if column.type == wanted:
        return column
    if pa.types.is_null(column.type) or (pa.types.is_integer(column.type) and pa.types.is_floating(wanted)):
        try:
            return column.cast(wanted)
        except pa.ArrowInvalid:
            return None
    return None


def _check_rows(table: Table, columns: Columns, shards: tuple[ShardFile, ...]) -> None:
    """Raises _Quarantine when the rows break a check, or lack a key or a time."""
    rules = (NotNull(*dict.fromkeys([*table.keys, table.time])), *table.checks)
    found, _ = checks.run(rules, columns, Published(0, shards, tuple), time=table.time)
    if found.refused:
        raise _Quarantine(found.refused, len(columns[table.time]))


def _publish(arrived: _Arrived, rows: pa.Table, stores: _Stores, position: int, base: int | None) -> Outcome:
    """Stage, publish, enter in the journal. Raises Conflict when the table has moved on since `position` and snapshot `base`."""
    warehouse, name = stores.warehouse, arrived.table.name
    entered = _enter(arrived.table, stores, position)
    if entered and arrived.digest not in entered:
        raise Conflict("shards of an ingest that was killed", "all published shards in the journal", "check against them")
    if not entered:
        first = warehouse.create(name, rows.schema)
        file = warehouse.stage(name, rows, arrived.digest)
        notes = {SHARD: arrived.shard, SOURCE: arrived.path.suffix.lstrip(".")}
        warehouse.publish(name, file, attempt=arrived.digest, base=first if base is None else base, notes=notes)
        entered = _enter(arrived.table, stores, position)
    return _outcome("published", arrived, rows.num_rows, snapshot=entered[arrived.digest])


def _enter(table: Table, stores: _Stores, position: int) -> dict[str, int]:
    """Journal every shard that the Iceberg table holds and the journal, at `position`, does not. Returns their snapshots by digest."""
    journal, stream = stores.journal, catalog.stream(table.name)
    known = {shard.sha256 for shard in catalog.published(journal, table.name)}
    fresh = [attempt for attempt in stores.warehouse.attempts(table.name) if attempt.attempt not in known]
    if not fresh:
        return {}
    events = []
    if catalog.contract(journal, table.name) is None:
        schema = pq.read_schema(open_input(fresh[0].file))
        types = [[field.name, str(field.type)] for field in schema]
        events.append(New("TableCreated", {"schema": types, "owner": table.owner}))
    first = catalog.first_profile(journal, table.name)
    like = Profile.from_json(stores.artifacts.get(first)) if first else None
    for attempt in fresh:
        data, like = _entry(table, attempt, stores, like)
        events.append(New("ShardPublished", data))
    journal.append(stream, events, expected=position)
    return {attempt.attempt: attempt.snapshot for attempt in fresh}


def _entry(table: Table, attempt: Attempt, stores: _Stores, like: Profile | None) -> tuple[dict[str, Any], Profile]:
    """What the journal says of a published shard. Its profile counts as the first shard's does, so that they merge."""
    columns = to_columns(pq.read_table(open_input(attempt.file)))
    times = columns[table.time]
    profile = Profile.of(columns, like)
    data = {
        "shard": attempt.notes[SHARD],
        "sha256": attempt.attempt,
        "rows": len(times),
        "snapshot": attempt.snapshot,
        "file": attempt.file,
        "file_sha256": attempt.file_sha256,
        "time_min": int(times.min()),
        "time_max": int(times.max()),
        "profile": stores.artifacts.put(profile.to_json()),
        "tags": {"source": attempt.notes[SOURCE], "owner": table.owner, "spans": _spans(columns)},
        "makes": f"shard/{table.name}/{attempt.attempt}",
        "from": [],
    }
    return data, like or profile


def _spans(columns: Columns) -> dict[str, list[int]]:
    """First and last moment of every time column, so that a reader can tell which shards it needs."""
    found = {}
    for name, values in columns.items():
        if values.dtype == np.int64 and len(known := values[values != NO_TIME]):
            found[name] = [int(known.min()), int(known.max())]
    return found


def _quarantine(arrived: _Arrived, refused: _Quarantine, stores: _Stores, position: int) -> Outcome:
    """Keep a copy and journal the reasons. A link is not followed."""
    kept = ""
    if not arrived.path.is_symlink():
        place = Files(f"{stores.settings.place('quarantine')}/{arrived.table.name}")
        suffix = arrived.path.suffix if arrived.path.suffix in _SUFFIXES else ""
        with arrived.path.open("rb") as source, place.draft() as copy:
            shutil.copyfileobj(source, copy)
            copy.name = f"{arrived.digest}{suffix}"
        kept = place.address(copy.name)
    data = {
        "shard": arrived.shard,
        "sha256": arrived.digest,
        "rows": refused.rows,
        "file": kept,
        "rules": arrived.rules,
        "reasons": [asdict(reason) for reason in refused.reasons],
    }
    stores.journal.append(arrived.stream, [New("ShardQuarantined", data)], expected=position)
    return _outcome("quarantined", arrived, refused.rows, reasons=refused.reasons)
