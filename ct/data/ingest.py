"""Write, audit, publish: a shard becomes visible whole and checked, or goes to quarantine with its reasons. Safe to repeat at any point."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from ct.clock import Clock, SystemClock
from ct.data import arriving, catalog, checks, personal, profiled, publishing
from ct.data.arriving import Arrived, Reader, Refusal, fault
from ct.data.checks import Reason
from ct.data.columns import Rows
from ct.data.contract import Conformed, conform
from ct.data.past import Published
from ct.data.publishing import Stores
from ct.data.rules.not_null import NotNull
from ct.data.tables import Warehouse
from ct.errors import Conflict
from ct.pipeline import Table
from ct.settings import Settings
from ct.store.artifacts import Artifacts
from ct.store.journal import Journal, New

_TRIES = 10
_CAUSE = "ct.cause"


@dataclass(frozen=True)
class Outcome:
    """What became of a file. `kind` is "published", "duplicate", "empty" or "quarantined".

    `reasons` say why it was refused, `warnings` what its owner should know of a published one, why rows were set aside included;
    `aside` counts those. A duplicate says neither.
    """

    kind: str
    table: str
    shard: str
    sha256: str
    rows: int
    snapshot: int | None = None
    reasons: tuple[Reason, ...] = ()
    warnings: tuple[Reason, ...] = ()
    aside: int = 0

    def to_json(self) -> dict[str, Any]:
        """The outcome as plain data."""
        return asdict(self)


def ingest(
    path: Path,
    table: Table,
    *,
    settings: Settings,
    journal: Journal,
    warehouse: Warehouse,
    artifacts: Artifacts,
    clock: Clock | None = None,
    origin: str = "file",
    reader: Reader | None = None,
) -> Outcome:
    """Check a file and publish it as one shard of `table`, or quarantine it. The same bytes twice are a no-op.

    `origin` says where the file comes from, for the shard's tags; `reader` is one to be used again. A quarantined file is looked at again only once the table's declaration
    has changed. Raises InvalidShard when there is no such file or somebody writes to it, InvalidPipeline when a check or the function of
    tags cannot be run, InvalidSettings when a table has personal columns and the project no secret, Conflict when other machines' ingests
    keep overtaking.
    """
    now = (clock or SystemClock()).now()
    microseconds = round(now.timestamp() * 1e6)
    file = arriving.arrived(path, table, origin=origin, now=microseconds)
    with (
        nullcontext(reader) if reader is not None else closing(Reader()) as reading,
        _turn(settings.home / "incoming" / table.name),
    ):
        stores = Stores(settings, journal, warehouse, artifacts, reading)
        for _ in range(_TRIES):
            try:
                return _once(file, stores)
            except Conflict:  # the table has moved on: look again, decide again
                continue
    raise Conflict(f"table {table.name!r} changed {_TRIES} times meanwhile", "a free moment", "ingest the file again")


@contextmanager
def _turn(name: Path) -> Iterator[None]:
    """One ingest of a table at a time on this machine."""
    name.parent.mkdir(parents=True, exist_ok=True)
    with name.with_suffix(".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _once(file: Arrived, stores: Stores) -> Outcome:
    journal = stores.journal
    position = journal.version(file.stream)
    if known := _known(file, journal):
        return known
    try:
        judged, past, arrived = _conformed(file, stores)
        if judged.rows.num_rows == 0:
            event = New("ShardEmpty", {"shard": file.shard, "sha256": file.digest})
            journal.append(file.stream, [event], expected=position)
            return _outcome("empty", file)
        with ThreadPoolExecutor(2) as threads:
            return _checked(file, judged, past, arrived, stores, position, threads)
    except Refusal as refused:
        if publishing.enter(file.table, stores, position):
            raise Conflict("shards of an ingest that was killed", "all published shards in the journal", "look again") from None
        publishing.quarantine(file, refused, stores, position)
        rows = refused.rows.num_rows if refused.rows is not None else 0
        return _outcome("quarantined", file, rows, reasons=refused.reasons)


def _outcome(kind: str, file: Arrived, rows: int = 0, **more: Any) -> Outcome:
    return Outcome(kind, file.table.name, file.shard, file.digest, rows, **more)


def _known(file: Arrived, journal: Journal) -> Outcome | None:
    for shard in catalog.arrived(journal, file.table.name):
        if shard.sha256 == file.digest:
            return _outcome("duplicate", file, shard.rows, snapshot=shard.snapshot)
    for item in catalog.quarantined(journal, file.table.name):
        if item["sha256"] == file.digest and item["rules"] == file.rules:
            reasons = tuple(Reason(r["check"], r["found"], r["rows"], tuple(r["examples"])) for r in item["reasons"])
            return _outcome("quarantined", file, item["rows"], reasons=reasons)
    if file.digest in catalog.empty(journal, file.table.name):
        return _outcome("empty", file)
    return None


def _conformed(file: Arrived, stores: Stores) -> tuple[Conformed, Published, pa.Table]:
    """The rows in the contract's columns, what was published before, and the rows as they came, veiled. Raises Refusal."""
    table, journal = file.table, stores.journal
    contract = catalog.contract(journal, table.name)
    arriving.check_name(file, catalog.arrived(journal, table.name))
    key = personal.secret() if table.personal else b""
    rows = _veiled(arriving.read(file, contract, stores.reader), table, key)
    known = catalog.published(journal, table.name)
    past = Published(file.now, known, lambda: profiled.whole(journal, stores.artifacts, table.name))
    judged = conform(rows, contract, table, past, _lacking(journal, table.name))
    if judged.refused:
        raise Refusal(judged.refused, rows)
    return judged, past, rows


