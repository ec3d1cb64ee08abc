"""Write, audit, publish: a shard becomes visible whole and checked, or goes to quarantine with its reasons. Safe to repeat at any point."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ct.data import catalog, checks
from ct.data.checks import Reason
from ct.data.columns import NO_TIME, kind_of, to_columns
from ct.data.profile import Profile
from ct.data.tables import Warehouse
from ct.errors import InvalidShard
from ct.ids import sha256_file
from ct.pipeline import Columns, Table
from ct.settings import Settings
from ct.store.artifacts import Artifacts
from ct.store.journal import Journal, New

READ_SECONDS = 300


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


def ingest(
    path: Path, table: Table, *, settings: Settings, journal: Journal, warehouse: Warehouse, artifacts: Artifacts
) -> Outcome:
    """Check a file and publish it as one shard of `table`, or quarantine it. The same bytes twice are a no-op.

    Raises InvalidShard when there is no such file, or when its name cannot name a shard.
    """
    if not path.is_file() or path.is_symlink():
        raise InvalidShard(f"{path} is no plain file", "a file", "check the path")
    if len(path.stem) > 100 or not path.stem.isprintable():
        raise InvalidShard(f"the file name {path.name[:40]!r}…", "at most 100 printable characters", "rename it")
    digest = sha256_file(path)
    if known := _known(journal, table, path.stem, digest):
        return known
    try:
        rows = _read(path)
        contract = catalog.contract(journal, table.name)
        rows = _conform(rows, contract, table)
    except _Quarantine as refused:
        return _quarantine(path, table, digest, refused.rows, refused.reasons, settings, journal)
    if rows.num_rows == 0:
        journal.append(catalog.stream(table.name), [New("ShardEmpty", {"shard": path.stem, "sha256": digest})])
        return Outcome("empty", table.name, path.stem, digest, 0)
    columns = to_columns(rows)
    if reasons := _audit(table, columns, catalog.published(journal, table.name)):
        return _quarantine(path, table, digest, rows.num_rows, reasons, settings, journal)
    return _publish(path, table, digest, rows, columns, contract, journal, warehouse, artifacts)


class _Quarantine(Exception):
    def __init__(self, reasons: tuple[Reason, ...], rows: int = 0) -> None:
        super().__init__(reasons)
        self.reasons, self.rows = reasons, rows


def _known(journal: Journal, table: Table, shard: str, digest: str) -> Outcome | None:
    for found in catalog.published(journal, table.name):
        if found.sha256 == digest:
            return Outcome("duplicate", table.name, shard, digest, found.rows, found.snapshot)
    for item in catalog.quarantined(journal, table.name):
        if item["sha256"] == digest:
            reasons = tuple(Reason(r["check"], r["found"], r["rows"], tuple(r["examples"])) for r in item["reasons"])
            return Outcome("quarantined", table.name, shard, digest, item["rows"], None, reasons)
    return None


def _read(path: Path) -> pa.Table:
    """The file's rows, read by a child process that may die of them."""
    with tempfile.TemporaryDirectory(prefix="ct-read-") as folder:
        target = Path(folder) / "rows.arrow"
        command = [sys.executable, "-m", "ct.data.reading", str(path.resolve()), str(target)]
        environ = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "CT_"))}
        try:
            child = subprocess.run(command, capture_output=True, timeout=READ_SECONDS, env=environ, check=False)
        except subprocess.TimeoutExpired:
            raise _Quarantine((Reason("readable", f"reading took over {READ_SECONDS} s", 0),)) from None
        if child.returncode == 3:
            said = json.loads(child.stdout)
            text = f"{said['found']}; expected {said['expected']}; {said['remedy']}"
            raise _Quarantine((Reason("readable", text, 0),))
        if child.returncode != 0:
            raise _Quarantine((Reason("readable", f"the reading process died with {child.returncode}", 0),))
        with pa.memory_map(str(target)) as source:
            return _owned(source)


def _owned(source: Any) -> pa.Table:
    """The mapped rows copied into memory, because the file goes away."""
    sink = pa.BufferOutputStream()
    rows = pa.ipc.open_file(source).read_all()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    return pa.ipc.open_stream(sink.getvalue()).read_all()


