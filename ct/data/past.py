"""What checks may know beyond the arriving rows: the past out of the catalogue and profiles, or one made of columns at hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ct.data import shards
from ct.data.columns import Rows, count
from ct.data.profile import Categories, Numbers, Profiles
from ct.data.tables import ShardFile
from ct.roles import Columns

_PART = 1 << 20


@dataclass(frozen=True)
class Before:
    """A past made of the columns of earlier shards, oldest first. `now` is the moment of arrival in microseconds UTC."""

    now: int = 0
    shards: tuple[Columns, ...] = ()

    def sizes(self) -> tuple[int, ...]:
        """Rows of each shard."""
        return tuple(count(rows) for rows in self.shards)

    def newest(self, *columns: str) -> Columns | None:
        """Columns of the last shard."""
        return {name: self.shards[-1][name] for name in columns} if self.shards else None

    def each(self, *columns: str, shards: int | None = None) -> Iterator[Columns]:
        """Columns of the shards, newest first."""
        for rows in self.shards[::-1][:shards]:
            yield {name: rows[name] for name in columns}

    def quantiles(self, column: str, *shares: float) -> tuple[float, ...] | None:
        """Quantiles over all shards, None where no number is known."""
        known = np.concatenate([np.empty(0), *(np.asarray(rows[column], dtype=np.float64) for rows in self.shards)])
        known = known[np.isfinite(known)]
        return tuple(float(value) for value in np.quantile(known, shares)) if len(known) else None

    def values(self, column: str) -> frozenset[str] | None:
        """The texts that were there before."""
        if not self.shards:
            return None
        return frozenset(value for rows in self.shards for value in rows[column] if value is not None)


class Published:
    """The past of a table: its published shards, read only as far as a check asks. `whole` gives the profiles over all their rows."""

    def __init__(self, now: int, known: Sequence[ShardFile], whole: Callable[[], Profiles | None]) -> None:
        self.now = now
        self._known = tuple(known)
        self._whole = whole

    def sizes(self) -> tuple[int, ...]:
        """Rows of each published shard, oldest first."""
        return tuple(shard.rows for shard in self._known)

    def newest(self, *columns: str) -> Columns | None:
        """Columns of the newest published shard."""
        return Rows(shards.read(self._known[-1], columns)) if self._known else None

    def each(self, *columns: str, shards: int | None = None) -> Iterator[Columns]:
        """Columns of the published shards, newest first, a part at a time."""
        for shard in self._known[::-1][:shards]:
            yield from _parts(shard, columns)

    @cached_property
    def _columns(self) -> Mapping[str, Numbers | Categories]:
        found = self._whole()
        return found.whole.columns if found is not None else {}

    def quantiles(self, column: str, *shares: float) -> tuple[float, ...] | None:
        """Quantiles of a column of numbers out of the profiles, as they interpolate them."""
        found = self._columns.get(column)
        return found.quantiles(*shares) if isinstance(found, Numbers) else None

    def values(self, column: str) -> frozenset[str] | None:
        """The texts out of the profiles; None where those do not know all of them."""
        found = self._columns.get(column)
        return found.known if isinstance(found, Categories) else None


def _parts(shard: ShardFile, columns: Sequence[str]) -> Iterator[Columns]:
    for start in range(0, shards.places(shard), _PART):
        yield Rows(shards.read(shard, columns, start=start, stop=start + _PART))
