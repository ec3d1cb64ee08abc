"""Iceberg tables: what is published in them, and the write-audit-publish that publishes. No rule about content lives here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from ct.data import snapshots
from ct.data.iceberg import ATTEMPT, FILE, FILE_SHA256, NAMESPACE, Tables, settled, shape, times, told
from ct.data.snapshots import Snapshot, Staged
from ct.errors import Conflict, Corrupt, CtError, NotFound
from ct.store import files
from ct.store.files import Files

if TYPE_CHECKING:
    from pyiceberg.table import Table as IcebergTable

__all__ = ["Attempt", "ShardFile", "Snapshot", "Staged", "Warehouse", "verified"]

ROW_GROUP = 131_072

_PROPERTIES = {
    "format-version": "2",
    "commit.retry.num-retries": "20",
    "commit.retry.min-wait-ms": "20",
    "commit.retry.max-wait-ms": "1000",
    "commit.manifest-merge.enabled": "true",
    "write.metadata.delete-after-commit.enabled": "true",
    "write.metadata.previous-versions-max": "10",
    # Manifests outlive the rows of an erased person; they may hold no value that could be a key.
    "write.metadata.metrics.default": "none",
}


@dataclass(frozen=True)
class ShardFile:
    """One published shard: a Parquet file of a snapshot. `time_min` and `time_max` are event times in microseconds UTC.

    `sha256` names the file that arrived, for ever; `content` the rows as they are now, which an erasure changes. Its rows lie in `path`
    from row `start` on, less those at the places `without`: `shards.read` is the door to them. `file_sha256` is the hash of the bytes
    at `path`. `types` are the table's columns as its contract has them now.
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
    file_sha256: str = ""
    types: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def identity(self) -> str:
        """What everything made from these rows is keyed by."""
        return self.content or self.sha256


@dataclass(frozen=True)
class Attempt:
    """A publication that reached the table: its id, its snapshot, its file, and the notes in the snapshot's summary."""

    attempt: str
    snapshot: int
    notes: Mapping[str, str]

    @property
    def file(self) -> str:
        """The address of its Parquet file."""
        return self.notes[FILE]

    @property
    def file_sha256(self) -> str:
        """The hash of that file's bytes."""
        return self.notes[FILE_SHA256]


