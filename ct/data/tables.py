"""Iceberg tables: what is published in them, and the write-audit-publish that publishes. No rule about content lives here."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from ct.errors import Conflict, Corrupt, NotFound
from ct.settings import Settings
from ct.store.files import sync_folder

if TYPE_CHECKING:
    from pyiceberg.catalog.sql import SqlCatalog
    from pyiceberg.table import Table as IcebergTable

NAMESPACE = "ct"
ATTEMPT = "ct.attempt"
_PROPERTIES = {
    "format-version": "2",
    "commit.retry.num-retries": "20",
    "commit.manifest-merge.enabled": "true",
    "write.metadata.delete-after-commit.enabled": "true",
    "write.metadata.previous-versions-max": "10",
}
_TRIES = 20


@dataclass(frozen=True)
class ShardFile:
    """One published shard: a Parquet file of a snapshot. `time_min` and `time_max` are event times in microseconds UTC.

    `sha256` names the file that arrived, for ever; `content` the rows as they are now, which an erasure changes. Its rows lie in `path`
    from row `start` on, less those at the places `without`: `shards.read` is the door to them.
    """

    table: str
    shard: str
    sha256: str
    path: str
    rows: int
    snapshot: int
    time_min: int
    time_max: int
    tags: Mapping[str, Any] = field(default_factory=dict, hash=False)
    content: str = ""
    start: int = 0
    without: tuple[int, ...] = ()

    @property
    def identity(self) -> str:
        """What everything made from these rows is keyed by."""
        return self.content or self.sha256


@dataclass(frozen=True)
class Attempt:
    """A publication that reached the table: its id, its snapshot and the notes in the snapshot's summary."""

    attempt: str
    snapshot: int
    notes: Mapping[str, str]


