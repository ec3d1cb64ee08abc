"""The newest past events of an entity, one by one: a sequence for models that read sequences, flat columns for all others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ct.clock import duration
from ct.errors import InvalidPipeline
from ct.features.kinds.naming import Made, Times, Where, check_where, condition, names_of, tuple_of, words_of
from ct.pipeline import Table
from ct.roles import Column, Columns, Feature, History, Lookup

MOST = 64
_HOUR = 3_600_000_000


@dataclass(frozen=True)
class Events:
    """The newest `most` rows of a table with the same `by` values, known strictly before and at most `over` ago, newest first.

    Each step has the numbers `names` and its age in hours; all are missing where there are fewer events. A number may also be missing
    in an event that was there; its age then is not. `where` leaves rows out, see `roles.Lookup`.
    """

    table: str
    names: tuple[str, ...]
    by: tuple[str, ...]
    over: str
    most: int
    known_at: str
    key: tuple[str, ...]
    where: Where = ()

    def __post_init__(self) -> None:
        duration(self.over)
        if not isinstance(self.most, int) or not 1 <= self.most <= MOST:
            raise InvalidPipeline(f"events(most={self.most!r})", f"a whole number from 1 to {MOST}", "take fewer events")
        check_where(self.where, "events")

    @classmethod
    def example(cls) -> Events:
        """Two events."""
        return cls("trips", ("late",), ("town",), "1d", 2, "arrives", ("trip",))

    def outputs(self) -> tuple[Column, ...]:
        """For each step its numbers, then its age."""
        return self._outputs

    @cached_property
    def _outputs(self) -> tuple[Column, ...]:
        rest = f"by_{'_'.join(self.by)}_{self.over}{words_of(self.where)}"
        name = f"{'_'.join(self.names)}_events_{rest}"
        return tuple(
            Column(f"{part}_{step}_{rest}", "numeric", sequence=name, step=step)
            for step in range(1, self.most + 1)
            for part in (*(f"{column}_event" for column in self.names), f"{'_'.join(self.names)}_age")
        )

    def inputs(self) -> tuple[str, ...]:
        """Nothing beyond `by`."""
        return ()

    def lookups(self) -> tuple[Lookup, ...]:
        """The table's rows of the last `over`."""
        return (self._lookup,)

    @cached_property
    def _lookup(self) -> Lookup:
        return Lookup(self.table, self.by, self.names, self.known_at, duration(self.over), self.key, self.where)

    def compute(self, rows: Columns, times: Times, history: History) -> Made:
        """The steps' numbers and ages."""
        known, start, stop = history.spans(rows, times, self._lookup)
        places = stop - np.arange(1, self.most + 1).reshape(-1, 1)  # [most, n]
        there = places >= start
        places = np.where(there, places, 0)
        made = np.full((self.most, len(self.names) + 1, len(times)), np.nan)
        if there.any():
            for at, name in enumerate(self.names):
                made[:, at] = np.where(there, known[name][places], np.nan)
            made[:, -1] = np.where(there, (times - known[self.known_at][places]) / _HOUR, np.nan)
        return {column.name: made[at // made.shape[1], at % made.shape[1]] for at, column in enumerate(self._outputs)}


def events(
    table: Table,
    *columns: str,
    by: str | Sequence[str],
    over: str = "7d",
    most: int = 8,
    known_at: str = "",
    where: Sequence[tuple[str, str, str | float]] = (),
) -> Feature:
    """The newest `most` earlier rows of `table` with the same `by`, which became known in the last `over`: their numbers `columns` and
    how many hours ago each became known, newest first.

    `known_at` names the time from which a row is known; the table's event time by default. `where` keeps rows for which every
    (column, sign, value) holds, such as ("status", "==", "landed").
    """
    names, entity = names_of(columns, "events"), names_of(tuple_of(by), "events")
    return Events(table.name, names, entity, over, most, known_at or table.time, table.keys, tuple(map(condition, where)))