class Warehouse(Tables):
    """The project's Iceberg tables, in one SQL catalogue. Every method raises Unavailable when the catalogue or the storage does not answer."""

    def _shards(self, name: str) -> Files:
        return Files(f"{self._settings.place('warehouse')}/{NAMESPACE}/{name}/shards")

    @told
    def create(self, name: str, schema: pa.Schema) -> int:
        """Create a table with one empty append, so that a branch has something to start from, and return that snapshot's id.

        Creating it twice is a no-op, which returns the oldest snapshot there still is.
        Raises Conflict when it exists with another schema; columns that the table has besides are no fault.
        """
        properties = _PROPERTIES | {f"write.metadata.metrics.column.{column}": "full" for column in times(schema)}
        table = self._catalog.create_table_if_not_exists((NAMESPACE, name), schema, properties=properties)
        have, wanted = shape(table.schema().as_arrow()), shape(schema)
        if {column: have.get(column) for column in wanted} != wanted:
            raise Conflict(f"table {name!r} has the columns {have}", f"the columns {wanted}", "use the table's own columns")
        if table.current_snapshot() is None:
            self._change(name, lambda table: table.append(schema.empty_table()) if table.current_snapshot() is None else None)
        return self._ancestors(name)[0].id

    @told
    def stage(
        self,
        name: str,
        rows: pa.Table,
        attempt: str,
        *,
        order: Sequence[str] = (),
        agreed: Callable[[], None] | None = None,
    ) -> Staged:
        """Write rows as a Parquet file of the table that no snapshot names yet. The same rows of the same attempt have the same address.

        Row groups of 131,072 rows, zstd, checksums on every page, statistics of the time columns only. `order` names the columns that
        the rows are sorted by, which the file notes. `agreed` is asked before the file gets its name: if it raises, there is none.
        """
        with self._shards(name).draft() as file:
            pq.write_table(
                rows,
                file,
                compression="zstd",
                row_group_size=ROW_GROUP,
                write_statistics=times(rows.schema) or False,
                write_page_checksum=True,
                store_schema=False,  # a text of few values may come as a dictionary and is a text all the same
                use_dictionary=_repeating(rows.schema) or False,
                sorting_columns=pq.SortingColumn.from_ordering(rows.schema, [(name, "ascending") for name in order])
                if order
                else None,
            )
            if agreed is not None:
                agreed()
            file.name = f"{attempt}-{file.sha256[:16]}.parquet"
        return Staged(self._shards(name).address(file.name), file.sha256, file.size, rows.num_rows)

    def publish(
        self,
        name: str,
        staged: Staged,
        *,
        attempt: str,
        base: int | None = None,
        audit: Callable[[pa.Table], None] | None = None,
        notes: Mapping[str, str] = MappingProxyType({}),
    ) -> int:
        """Make a staged file visible: add it on a branch, audit it there, fast-forward. Returns the snapshot's id.

        An attempt that is already published is looked up and returned, also when the answer to its commit was lost. A publisher that was
        overtaken builds its branch anew; one that names the snapshot `base` it has decided upon gets Conflict instead. `notes` stay with
        the snapshot. Raises Conflict as well when it is overtaken for too long, and whatever `audit` raises, leaving the table as it was.
        """
        summary = {**notes, ATTEMPT: attempt, FILE: staged.address, FILE_SHA256: staged.sha256}

        def once() -> int | None:
            found = self.published(name, attempt)
            return found if found is not None else self._try_publish(name, staged, summary, base, audit)

        return settled(f"table {name!r}", once)

    @told
    def _try_publish(
        self,
        name: str,
        staged: Staged,
        summary: dict[str, str],
        decided: int | None,
        audit: Callable[[pa.Table], None] | None,
    ) -> int | None:
        """The new snapshot's id, None when somebody else changed the table meanwhile."""
        from pyiceberg.exceptions import CommitFailedException

        table = self._table(name)
        base = table.current_snapshot()
        if base is None:
            raise NotFound(f"table {name!r} has no snapshot", "one empty append at creation", "create it with Warehouse.create")
        if decided is not None and decided != base.snapshot_id:
            raise Conflict(f"table {name!r} is at snapshot {base.snapshot_id}", f"snapshot {decided}", "read it again")
        # Named by the attempt alone, so that what a killed publisher left is found and cleared by the next one.
        branch = f"audit-{summary[ATTEMPT][:16]}"
        try:
            if branch in table.refs():
                table.manage_snapshots().remove_branch(branch).commit()
            table.manage_snapshots().create_branch(base.snapshot_id, branch).commit()
            place = snapshots.location(staged.address)
            with snapshots.overtaking():
                table.add_files([place], snapshot_properties=summary, check_duplicate_files=False, branch=branch)
            head = table.refs()[branch].snapshot_id
            made = table.snapshot_by_id(head)
            # Another publisher of the same attempt has dropped the branch, and ours began anew from nothing.
            if made is None or made.parent_snapshot_id != base.snapshot_id:
                return None
            _audit(table, base.snapshot_id, head, staged, audit)
            table.refresh()
            current, refs = table.current_snapshot(), table.refs()
            # Setting main to a branch that does not descend from it would drop rows without a word.
            if current is None or current.snapshot_id != base.snapshot_id:
                return None
            if branch not in refs or refs[branch].snapshot_id != head:
                return None
            table.manage_snapshots().set_current_snapshot(ref_name=branch).remove_branch(branch).commit()
            branch = ""
            return head
        except CommitFailedException:
            return None
        finally:
            with suppress(CtError):  # the next publisher of the attempt, or the maintenance, clears it too
                if branch:
                    self._drop(name, branch)

    @told
    def attempts(self, name: str) -> tuple[Attempt, ...]:
        """What was published in the newest snapshot and its ancestors that have not expired, oldest first; nothing for an unknown table."""
        found = [state for state in self._ancestors(name) if ATTEMPT in state.notes]
        return tuple(Attempt(state.notes[ATTEMPT], state.id, state.notes) for state in found)

    def published(self, name: str, attempt: str) -> int | None:
        """The snapshot that published `attempt`, None when none did."""
        return next((known.snapshot for known in self.attempts(name) if known.attempt == attempt), None)

    @told
    def append(self, name: str, rows: pa.Table, *, attempt: str) -> int:
        """Publish rows without an audit, creating the table at first. The same attempt twice is a no-op."""
        self.create(name, rows.schema)
        known = self.published(name, attempt)
        return self.publish(name, self.stage(name, rows, attempt), attempt=attempt) if known is None else known

    @told
    def scan(self, name: str, *, columns: tuple[str, ...] | None = None, snapshot: int | None = None) -> pa.Table:
        """The rows of a snapshot (the newest by default), in one Arrow table."""
        return self._table(name).scan(selected_fields=columns or ("*",), snapshot_id=snapshot).to_arrow()

    @told
    def to_ray(self, name: str, *, columns: tuple[str, ...] | None = None, snapshot: int | None = None) -> Any:
        """The rows of a snapshot (the newest by default) as a Ray Dataset, one task a file."""
        import ray

        # DataSource V2 reads all small files in one task.
        ray.data.DataContext.get_current().use_datasource_v2 = False
        found = self.files(name, snapshot)
        system = files.client() if found and found[0].startswith(files.REMOTE) else None
        return ray.data.read_parquet(
            list(found), filesystem=system, columns=list(columns) if columns else None, override_num_blocks=len(found)
        )


