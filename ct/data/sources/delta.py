"""Somebody else's Delta table as a source: every version that adds rows is a shard. The table is only read."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pyarrow as pa

from ct.data.sources.extract import extract
from ct.errors import Conflict, Corrupt, InvalidRequest, InvalidSettings, InvalidShard, NotFound, Unavailable
from ct.roles import Arrival, Cursor
from ct.store.files import Files

if TYPE_CHECKING:
    import deltalake

_MOST = 1000
"""So many arrivals one look finds at most: every version is a file of the log that is read."""


@dataclass(frozen=True)
class DeltaTable:
    """The Delta table at `uri`: a folder or s3://bucket/prefix; credentials and the endpoint come from the AWS_ variables.

    The first shard is the table as it stands; after it each version that adds rows becomes one, named after its number. Compactions
    and the like change no rows and are passed over. A version that removes or changes rows stops the reading with an error that says
    how to go on. Needs the extra `ct[delta]`.
    """

    uri: str

    @classmethod
    def example(cls) -> DeltaTable:
        """One of its kind."""
        return cls("s3://shop/orders")

    def explain(self) -> str:
        """The table."""
        return f"Delta table {self.uri}"

    def pending(self, cursor: Cursor) -> tuple[Arrival, ...]:
        """The versions after the cursor's up to the first that takes rows away, oldest first; the newest alone when reading begins.

        Raises InvalidShard when the very next one takes rows away, Conflict when the table's log does not reach back to the cursor.
        """
        table = self._open(cursor.root)
        if not cursor.position:
            first = self._version(cursor.started, table) if cursor.started else table.version()
            return (self._arrival(first, table, after=""),)
        found: list[Arrival] = []
        last = cursor.position
        for version in range(self._version(cursor.position, table) + 1, table.version() + 1):
            changes = self._changes(version, cursor.root)
            if any("remove" in change for change in changes):
                if found:
                    break
                raise InvalidShard(
                    f"version {version} of {self.explain()} takes rows away",
                    "versions that add rows",
                    f"mend what was published (`ct erase`, `ct ingest TABLE FILE`), then `ct ingest TABLE --new --after {version}`",
                )
            if len(found) == _MOST:
                break
            if changes:
                found.append(self._arrival(version, table, after=last, size=sum(change["add"]["size"] for change in changes)))
                last = found[-1].position
        return tuple(found)

    def _arrival(self, version: int, table: deltalake.DeltaTable, *, after: str, size: int | None = None) -> Arrival:
        identity = str(table.metadata().id)
        return Arrival(f"version-{version}-{identity[:8]}.parquet", f"{identity}/{version}", size, after=after)

    def _changes(self, version: int, root: Path) -> list[dict[str, Any]]:
        """The log's `add` and `remove` entries of a version that change rows. Raises Conflict when the log was cleaned up."""
        try:
            text = Files(self._place(root)).get(f"_delta_log/{version:020d}.json").decode(errors="replace")
        except NotFound:
            raise Conflict(
                f"the log of {self.explain()} does not hold version {version} any more",
                "every version since the one that was read last",
                "compare both tables, bring what is missing by `ct ingest TABLE FILE`, "
                "then go on with `ct ingest TABLE --new --after VERSION`",
            ) from None
        try:
            entries = [json.loads(line) for line in text.splitlines() if line.strip()]
        except ValueError:
            raise Corrupt(
                f"version {version} in the log of {self.explain()} is not JSON", "a line an entry", "mend it"
            ) from None
        return [entry for entry in entries for kind in ("add", "remove") if entry.get(kind, {}).get("dataChange")]

    def fetch(self, arrival: Arrival, cursor: Cursor, folder: Path) -> Path:
        """The version's rows as a Parquet file in `folder`, read and written by a child process."""
        how = "added" if arrival.after else "all"
        return extract(self, f"{how}/{arrival.position}", cursor.root, folder / arrival.name)

    def rows(self, position: str, root: Path) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
        """`all/POSITION`: the table at that version; `added/POSITION`: what it added. In the version's own columns, files by path."""
        how, _, position = position.partition("/")
        table = self._open(root)
        version = self._version(position, table)
        wanted = None if how == "all" else {unquote(change["add"]["path"]) for change in self._changes(version, root)}
        try:
            table.load_as_version(version)
            data = table.to_pyarrow_dataset()
            pieces = {str(piece.path): piece for piece in data.get_fragments()}
        except Exception as error:  # deltalake raises many kinds; an unsupported reader feature is one
            raise Unavailable(
                f"version {version} of {self.explain()} cannot be read: {error}", "a plain Delta table", ""
            ) from None
        paths = sorted(pieces if wanted is None else wanted)
        if missing := [path for path in paths if path not in pieces]:
            raise Unavailable(
                f"{self.explain()}: {missing[0]} is not in version {version}", "the files of its log", "look again"
            )
        return data.schema, (
            batch for path in paths for batch in pieces[path].to_batches(schema=data.schema, use_threads=False)
        )

    def locate(self, text: str, cursor: Cursor) -> str:
        """The position of the version with the number `text`. Raises InvalidRequest when the table has none."""
        table = self._open(cursor.root)
        if not text.isdecimal() or int(text) > table.version():
            raise InvalidRequest(
                f"{self.explain()} has no version {text!r}", f"a number up to {table.version()}", "see its history"
            )
        return f"{table.metadata().id}/{int(text)}"

    def _version(self, position: str, table: deltalake.DeltaTable) -> int:
        """The number in a position of this very table. Raises Conflict."""
        identity, _, version = position.rpartition("/")
        if identity != str(table.metadata().id) or int(version) > table.version():
            raise Conflict(
                f"{self.explain()} is another table than the one that was read up to version {version}",
                "the same table",
                "name the version to go on after: `ct ingest TABLE --new --after VERSION`",
            )
        return int(version)

    def _place(self, root: Path) -> str:
        return self.uri if "://" in self.uri else str(root / self.uri)

    def _open(self, root: Path) -> deltalake.DeltaTable:
        try:
            from deltalake import DeltaTable as Opened
            from deltalake.exceptions import TableNotFoundError
        except ImportError:
            raise InvalidSettings("deltalake is not installed", "the extra ct[delta]", "pip install 'ct[delta]'") from None
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
        options = (
            {"AWS_ENDPOINT_URL": endpoint, "AWS_ALLOW_HTTP": str(endpoint.startswith("http://")).lower()} if endpoint else None
        )
        try:
            return Opened(self._place(root), storage_options=options)
        except TableNotFoundError:
            raise NotFound(f"there is no {self.explain()}", "a table", "check the place") from None
        except Exception as error:  # deltalake raises many kinds, of which none says more than its text
            raise Unavailable(f"{self.explain()} cannot be opened: {error}", "a table that answers", "check it") from None
