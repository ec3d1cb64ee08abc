"""Somebody else's Iceberg table as a source: every snapshot that appends is a shard. The table is only read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from ct.data.sources.extract import extract
from ct.errors import Conflict, InvalidPipeline, InvalidRequest, InvalidShard, NotFound, Unavailable
from ct.roles import Arrival, Cursor

if TYPE_CHECKING:
    from pyiceberg.table import Table
    from pyiceberg.table.snapshots import Snapshot

_SECRET = re.compile(r"secret|password|token|credential|access-key", re.IGNORECASE)


@dataclass(frozen=True)
class IcebergTable:
    """The Iceberg table `table` ("namespace.name") of a catalogue: a name of pyiceberg's configuration (PYICEBERG_CATALOG__NAME__URI and
    the like, where secrets belong), with `properties` beside it, such as {"uri": "sqlite:////data/catalog.db"}.

    The first shard is the table as it stands; after it each snapshot that appends becomes one, named after its id. Compactions change
    no rows and are passed over. A snapshot that deletes or overwrites rows stops the reading with an error that says how to go on.
    """

    catalog: str
    table: str
    properties: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if any(_SECRET.search(name) or re.search(r"://[^/@]*:[^/@]*@", value) for name, value in self.properties.items()):
            raise InvalidPipeline(
                f"the properties of {self.explain()} hold a secret",
                "secrets in the environment",
                f"set PYICEBERG_CATALOG__{self.catalog.upper()}__… instead",
            )
        if "://" in self.catalog:
            raise InvalidPipeline(
                "the catalogue of an IcebergTable is a URI", "a name", "give the URI as properties={'uri': …}"
            )
        if "." not in self.table:
            raise InvalidPipeline(f"IcebergTable({self.catalog!r}, {self.table!r})", "namespace.name", "name the namespace too")

    @classmethod
    def example(cls) -> IcebergTable:
        """One of its kind."""
        return cls("lake", "shop.orders", {"uri": "sqlite:////data/catalog.db"})

    def explain(self) -> str:
        """The table."""
        return f"Iceberg table {self.table} of catalogue {self.catalog}"

    def pending(self, cursor: Cursor) -> tuple[Arrival, ...]:
        """The snapshots after the cursor's up to the first that takes rows away, oldest first; the newest alone when reading begins.

        Raises InvalidShard when the very next one takes rows away, Conflict when the table's history does not lead to the cursor.
        """
        table = self._open()
        now = table.current_snapshot()
        if not cursor.position:
            first = now if not cursor.started else table.snapshot_by_id(self._id(cursor.started, table))
            if first is None and cursor.started:
                raise self._lost(cursor.started, now)
            return (self._arrival(first, table, after=""),) if first is not None and _holds_rows(first) else ()
        found: list[Arrival] = []
        last = cursor.position
        for snapshot in self._after(cursor.position, table):
            operation = snapshot.summary.operation.value if snapshot.summary else "unknown"
            if operation == "append":
                if _adds_rows(snapshot):
                    found.append(self._arrival(snapshot, table, after=last))
                    last = found[-1].position
            elif operation != "replace":  # which rewrites files and changes no row
                if found:
                    break
                raise InvalidShard(
                    f"snapshot {snapshot.snapshot_id} of {self.explain()} takes rows away ({operation})",
                    "snapshots that append",
                    f"mend what was published (`ct erase`, `ct ingest TABLE FILE`), then `ct ingest TABLE --new --after {snapshot.snapshot_id}`",
                )
        return tuple(found)

    def _after(self, position: str, table: Table) -> list[Snapshot]:
        """The snapshots between a position and the present, oldest first. Raises Conflict."""
        from pyiceberg.table.snapshots import ancestors_of

        read = self._id(position, table)
        found: list[Snapshot] = []
        for snapshot in ancestors_of(table.current_snapshot(), table.metadata):
            if snapshot.snapshot_id == read:
                return found[::-1]
            found.append(snapshot)
        # The position itself may have expired, as long as the next one still names it, or, as pyiceberg's expiry takes the name away
        # too, was the table's very next commit. Tables of format 1 count no commits.
        oldest, count = found[-1] if found else None, int(position.split("/")[1])
        follows = oldest and (oldest.parent_snapshot_id == read or (count and oldest.sequence_number == count + 1))
        if follows and table.snapshot_by_id(read) is None:
            return found[::-1]
        raise self._lost(position, table.current_snapshot())

    def _lost(self, position: str, now: Snapshot | None) -> Conflict:
        newest = now.snapshot_id if now else "none"
        return Conflict(
            f"the history of {self.explain()} does not lead from snapshot {position.rpartition('/')[2]}, read last, to the newest, {newest}",
            "no snapshot expired or rolled back before it is read",
            "compare both tables, bring what is missing by `ct ingest TABLE FILE`, "
            f"then go on with `ct ingest TABLE --new --after {newest}`",
        )

    def _arrival(self, snapshot: Snapshot, table: Table, *, after: str) -> Arrival:
        size = _said(snapshot).get("added-files-size" if after else "total-files-size")
        position = self._position(snapshot, table)
        return Arrival(f"snapshot-{snapshot.snapshot_id}.parquet", position, int(size) if size else None, after=after)

    def _position(self, snapshot: Snapshot, table: Table) -> str:
        return f"{table.metadata.table_uuid}/{snapshot.sequence_number or 0}/{snapshot.snapshot_id}"

    def fetch(self, arrival: Arrival, cursor: Cursor, folder: Path) -> Path:
        """The snapshot's rows as a Parquet file in `folder`, read and written by a child process."""
        how = "added" if arrival.after else "all"
        return extract(self, f"{how}/{arrival.position}", cursor.root, folder / arrival.name)

    def rows(self, position: str, root: Path) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
        """`all/POSITION`: the table as of that snapshot; `added/POSITION`: what it appended. In the snapshot's own columns, files by path."""
        from pyiceberg.expressions import AlwaysTrue
        from pyiceberg.io.pyarrow import ArrowScan, schema_to_pyarrow

        how, _, position = position.partition("/")
        table = self._open()
        snapshot = table.snapshot_by_id(self._id(position, table))
        if snapshot is None:
            raise self._lost(position, table.current_snapshot())
        schema = table.schemas()[snapshot.schema_id] if snapshot.schema_id is not None else table.schema()
        if how == "all":
            planned = table.scan(snapshot_id=snapshot.snapshot_id).plan_files()
        else:
            planned = table.incremental_append_scan(
                from_snapshot_id_exclusive=snapshot.parent_snapshot_id, to_snapshot_id_inclusive=snapshot.snapshot_id
            ).plan_files()
        scan = ArrowScan(table.metadata, table.io, schema, AlwaysTrue())
        tasks = sorted(planned, key=lambda task: str(task.file.file_path))
        # One task at a time: together they would all be in memory.
        return schema_to_pyarrow(schema, include_field_ids=False), (
            batch for task in tasks for batch in scan.to_record_batches([task])
        )

    def locate(self, text: str, cursor: Cursor) -> str:
        """The position of the snapshot with the id `text`. Raises InvalidRequest when the table has none."""
        table = self._open()
        found = table.snapshot_by_id(int(text)) if text.isdecimal() else None
        if found is None:
            known = [snapshot.snapshot_id for snapshot in table.snapshots()][-5:]
            raise InvalidRequest(
                f"{self.explain()} has no snapshot {text!r}", f"an id such as {known}", "see the table's history"
            )
        return self._position(found, table)

    def _id(self, position: str, table: Table) -> int:
        """The snapshot's id in a position of this very table. Raises Conflict."""
        uuid, _, snapshot = position.split("/")
        if uuid != str(table.metadata.table_uuid):
            raise Conflict(
                f"{self.explain()} is another table than the one that was read up to snapshot {snapshot}",
                "the same table",
                "name the snapshot to go on after: `ct ingest TABLE --new --after SNAPSHOT`",
            )
        return int(snapshot)

    def _open(self) -> Table:
        from pyiceberg.catalog import load_catalog
        from pyiceberg.exceptions import NoSuchTableError

        ours = {"py-io-impl": "ct.store.tablefiles.TableFiles", "init_catalog_tables": "false"}
        try:
            with closing(load_catalog(self.catalog, **{**ours, **self.properties})) as catalog:
                return catalog.load_table(self.table)
        except NoSuchTableError:
            raise NotFound(f"there is no {self.explain()}", "a table", "check namespace and name") from None
        except Exception as error:  # a catalogue may raise anything that its database or server does
            said = re.sub(r"://[^@\s]*@", "://***@", (str(error).splitlines() or [""])[0])[:200]
            raise Unavailable(
                f"{self.explain()} cannot be opened: {type(error).__name__}: {said}", "a catalogue that answers", "check it"
            ) from None


def _said(snapshot: Snapshot) -> Mapping[str, str]:
    return snapshot.summary.additional_properties if snapshot.summary else {}


def _holds_rows(snapshot: Snapshot) -> bool:
    return _said(snapshot).get("total-records") != "0"


def _adds_rows(snapshot: Snapshot) -> bool:
    said = _said(snapshot)
    return said.get("added-records", "0") != "0" or ("added-records" not in said and "added-data-files" in said)
