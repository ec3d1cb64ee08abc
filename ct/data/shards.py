"""The one door to a published shard's rows: its own span of the file it lies in, without the rows that an erasure took out.

A shard is what arrived. Compaction changes where it lies, an erasure which of its rows are left; both are the catalogue's to say.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ct.data.columns import kind_of
from ct.data.reading import TIME, TYPES
from ct.data.tables import ShardFile
from ct.errors import Corrupt, Unavailable
from ct.store.files import open_input


@dataclass(frozen=True)
class Piece:
    """Places [start, stop) of a shard that lie together on disk; `low` and `high` bound a time column there, in microseconds UTC.

    Both are None where the file does not say, or where no value is there.
    """

    start: int
    stop: int
    low: int | None = None
    high: int | None = None


def places(shard: ShardFile) -> int:
    """The number of rows the shard has on disk, those that are left out included: `read` counts its places from 0 to here."""
    return shard.rows + len(shard.without)


@dataclass(frozen=True)
class Reader:
    """An open shard. Every page's checksum is verified as it is read."""

    shard: ShardFile
    file: pq.ParquetFile

    @property
    def schema(self) -> pa.Schema:
        """The columns of the file the shard lies in."""
        return self.file.schema_arrow

    @cached_property
    def edges(self) -> list[int]:
        """Where the file's row groups begin, and where the last one ends."""
        sizes = (self.file.metadata.row_group(at).num_rows for at in range(self.file.num_row_groups))
        return list(accumulate(sizes, initial=0))

    def pieces(self, column: str = "") -> tuple[Piece, ...]:
        """The shard cut where its file is cut into row groups, so that a reader can leave out those whose times it does not want."""
        found, at_column = [], self.schema.names.index(column) if column in self.schema.names else None
        for at, edge in enumerate(self.edges[:-1]):
            start = max(edge - self.shard.start, 0)
            stop = min(self.edges[at + 1] - self.shard.start, places(self.shard))
            if start < stop:
                said = None if at_column is None else self.file.metadata.row_group(at).column(at_column).statistics
                if said is None or not said.has_min_max or self.schema.field(column).type != TIME:
                    found.append(Piece(start, stop))
                else:
                    found.append(Piece(start, stop, int(said.min_raw), int(said.max_raw)))
        return tuple(found)

    def read(self, columns: Sequence[str] | None = None, *, start: int = 0, stop: int | None = None) -> pa.Table:
        """The rows at places [start, stop), all by default, without erased ones. Only what lies there is read.

        A column that the table gained after the shard is missing in all its rows. Raises Corrupt for damaged bytes.
        """
        last = places(self.shard) if stop is None else min(stop, places(self.shard))
        begin, end = self.shard.start + start, self.shard.start + max(start, last)
        groups = [at for at, edge in enumerate(self.edges[:-1]) if edge < end and self.edges[at + 1] > begin]
        there = None if columns is None else [name for name in columns if name in self.schema.names]
        try:
            found = self.file.read_row_groups(groups, columns=there, use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise _corrupt(self.shard, error) from None
        first = self.edges[groups[0]] if groups else begin
        found = self._with_gained(found.slice(begin - first, end - begin), columns)
        gone = [place - start for place in self.shard.without if start <= place < last]
        if not gone:
            return found
        kept = np.ones(found.num_rows, dtype=np.bool_)
        kept[gone] = False
        return found.filter(pa.array(kept))

    def _with_gained(self, found: pa.Table, columns: Sequence[str] | None) -> pa.Table:
        wanted = list(self.shard.types) or found.column_names if columns is None else list(columns)
        for name in wanted:
            if name not in found.column_names and name in self.shard.types:
                found = found.append_column(name, pa.nulls(found.num_rows, TYPES[self.shard.types[name]]))
        return found.select([name for name in wanted if name in found.column_names])


@contextmanager
def opened(shard: ShardFile, *, coded: Sequence[str] = ()) -> Iterator[Reader]:
    """Open a shard; text columns among `coded` are read dictionary-coded. Raises NotFound when its file is gone, Corrupt, or Unavailable."""
    with open_input(shard.path) as source:
        try:
            file = pq.ParquetFile(source, page_checksum_verification=True)
            schema = file.schema_arrow
            texts = [name for name in coded if name in schema.names and kind_of(schema.field(name).type) == "text"]
            if texts:
                file = pq.ParquetFile(source, read_dictionary=texts, page_checksum_verification=True, metadata=file.metadata)
        except (pa.ArrowException, OSError) as error:
            raise _corrupt(shard, error) from None
        yield Reader(shard, file)


def read(shard: ShardFile, columns: Sequence[str] | None = None, *, start: int = 0, stop: int | None = None) -> pa.Table:
    """The shard's rows at places [start, stop), all by default: see `Reader.read`. Raises NotFound, Corrupt or Unavailable."""
    with opened(shard) as reader:
        return reader.read(columns, start=start, stop=stop)


def schema(shard: ShardFile) -> pa.Schema:
    """The columns of the file the shard lies in. Raises NotFound, Corrupt or Unavailable."""
    with opened(shard) as reader:
        return reader.schema


def pieces(shard: ShardFile, column: str = "") -> tuple[Piece, ...]:
    """The pieces of a shard: see `Reader.pieces`."""
    with opened(shard) as reader:
        return reader.pieces(column)


def _corrupt(shard: ShardFile, error: Exception) -> Corrupt | Unavailable:
    said = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    if "AWS Error" in said:  # bytes that did not come are no wrong bytes
        return Unavailable(f"{shard.path}: {said}", "an object store that answers", "see to it, then run it again")
    return Corrupt(
        f"shard {shard.shard!r} of table {shard.table!r}: {said}", "the bytes that were published", "restore it from a backup"
    )
