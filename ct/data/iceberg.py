"""The Iceberg tables in their SQL catalogue: opening them, and every change of metadata that adds no rows. See data/tables.py for the rest."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import cached_property, wraps
from types import MappingProxyType
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

import pyarrow as pa

from ct.data import snapshots
from ct.data.snapshots import Snapshot, Staged
from ct.errors import Conflict, Corrupt, NotFound, Unavailable
from ct.settings import Settings
from ct.store import database

if TYPE_CHECKING:
    from pyiceberg.catalog.sql import SqlCatalog
    from pyiceberg.table import Table as IcebergTable

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T", bound="Tables")
NAMESPACE = "ct"
ATTEMPT, REWRITE, FILE, FILE_SHA256 = "ct.attempt", "ct.rewrite", "ct.file", "ct.file_sha256"
PATIENCE_SECONDS, LOST_SECONDS = 120, 10
"""How long one that is overtaken again and again goes on, and one that gets no answer."""


def told(method: Callable[Concatenate[T, P], R]) -> Callable[Concatenate[T, P], R]:
    """Turns what the catalogue's database and the file system say into our errors."""

    @wraps(method)
    def asked(self: T, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with database.answering(self._settings.catalog_database):
                return method(self, *args, **kwargs)
        except OSError as error:
            said = (error.strerror or str(error)).splitlines()[0][:200]
            raise Unavailable(f"the warehouse: {said}", "storage that answers", "see to it, then run it again") from None

    return asked  # type: ignore[return-value]


class Tables:
    """The project's Iceberg tables. Every method raises Unavailable when the catalogue or the storage does not answer."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    @cached_property
    def _catalog(self) -> SqlCatalog:
        import sqlalchemy as sa
        from pyiceberg.catalog.sql import SqlCatalog
        from pyiceberg.exceptions import NamespaceAlreadyExistsError
        from pyiceberg.table.snapshots import Snapshot, SnapshotLogEntry

        for frozen in (Snapshot, SnapshotLogEntry):  # pyiceberg 0.12 copies all of them thirty times a commit
            frozen.__deepcopy__ = _itself  # type: ignore[assignment, method-assign]
        logging.getLogger("pyiceberg").setLevel(logging.ERROR)  # that somebody was quicker is no news
        place = snapshots.location(self._settings.place("warehouse"))
        properties = {"pool_pre_ping": "true", "py-io-impl": "ct.store.tablefiles.TableFiles"}
        for left in range(4, -1, -1):
            try:
                catalog = SqlCatalog("ct", uri=database.reach(self._settings.catalog_database), warehouse=place, **properties)
                if catalog.engine.dialect.name == "sqlite":
                    catalog.engine.dispose()
                    sa.event.listen(catalog.engine, "connect", database.set_up)
                with suppress(NamespaceAlreadyExistsError):
                    catalog.create_namespace_if_not_exists(NAMESPACE)
                return catalog
            except (sa.exc.ProgrammingError, sa.exc.IntegrityError, sa.exc.OperationalError):
                if not left:
                    raise
                time.sleep(random.uniform(0.1, 0.3))  # another process is making the catalogue's own tables
        raise AssertionError

    @told
    def exists(self, name: str) -> bool:
        """Is there such a table?"""
        return self._find(name) is not None

    @told
    def names(self) -> tuple[str, ...]:
        """All tables."""
        return tuple(sorted(identifier[-1] for identifier in self._catalog.list_tables(NAMESPACE)))

    @told
    def snapshot(self, name: str) -> int | None:
        """The newest published snapshot's id, None for an unknown table."""
        table = self._find(name)
        current = table.current_snapshot() if table is not None else None
        return current.snapshot_id if current is not None else None

    @told
    def add_columns(self, name: str, schema: pa.Schema) -> None:
        """Give a table the columns of `schema` that it lacks, all of them nullable: files published before read as null there.

        Raises Conflict when it has one of them with another type.
        """

        def add(table: IcebergTable) -> None:
            have = table.schema().as_arrow()
            fresh = [column for column in schema if column.name not in have.names]
            old = pa.schema([column for column in schema if column.name in have.names])
            if shape(old) != {column: shape(have)[column] for column in old.names}:
                raise Conflict(f"table {name!r} has the columns {shape(have)}", f"{shape(old)}", "use the table's own types")
            if fresh:
                with table.transaction() as transaction:
                    with transaction.update_schema() as change:
                        change.union_by_name(pa.schema([column.with_nullable(True) for column in fresh]))
                    transaction.set_properties(
                        {f"write.metadata.metrics.column.{column}": "full" for column in times(pa.schema(fresh))}
                    )

        self._change(name, add)

    def rewrite(
        self,
        name: str,
        old: Sequence[str],
        new: Staged | None,
        *,
        attempt: str,
        notes: Mapping[str, str] = MappingProxyType({}),
    ) -> int:
        """Replace the data files at the addresses `old` by a staged one, or by nothing, in one commit. Returns the snapshot's id.

        The same attempt twice is a no-op, also when the answer to its commit was lost. Raises Conflict when one of `old` is gone, or
        when somebody else commits meanwhile.
        """
        summary = {**notes, REWRITE: attempt}
        if new is not None:
            summary |= {FILE: new.address, FILE_SHA256: new.sha256}

        def once() -> int:
            done = [state.id for state in self._ancestors(name) if state.notes.get(REWRITE) == attempt]
            return done[-1] if done else self._rewrite(name, old, new.address if new is not None else None, summary)

        return settled(f"table {name!r}", once)

    @told
    def _rewrite(self, name: str, old: Sequence[str], new: str | None, summary: dict[str, str]) -> int:
        return snapshots.rewrite(self._table(name), old, new, summary)

    @told
    def files(self, name: str, snapshot: int | None = None) -> tuple[str, ...]:
        """The addresses of the data files of a snapshot (the newest by default)."""
        return snapshots.data_files(self._table(name), snapshot)

    @told
    def history(self, name: str) -> tuple[Snapshot, ...]:
        """Every snapshot that has not expired, oldest first; branches' too. Nothing for an unknown table."""
        table = self._find(name)
        states = sorted(table.snapshots(), key=lambda state: state.timestamp_ms) if table is not None else []
        return tuple(map(snapshots.state, states))

    @told
    def refs(self, name: str) -> dict[str, int]:
        """The snapshot of each branch and tag, `main` among them."""
        return {ref: int(found.snapshot_id) for ref, found in self._table(name).refs().items()}

    @told
    def tags(self, name: str) -> dict[str, int]:
        """The snapshot of each tag."""
        return {
            ref: int(found.snapshot_id) for ref, found in self._table(name).refs().items() if found.snapshot_ref_type == "tag"
        }

    @told
    def tag(self, name: str, snapshot: int, tag: str) -> None:
        """Name a snapshot, so that it does not expire. A tag that exists is moved. Raises NotFound for an unknown snapshot."""

        def set_(table: IcebergTable) -> None:
            if table.snapshot_by_id(snapshot) is None:
                raise NotFound(f"table {name!r} has no snapshot {snapshot}", "one that has not expired", "list its snapshots")
            table.manage_snapshots().create_tag(snapshot, tag).commit()

        self._change(name, set_)

    @told
    def drop_ref(self, name: str, ref: str) -> None:
        """Drop a tag or a branch; one that is not there is no fault. Raises Conflict for `main`."""
        if ref == "main":
            raise Conflict("main is what is published", "a tag or another branch", "name that")
        self._drop(name, ref)

    @told
    def expire(
        self, name: str, *, keep: Iterable[int] = (), older_than: datetime | None = None, dry_run: bool = True
    ) -> tuple[int, ...]:
        """Drop every snapshot that no branch or tag names, that is not in `keep` and is older than `older_than`. Returns their ids.

        Only metadata changes: files that nothing reaches any more are removed by whoever compares the storage with `reachable`.
        """
        kept = frozenset(keep)

        def drop(table: IcebergTable) -> tuple[int, ...]:
            found = snapshots.expirable(table, kept, older_than)
            if found and not dry_run:
                snapshots.expire(table, found)
            return found

        return self._change(name, drop)

    @told
    def reachable(self, name: str, *, besides: Iterable[int] = ()) -> frozenset[str]:
        """The addresses of all files the table needs: data, manifests and lists of every snapshot but those `besides`, metadata and its log."""
        return snapshots.reachable(self._table(name), besides)

    @told
    def reaching(self, name: str, files: Iterable[str]) -> tuple[int, ...]:
        """The snapshots with one of the data files at these addresses."""
        return snapshots.reaching(self._table(name), files)

    @told
    def _ancestors(self, name: str) -> tuple[Snapshot, ...]:
        """The newest snapshot and its ancestors that have not expired, oldest first; nothing for an unknown table."""
        if (table := self._find(name)) is None:
            return ()
        found = []
        by_id = {state.snapshot_id: state for state in table.snapshots()}
        current = table.current_snapshot()
        while current is not None:
            found.append(snapshots.state(current))
            current = by_id.get(current.parent_snapshot_id) if current.parent_snapshot_id else None
        return tuple(reversed(found))

    def _drop(self, name: str, ref: str) -> None:
        def drop(table: IcebergTable) -> None:
            if ref in table.refs():
                table.manage_snapshots().remove_branch(ref).commit()

        self._change(name, drop)

    @told
    def _change(self, name: str, change: Callable[[IcebergTable], R]) -> R:
        """What `change` says, tried on the newest table until nobody was quicker."""
        from pyiceberg.exceptions import CommitFailedException

        for _ in tries(f"others kept changing table {name!r}"):
            with suppress(CommitFailedException), snapshots.overtaking():
                return change(self._table(name))
        raise AssertionError

    def _table(self, name: str) -> IcebergTable:
        if (found := self._find(name)) is None:
            raise NotFound(f"there is no table {name!r}", "a table with a published shard", f"run `ct ingest {name} FILE`")
        return found

    def _find(self, name: str) -> IcebergTable | None:
        from pyiceberg.exceptions import NoSuchTableError

        for left in range(4, -1, -1):
            try:
                return self._catalog.load_table((NAMESPACE, name))
            except NoSuchTableError:
                return None
            except FileNotFoundError as error:  # by the time it was opened, ten newer ones had pushed it out
                if not left:
                    raise Corrupt(f"{error} of table {name!r} is gone", "its metadata", "restore it from a backup") from None
        raise AssertionError


def _itself(value: T, _memo: object) -> T:
    return value


def tries(what: str) -> Iterator[None]:
    """Turns to try something, with growing and jittered pauses. Raises Conflict when there has been no luck for too long."""
    begun, pause = time.monotonic(), 0.02
    while time.monotonic() - begun < PATIENCE_SECONDS:
        yield
        time.sleep(random.uniform(0, pause))
        pause = min(2 * pause, 1.0)
    raise Conflict(what, "a free moment", "try again")


def settled(what: str, call: Callable[[], R | None]) -> R:
    """What `call` gives, called again when it gives None, for somebody was quicker, and when the answer of a store is lost.

    It must therefore look first whether it has succeeded before. Raises Conflict or Unavailable when that lasts too long.
    """
    begun = time.monotonic()
    for _ in tries(f"others kept overtaking at {what}"):
        try:
            if (found := call()) is not None:
                return found
        except Unavailable:
            if time.monotonic() - begun > LOST_SECONDS:
                raise
    raise AssertionError


def times(schema: pa.Schema) -> list[str]:
    """The names of the time columns."""
    return [column.name for column in schema if pa.types.is_timestamp(column.type)]


def shape(schema: pa.Schema) -> dict[str, str]:
    """Column names and types, in which the widths of text offsets and the insides of nested types do not count."""
    spelled = {field.name: "nested" if pa.types.is_nested(field.type) else str(field.type) for field in schema}
    return {name: text.removeprefix("large_") for name, text in spelled.items()}