def _conform(rows: pa.Table, contract: pa.Schema | None, table: Table) -> pa.Table:
    """The rows in the contract's column order. Raises _Quarantine for another schema; only lossless casts are made."""
    reasons = []
    if contract is None:
        needed = {*table.keys, table.time, *(name for check in table.checks for name in check.columns())}
        reasons += [
            _fault(f"column {name!r} is missing", "it is named by the pipeline")
            for name in sorted(needed - set(rows.column_names))
        ]
        if not reasons and kind_of(rows.schema.field(table.time).type) != "time":
            reasons.append(_fault(f"column {table.time!r} is {rows.schema.field(table.time).type}", "a timestamp in UTC"))
        reasons += [
            _fault(f"column {field.name!r} has no values at all", "values")
            for field in rows.schema
            if pa.types.is_null(field.type)
        ]
        if reasons:
            raise _Quarantine(tuple(reasons), rows.num_rows)
        return rows
    for name in rows.column_names:
        if name not in contract.names:
            reasons.append(_fault(f"unknown column {name!r}", f"the columns {contract.names}"))
    made = []
    for field in contract:
        if field.name not in rows.column_names:
            reasons.append(_fault(f"column {field.name!r} is missing", f"a column of type {field.type}"))
            continue
        cast = _cast(rows[field.name], field.type)
        if cast is None:
            reasons.append(_fault(f"column {field.name!r} has type {rows[field.name].type}", f"type {field.type}"))
        else:
            made.append(cast)
    if reasons:
        raise _Quarantine(tuple(reasons), rows.num_rows)
    return pa.table(made, schema=contract)


def _fault(found: str, expected: str) -> Reason:
    return Reason("schema", f"{found}; expected {expected}", 0)


def _cast(column: pa.ChunkedArray, wanted: pa.DataType) -> pa.ChunkedArray | None:
    """The column as `wanted`, if nothing can get lost; else None."""
    have = column.type
    if have == wanted:
        return column
    numbers = pa.types.is_integer(have) and (pa.types.is_integer(wanted) or pa.types.is_floating(wanted))
    if pa.types.is_null(have) or numbers or (pa.types.is_floating(have) and pa.types.is_floating(wanted)):
        try:
            return column.cast(wanted, safe=True)
        except pa.ArrowInvalid:
            return None
    return None


def _audit(table: Table, columns: Columns, shards: tuple[Any, ...]) -> tuple[Reason, ...]:
    found = checks.run(_standing(table), columns, None)
    if found:
        return found
    names = sorted({name for check in table.checks for name in check.columns()})
    past = to_columns(pq.read_table(shards[-1].path, columns=names)) if shards and names else None
    return checks.run(table.checks, columns, past)


def _standing(table: Table) -> tuple[Any, ...]:
    """What every table demands without being told: a time in every row."""
    return (checks.NotNull(table.time),)


def _publish(
    path: Path,
    table: Table,
    digest: str,
    rows: pa.Table,
    columns: Columns,
    contract: pa.Schema | None,
    journal: Journal,
    warehouse: Warehouse,
    artifacts: Artifacts,
) -> Outcome:
    """Stage, publish, journal. Each step finds what an earlier, killed attempt has done."""
    events = []
    position = journal.version(catalog.stream(table.name))
    if contract is None:
        events.append(
            New("TableCreated", {"schema": [[field.name, str(field.type)] for field in rows.schema], "owner": table.owner})
        )
    warehouse.create(table.name, rows.schema)
    file = warehouse.stage(table.name, rows, digest)
    expected = rows.num_rows

    def audit(staged: pa.Table) -> None:
        if staged.num_rows != expected:
            raise InvalidShard(f"{staged.num_rows} staged rows", f"{expected} rows", "ingest the file again")

    snapshot = warehouse.publish(table.name, file, attempt=digest, audit=audit)
    times = columns[table.time][columns[table.time] != NO_TIME]
    data = {
        "shard": path.stem,
        "sha256": digest,
        "rows": rows.num_rows,
        "snapshot": snapshot,
        "file": str(file),
        "time_min": int(times.min()),
        "time_max": int(times.max()),
        "profile": artifacts.put(Profile.of(columns).to_json()),
        "tags": {"source": path.suffix.lstrip("."), "owner": table.owner, "spans": _spans(columns)},
        "makes": f"shard/{table.name}/{digest}",
        "from": [],
    }
    events.append(New("ShardPublished", data))
    journal.append(catalog.stream(table.name), events, expected=position)
    return Outcome("published", table.name, path.stem, digest, rows.num_rows, snapshot)


def _spans(columns: Columns) -> dict[str, list[int]]:
    """First and last moment of every time column, so that a reader can tell which shards it needs."""
    found = {}
    for name, values in columns.items():
        if values.dtype == np.int64 and len(known := values[values != NO_TIME]):
            found[name] = [int(known.min()), int(known.max())]
    return found


def _quarantine(
    path: Path, table: Table, digest: str, rows: int, reasons: tuple[Reason, ...], settings: Settings, journal: Journal
) -> Outcome:
    folder = settings.home / "quarantine" / table.name
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / f"{digest}{path.suffix}"
    part = kept.with_suffix(".part")
    shutil.copyfile(path, part)
    os.replace(part, kept)
    data = {
        "shard": path.stem,
        "sha256": digest,
        "rows": rows,
        "file": str(kept),
        "reasons": [asdict(reason) for reason in reasons],
    }
    journal.append(catalog.stream(table.name), [New("ShardQuarantined", data)])
    return Outcome("quarantined", table.name, path.stem, digest, rows, None, reasons)
