"""What Iceberg lacks or leaves open, on one loaded table: replacing data files, expiring snapshots, what is reachable. Knows no catalogue."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ct.errors import Conflict, NotFound

if TYPE_CHECKING:
    from pyiceberg.manifest import DataFile
    from pyiceberg.table import Table as IcebergTable
    from pyiceberg.table.metadata import TableMetadata


@dataclass(frozen=True)
class Staged:
    """A Parquet file of a table that no snapshot names yet: its address, the hash of its bytes, their number, and its rows."""

    address: str
    sha256: str
    size: int
    rows: int


@dataclass(frozen=True)
class Snapshot:
    """One state of a table, and what made it: "append", "overwrite" or "delete". `rows` counts those it holds."""

    id: int
    parent: int | None
    at: datetime
    operation: str
    rows: int
    notes: Mapping[str, str]


def state(found: Any) -> Snapshot:
    """What an Iceberg snapshot says of itself."""
    notes = dict(found.summary.additional_properties) if found.summary is not None else {}
    return Snapshot(
        id=int(found.snapshot_id),
        parent=found.parent_snapshot_id,
        at=datetime.fromtimestamp(found.timestamp_ms / 1000, UTC),
        operation=str(found.summary.operation.value) if found.summary is not None else "",
        rows=int(notes.get("total-records", "0")),
        notes=notes,
    )


def location(address: str) -> str:
    """An address of `Files` as Iceberg spells it."""
    return address if "://" in address else f"file://{address}"


def address(place: str) -> str:
    """Iceberg's spelling of a file's place as an address of `Files`."""
    return place.removeprefix("file://")


@contextmanager
def overtaking() -> Iterator[None]:
    """Raises CommitFailedException as well where pyiceberg 0.12 is overtaken on another branch and says ValueError."""
    from pyiceberg.exceptions import CommitFailedException

    try:
        yield
    except ValueError as error:
        if not re.search("older than last sequence number|Snapshot with snapshot id .* does not exist", str(error)):
            raise
        raise CommitFailedException(str(error)) from None


def rewrite(table: IcebergTable, old: Sequence[str], new: str | None, summary: dict[str, str]) -> int:
    """Replace the data files at `old` by the one at `new`, or by nothing, in one commit. Returns the snapshot's id.

    Raises Conflict when one of `old` is no longer in the table, or when somebody else commits meanwhile.
    """
    from pyiceberg.exceptions import CommitFailedException, ValidationException
    from pyiceberg.io.pyarrow import parquet_file_to_data_file

    live = {address(file.file_path): file for file in _live(table, table.current_snapshot())}
    if missing := [path for path in old if path not in live]:
        raise Conflict(f"{missing[0]} is not in the newest snapshot", "files of the newest snapshot", "read it again")
    try:
        with overtaking(), table.transaction() as transaction, transaction.update_snapshot(summary).overwrite() as change:
            for path in old:
                change.delete_data_file(live[path])
            if new is not None:
                change.append_data_file(parquet_file_to_data_file(table.io, table.metadata, location(new)))
            snapshot = change.snapshot_id
    except (CommitFailedException, ValidationException) as error:
        raise Conflict(f"the table has changed meanwhile: {error}", "the files as they were read", "read it again") from None
    return int(snapshot)


def data_files(table: IcebergTable, snapshot: int | None = None) -> tuple[str, ...]:
    """The addresses of a snapshot's data files (the newest's by default). Raises NotFound."""
    found = table.current_snapshot() if snapshot is None else table.snapshot_by_id(snapshot)
    if found is None:
        raise NotFound(f"there is no snapshot {snapshot}", "a snapshot that has not expired", "list the table's snapshots")
    return tuple(address(file.file_path) for file in _live(table, found))


def _live(table: IcebergTable, snapshot: Any) -> Iterable[DataFile]:
    for manifest in snapshot.manifests(table.io) if snapshot is not None else ():
        for entry in manifest.fetch_manifest_entry(table.io, discard_deleted=True):
            yield entry.data_file


def expirable(table: IcebergTable, keep: Iterable[int], older_than: datetime | None) -> tuple[int, ...]:
    """The snapshots that are neither some branch's or tag's head, nor in `keep`, nor as new as `older_than`; oldest first."""
    held = {ref.snapshot_id for ref in table.refs().values()} | set(keep)
    limit = None if older_than is None else older_than.timestamp() * 1000
    return tuple(
        int(snapshot.snapshot_id)
        for snapshot in sorted(table.snapshots(), key=lambda snapshot: snapshot.timestamp_ms)
        if snapshot.snapshot_id not in held and (limit is None or snapshot.timestamp_ms < limit)
    )


def expire(table: IcebergTable, snapshots: Sequence[int]) -> None:
    """Drop snapshots from the metadata. Raises CommitFailedException when a branch or tag was set meanwhile: it may hold one of them."""
    from pyiceberg.table.update import RemoveSnapshotsUpdate

    with table.transaction() as transaction:
        transaction._apply(
            (RemoveSnapshotsUpdate.model_validate({"snapshot-ids": list(snapshots)}),), (_same_refs(table.metadata),)
        )


def _same_refs(metadata: TableMetadata) -> Any:
    """The requirement that no branch or tag has been set or dropped since `metadata` was read. Iceberg has one only for a ref known by name."""
    from pyiceberg.exceptions import CommitFailedException
    from pyiceberg.table.update import ValidatableTableRequirement

    planned = {name: ref.snapshot_id for name, ref in metadata.refs.items()}

    class SameRefs(ValidatableTableRequirement):
        type: str = "assert-same-refs"

        def validate(self, base_metadata: TableMetadata | None) -> None:  # type: ignore[override]
            found = {name: ref.snapshot_id for name, ref in base_metadata.refs.items()} if base_metadata is not None else {}
            if found != planned:
                raise CommitFailedException("branches or tags have changed")

    return SameRefs()


def reaching(table: IcebergTable, files: Iterable[str]) -> tuple[int, ...]:
    """The snapshots with one of the data files at these addresses. Each manifest is read once, however many snapshots share it."""
    wanted, held = frozenset(files), dict[str, bool]()
    found = []
    for snapshot in table.snapshots() if wanted else ():
        for manifest in snapshot.manifests(table.io):
            if manifest.manifest_path not in held:
                entries = manifest.fetch_manifest_entry(table.io, discard_deleted=True)
                held[manifest.manifest_path] = any(address(entry.data_file.file_path) in wanted for entry in entries)
            if held[manifest.manifest_path]:
                found.append(int(snapshot.snapshot_id))
                break
    return tuple(found)


def reachable(table: IcebergTable, besides: Iterable[int] = ()) -> frozenset[str]:
    """The addresses of all files that the table needs: data, manifests and manifest lists of every snapshot, metadata and its log.

    What only the snapshots `besides` need is left out.
    """
    without = frozenset(besides)
    found = {table.metadata_location, *(entry.metadata_file for entry in table.metadata.metadata_log)}
    read: set[str] = set()
    for snapshot in table.snapshots():
        if snapshot.snapshot_id in without:
            continue
        found.add(snapshot.manifest_list)
        for manifest in snapshot.manifests(table.io):
            if manifest.manifest_path not in read:
                read.add(manifest.manifest_path)
                entries = manifest.fetch_manifest_entry(table.io, discard_deleted=True)
                found |= {manifest.manifest_path, *(entry.data_file.file_path for entry in entries)}
    found |= {file.statistics_path for file in table.metadata.statistics}
    return frozenset(map(address, found))
