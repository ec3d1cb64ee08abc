"""The one door to a published shard's rows: its own span of the file it lies in, without the rows that an erasure took out.

A shard is what arrived. Compaction changes where it lies, an erasure which of its rows are left; both are the catalogue's to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ct.data.columns import NO_TIME
from ct.data.tables import ShardFile
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


def read(shard: ShardFile, columns: Sequence[str] | None = None, *, start: int = 0, stop: int | None = None) -> pa.Table:
    """The shard's rows at places [start, stop), all by default, without erased ones. Only what lies there is read.

    Raises NotFound when its file is gone, Unavailable when the store does not answer.
    """
    last = places(shard) if stop is None else min(stop, places(shard))
    with open_input(shard.path) as source:
        file = pq.ParquetFile(source)
        edges = _edges(file)
        begin, end = shard.start + start, shard.start + max(start, last)
        groups = [at for at in range(len(edges) - 1) if edges[at] < end and edges[at + 1] > begin]
        found = file.read_row_groups(groups, columns=None if columns is None else list(columns))
        first = edges[groups[0]] if groups else begin
        found = found.slice(begin - first, end - begin)
    gone = [place - start for place in shard.without if start <= place < last]
    if not gone:
        return found
    kept = np.ones(found.num_rows, dtype=np.bool_)
    kept[gone] = False
    return found.filter(pa.array(kept))


def schema(shard: ShardFile) -> pa.Schema:
    """The columns of the file the shard lies in. Raises NotFound or Unavailable."""
    with open_input(shard.path) as source:
        return pq.read_schema(source)


def pieces(shard: ShardFile, column: str = "") -> tuple[Piece, ...]:
    """The shard cut where its file is cut into row groups, so that a reader can leave out those whose times it does not want."""
    with open_input(shard.path) as source:
        file = pq.ParquetFile(source)
        names = [file.schema.column(at).path for at in range(len(file.schema))]
        edges, found = _edges(file), []
        for at in range(len(edges) - 1):
            start, stop = max(edges[at] - shard.start, 0), min(edges[at + 1] - shard.start, places(shard))
            if start < stop:
                known = file.metadata.row_group(at).column(names.index(column)).statistics if column in names else None
                found.append(Piece(start, stop, *_bounds(known)))
        return tuple(found)


def _edges(file: pq.ParquetFile) -> list[int]:
    """Where the file's row groups begin, and where the last one ends."""
    sizes = (file.metadata.row_group(at).num_rows for at in range(file.num_row_groups))
    return list(accumulate(sizes, initial=0))


def _bounds(known: pq.Statistics | None) -> tuple[int | None, int | None]:
    if known is None or not known.has_min_max:
        return None, None
    low, high = (np.datetime64(value.replace(tzinfo=None), "us").astype(np.int64) for value in (known.min, known.max))
    return (None, None) if NO_TIME in (low, high) else (int(low), int(high))