def verified(shard: ShardFile) -> ShardFile:
    """`shard` itself, once the bytes of its file are those that were published. A file is read once a process for this, at about 1 GB/s.

    Raises Corrupt when they differ, NotFound when the file is gone, Unavailable when the store does not answer.
    """
    if shard.file_sha256 and (found := files.digest_once(shard.path)) != shard.file_sha256:
        raise Corrupt(
            f"the file of shard {shard.shard!r} of table {shard.table!r} has the hash {found[:12]}",
            f"{shard.file_sha256[:12]}, as it was published",
            f"restore {shard.path} from a backup, or erase the shard and ingest it again",
        )
    return shard


def _audit(table: IcebergTable, base: int, head: int, staged: Staged, audit: Callable[[pa.Table], None] | None) -> None:
    """Does the branch's head hold the base's rows and the file's, each once? Then the caller's own audit of the file's rows."""
    with files.open_input(staged.address) as file:
        added = pq.read_metadata(file).num_rows
    expected = _total(table, base) + added
    if (found := _total(table, head)) != expected or added != staged.rows:
        name = staged.address.rpartition("/")[2]
        raise Corrupt(f"the branch with {name} has {found:,} rows", f"{expected:,} rows", "publish the file again")
    if audit is not None:
        with files.open_input(staged.address) as file:
            audit(pq.read_table(file))


def _repeating(schema: pa.Schema) -> list[str]:
    """The columns worth a dictionary: those that have one, else those whose values are likely to repeat."""
    known = [field.name for field in schema if pa.types.is_dictionary(field.type)]
    rare = (pa.types.is_floating, pa.types.is_temporal)
    return known or [field.name for field in schema if not any(is_rare(field.type) for is_rare in rare)]


def _total(table: IcebergTable, snapshot_id: int) -> int:
    found = table.snapshot_by_id(snapshot_id)
    return snapshots.state(found).rows if found is not None else 0