def _checked(
    file: Arrived,
    judged: Conformed,
    past: Published,
    arrived: pa.Table,
    stores: Stores,
    position: int,
    threads: ThreadPoolExecutor,
) -> Outcome:
    """Check the rows and publish what is left of them. Where no check sets rows aside, they are staged and profiled meanwhile."""
    table = file.table
    rules = (NotNull(*dict.fromkeys([*table.keys, table.time])), *table.checks)
    work = None if checks.sets_aside(rules) else publishing.Work(file, judged.rows, stores, threads)
    try:
        found, left = checks.run(rules, Rows(judged.rows), past, time=table.time, hidden=table.keys)
        assert isinstance(left, Rows)
        if found.refused:
            raise Refusal(found.refused, arrived)
        if not left.table.num_rows:
            raise Refusal((*found.aside, fault("rows", "every row would be set aside", "rows to publish")), arrived)
        causes = pa.array(found.causes[found.rows_aside], pa.string())
        aside = judged.rows.filter(found.rows_aside).append_column(_CAUSE, causes)
        work = work or publishing.Work(file, left.table, stores, threads)
        snapshot = publishing.publish(file, work, judged, found, aside, stores, position)
    finally:
        if work is not None:
            work.give_up()
    warnings = (*judged.warnings, *found.warnings, *found.aside)
    return _outcome("published", file, work.rows.num_rows, snapshot=snapshot, warnings=warnings, aside=aside.num_rows)


def _veiled(rows: pa.Table, table: Table, key: bytes) -> pa.Table:
    """The rows without what is personal. A file that lacks a personal column may hold it under another name: nothing of it is kept."""
    absent = [part.column for part in table.personal if part.column not in rows.column_names]
    if absent:
        found = f"personal column(s) {', '.join(map(repr, absent))} missing"
        raise Refusal(
            (fault("schema", found, "every column that the pipeline calls personal, so that none hides behind another name"),)
        )
    return personal.veiled(rows, table.personal, key)


def _lacking(journal: Journal, table: str) -> frozenset[str]:
    """Columns of which published rows lack values, or that came after the first shard."""
    found: set[str] = set()
    for event in journal.read(catalog.stream(table), types=["ShardPublished", "ContractChanged"]):
        found |= set(event.data["missing"] if event.type == "ShardPublished" else event.data["added"])
    return frozenset(found)
