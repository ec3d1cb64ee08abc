"""Aggregates over the earlier rows of a table with the same key, in one span of time or several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ct.clock import duration
from ct.errors import InvalidPipeline
from ct.features import spans
from ct.features.kinds.naming import Made, Times, check_where, condition, names_of, tuple_of, words_of
from ct.pipeline import Table
from ct.roles import Column, Columns, Feature, History, Lookup

_AGGREGATES = (*spans.AGGREGATES, "share")


@dataclass(frozen=True)
class Window:
    """Numbers about the earlier rows with the same `by` values that became known in the spans before: one for each aggregate and span.

    `share` is the share of values above `above`. `where` leaves rows out, see `roles.Lookup`.
    """

    table: str
    column: str
    by: tuple[str, ...]
    over: tuple[str, ...]
    agg: tuple[str, ...]
    known_at: str
    key: tuple[str, ...]
    where: tuple[tuple[str, str, str | float], ...] = ()
    above: float = 0.0

    def __post_init__(self) -> None:
        for agg in names_of(self.agg, "window agg"):
            if agg not in _AGGREGATES:
                raise InvalidPipeline(f"window agg {agg!r}", f"one of {sorted(_AGGREGATES)}", "check the spelling")
        for over in names_of(self.over, "window over"):
            duration(over)
        check_where(self.where, "window")

    @classmethod
    def example(cls) -> Window:
        """Several aggregates over two spans."""
        return cls("trips", "late", ("town",), ("6h", "1d"), ("mean", "count", "share"), "arrives", ("trip",), above=1.0)

    def outputs(self) -> tuple[Column, ...]:
        """One number for each aggregate and span."""
        return tuple(Column(name, "numeric") for _, _, name in self._outputs)

    @cached_property
    def _outputs(self) -> tuple[tuple[str, Lookup, str], ...]:
        only = words_of(self.where)
        return tuple(
            (agg, lookup, f"{self.column}_{self._word(agg)}_by_{'_'.join(self.by)}_{over}{only}")
            for over, lookup in zip(self.over, self._lookups, strict=True)
            for agg in self.agg
        )

    def _word(self, agg: str) -> str:
        return f"share_above_{self.above:g}" if agg == "share" else agg

    def inputs(self) -> tuple[str, ...]:
        """Nothing beyond `by`."""
        return ()

    def lookups(self) -> tuple[Lookup, ...]:
        """The table's rows of each span."""
        return self._lookups

    @cached_property
    def _lookups(self) -> tuple[Lookup, ...]:
        return tuple(
            Lookup(self.table, self.by, (self.column,), self.known_at, duration(over), self.key, self.where)
            for over in self.over
        )

    def compute(self, rows: Columns, times: Times, history: History) -> Made:
        """The numbers over the values that are not missing; missing when there are none (a count is then 0)."""
        made: Made = {}
        for agg, lookup, name in self._outputs:
            known, start, stop = history.spans(rows, times, lookup)
            values = known[self.column]
            made[name] = (
                spans.AGGREGATES["mean"](_indicator(values, self.above), start, stop)
                if agg == "share"
                else spans.AGGREGATES[agg](values, start, stop)
            )
        return made


def _indicator(values: NDArray[Any], above: float) -> NDArray[np.float64]:
    return np.where(np.isnan(values), np.nan, (values > above).astype(np.float64))


def window(
    table: Table,
    column: str,
    *,
    by: str | Sequence[str],
    over: str | Sequence[str],
    agg: str | Sequence[str] = "mean",
    known_at: str = "",
    where: Sequence[tuple[str, str, str | float]] = (),
    above: float = 0.0,
) -> Feature:
    """`agg` of `column` over earlier rows of `table` with the same `by`, which became known in the last `over`.

    `agg` is one or several of count, sum, mean, min, max, std, last and share (of the values above `above`); `over` one span or several.
    `known_at` names the time from which a row's value is known; the table's event time by default. `where` keeps rows for which every
    (column, sign, value) holds, such as ("status", "==", "landed").
    """
    return Window(
        table.name,
        column,
        names_of(tuple_of(by), "window"),
        names_of(tuple_of(over), "window over"),
        names_of(tuple_of(agg), "window agg"),
        known_at or table.time,
        table.keys,
        tuple(map(condition, where)),
        float(above),
    )