class Warehouse:
    """The project's Iceberg tables, in one SQL catalogue."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    @cached_property
    def _catalog(self) -> SqlCatalog:
        from pyiceberg.catalog.sql import SqlCatalog

        self._settings.home.mkdir(parents=True, exist_ok=True)
        catalog = SqlCatalog(
            "ct", uri=self._settings.catalog_database, warehouse=self._settings.warehouse.as_uri(), **{"pool_pre_ping": "true"}
        )
        catalog.create_namespace_if_not_exists(NAMESPACE)
        return catalog

    def exists(self, name: str) -> bool:
        """Is there such a table?"""
        return bool(self._catalog.table_exists((NAMESPACE, name)))

    def create(self, name: str, schema: pa.Schema) -> None:
        """Create a table with one empty append, so that a branch has something to start from. Creating it twice is a no-op.

        Raises Conflict when it exists with another schema.
        """
        table = self._catalog.create_table_if_not_exists((NAMESPACE, name), schema, properties=_PROPERTIES)
        have, wanted = _shape(table.schema().as_arrow()), _shape(schema)
        if have != wanted:
            raise Conflict(f"table {name!r} has the columns {have}", f"the columns {wanted}", "use the table's own columns")
        if table.current_snapshot() is None:
            table.append(schema.empty_table())

    def snapshot(self, name: str) -> int | None:
        """The newest published snapshot's id, None for an unknown table."""
        if not self.exists(name):
            return None
        current = self._table(name).current_snapshot()
        return current.snapshot_id if current else None

    def staged(self, name: str, attempt: str) -> Path:
        """Where the file of an attempt lies."""
        return self._settings.warehouse / NAMESPACE / name / "shards" / f"{attempt}.parquet"

    def stage(self, name: str, rows: pa.Table, attempt: str) -> Path:
        """Write rows as a Parquet file of the table that no snapshot names yet. The same attempt writes the same path."""
        target = self.staged(name, attempt)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{attempt}.{os.getpid()}.part")
        with part.open("wb") as file:
            pq.write_table(rows, file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
        sync_folder(target.parent)
        return target

    def publish(
        self,
        name: str,
        file: Path,
        *,
        attempt: str,
        audit: Callable[[pa.Table], None] | None = None,
        notes: Mapping[str, str] = MappingProxyType({}),
    ) -> int:
        """Make a staged file visible: add it on a branch, audit it there, fast-forward. Returns the snapshot's id.

        An attempt that is already published is looked up and returned. A publisher that was overtaken builds its branch anew.
        `notes` stay with the snapshot. Raises Conflict when it is overtaken too often, and whatever `audit` raises, leaving the
        table as it was.
        """
        for _ in range(_TRIES):
            if (found := self.published(name, attempt)) is not None:
                return found
            snapshot = self._try_publish(name, file, {**notes, ATTEMPT: attempt}, audit)
            if snapshot is not None:
                return snapshot
        raise Conflict(f"{_TRIES} other publishers were faster at table {name!r}", "a free moment", "try again")

    def _try_publish(
        self, name: str, file: Path, summary: dict[str, str], audit: Callable[[pa.Table], None] | None
    ) -> int | None:
        """The new snapshot's id, None when somebody else changed the table meanwhile."""
        from pyiceberg.exceptions import CommitFailedException

        table = self._table(name)
        base = table.current_snapshot()
        if base is None:
            raise NotFound(f"table {name!r} has no snapshot", "one empty append at creation", "create it with Warehouse.create")
        # Named by the attempt alone, so that what a killed publisher left is found and cleared by the next one.
        branch = f"audit-{summary[ATTEMPT][:16]}"
        try:
            if branch in table.refs():
                table.manage_snapshots().remove_branch(branch).commit()
            table.manage_snapshots().create_branch(base.snapshot_id, branch).commit()
            table.add_files([file.as_uri()], snapshot_properties=summary, check_duplicate_files=False, branch=branch)
            head = table.refs()[branch].snapshot_id
            _audit(table, base.snapshot_id, head, file, audit)
            table.refresh()
            current, refs = table.current_snapshot(), table.refs()
            # Setting main to a branch that does not descend from it would drop rows without a word.
            if current is None or current.snapshot_id != base.snapshot_id:
                return None
            if branch not in refs or refs[branch].snapshot_id != head:
                return None
            table.manage_snapshots().set_current_snapshot(ref_name=branch).remove_branch(branch).commit()
            return head
        except CommitFailedException:
            return None
        finally:
            self._drop_branch(name, branch)

    def _drop_branch(self, name: str, branch: str) -> None:
        from pyiceberg.exceptions import CommitFailedException

        for _ in range(_TRIES):
            table = self._table(name)
            if branch not in table.refs():
                return
            try:
                table.manage_snapshots().remove_branch(branch).commit()
            except CommitFailedException:
                continue

    def attempts(self, name: str) -> tuple[Attempt, ...]:
        """What was published in the newest snapshot and its ancestors, oldest first; nothing for an unknown table."""
        if not self.exists(name):
            return ()
        table = self._table(name)
        by_id = {snapshot.snapshot_id: snapshot for snapshot in table.snapshots()}
        current, found = table.current_snapshot(), []
        while current is not None:
            notes = dict(current.summary.additional_properties) if current.summary is not None else {}
            if ATTEMPT in notes:
                found.append(Attempt(notes[ATTEMPT], int(current.snapshot_id), notes))
            current = by_id.get(current.parent_snapshot_id) if current.parent_snapshot_id else None
        return tuple(reversed(found))

    def published(self, name: str, attempt: str) -> int | None:
        """The snapshot that published `attempt`, None when none did."""
        return next((known.snapshot for known in self.attempts(name) if known.attempt == attempt), None)

    def append(self, name: str, rows: pa.Table, *, attempt: str) -> int:
        """Publish rows without an audit, creating the table at first. The same attempt twice is a no-op."""
        self.create(name, rows.schema)
        # A published file is never written again.
        known = self.published(name, attempt)
        return self.publish(name, self.stage(name, rows, attempt), attempt=attempt) if known is None else known

    def scan(self, name: str, *, columns: tuple[str, ...] | None = None, snapshot: int | None = None) -> pa.Table:
        """The rows of a snapshot (the newest by default), in one Arrow table."""
        return self._table(name).scan(selected_fields=columns or ("*",), snapshot_id=snapshot).to_arrow()

    def to_ray(self, name: str, *, columns: tuple[str, ...] | None = None, snapshot: int | None = None) -> Any:
        """The rows of a snapshot (the newest by default) as a Ray Dataset, one task a file."""
        import ray

        # DataSource V2 reads all small files in one task.
        ray.data.DataContext.get_current().use_datasource_v2 = False
        planned = self._table(name).scan(snapshot_id=snapshot).plan_files()
        files = [task.file.file_path.removeprefix("file://") for task in planned]
        return ray.data.read_parquet(files, columns=list(columns) if columns else None, override_num_blocks=len(files))

    def _table(self, name: str) -> IcebergTable:
        from pyiceberg.exceptions import NoSuchTableError

        try:
            return self._catalog.load_table((NAMESPACE, name))
        except NoSuchTableError:
            raise NotFound(
                f"there is no table {name!r}", "a table with a published shard", f"run `ct ingest {name} FILE`"
            ) from None


def _audit(table: IcebergTable, base: int, head: int, file: Path, audit: Callable[[pa.Table], None] | None) -> None:
    """Does the branch's head hold the base's rows and the file's, each once? Then the caller's own audit of the file's rows."""
    rows = pq.read_table(file, memory_map=True)
    expected = _total(table, base) + rows.num_rows
    if (found := _total(table, head)) != expected:
        raise Corrupt(f"the branch with {file.name} has {found:,} rows", f"{expected:,} rows", "publish the file again")
    if audit is not None:
        audit(rows)


def _total(table: IcebergTable, snapshot_id: int) -> int:
    snapshot = table.snapshot_by_id(snapshot_id)
    if snapshot is None or snapshot.summary is None:
        return 0
    return int(snapshot.summary.additional_properties.get("total-records", "0"))


def _shape(schema: pa.Schema) -> dict[str, str]:
    """Column names and types, in which the widths of text offsets and the insides of nested types do not count."""
    spelled = {field.name: "nested" if pa.types.is_nested(field.type) else str(field.type) for field in schema}
    return {name: text.removeprefix("large_") for name, text in spelled.items()}
