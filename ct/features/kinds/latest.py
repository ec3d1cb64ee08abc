"""The newest known row of another table with the same key."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from ct.clock import duration
from ct.features import spans
from ct.features.kinds.naming import Made, Times, names_of
from ct.pipeline import Table
from ct.roles import Column, Columns, Feature, History, Lookup


@dataclass(frozen=True)
class Latest:
    """The newest numbers of another table's row with the same key, known strictly before and at most `within` ago; missing otherwise."""

    table: str
    by: tuple[str, ...]
    names: tuple[str, ...]
    known_at: str
    within: str

    def __post_init__(self) -> None:
        duration(self.within)

    @classmethod
    def example(cls) -> Latest:
        """Two numbers of a report."""
        return cls("sky", ("town",), ("wind", "rain"), "seen_at", "3h")

    def outputs(self) -> tuple[Column, ...]:
        """One number for each column."""
        return tuple(Column(f"{self.table}_{name}", "numeric") for name in self.names)

    def inputs(self) -> tuple[str, ...]:
        """Nothing beyond the key."""
        return ()

    def lookups(self) -> tuple[Lookup, ...]:
        """The other table's rows of the last `within`."""
        return (self._lookup,)

    @cached_property
    def _lookup(self) -> Lookup:
        return Lookup(self.table, self.by, self.names, self.known_at, duration(self.within), self.by)

    def compute(self, rows: Columns, times: Times, history: History) -> Made:
        """The newest row's values, missing ones included: a newer unknown is not replaced by an older known."""
        known, start, stop = history.spans(rows, times, self._lookup)
        return {f"{self.table}_{name}": spans.last(known[name], start, stop) for name in self.names}


def latest(table: Table, *columns: str, within: str = "3h", known_at: str = "") -> Feature:
    """The newest numbers of `table`'s row with the same key, known strictly before and at most `within` ago.

    `known_at` names the time from which a row is known; the table's event time by default.
    """
    return Latest(table.name, table.keys, names_of(columns, "latest"), known_at or table.time, within)
