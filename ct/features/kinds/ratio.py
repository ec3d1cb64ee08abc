"""One number of the row divided by another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ct.features.kinds.naming import Made, Times, names_of
from ct.features.transform import numbers
from ct.roles import Column, Columns, Feature, History, Lookup


@dataclass(frozen=True)
class Ratio:
    """`above` divided by `below`; missing where one is missing or `below` is zero."""

    above: str
    below: str

    @classmethod
    def example(cls) -> Ratio:
        """Two columns."""
        return cls("leg", "load")

    def outputs(self) -> tuple[Column, ...]:
        """One number."""
        return (Column(f"{self.above}_per_{self.below}", "numeric"),)

    def inputs(self) -> tuple[str, ...]:
        """Both columns."""
        return (self.above, self.below)

    def lookups(self) -> tuple[Lookup, ...]:
        """None."""
        return ()

    def compute(self, rows: Columns, times: Times, history: History) -> Made:
        """The quotient."""
        above, below = numbers(rows, self.above), numbers(rows, self.below)
        with np.errstate(all="ignore"):
            made = np.where(below == 0, np.nan, above / below)
        return {self.outputs()[0].name: np.where(np.isfinite(made), made, np.nan)}


def ratio(above: str, below: str) -> Feature:
    """`above` divided by `below`, two numbers of the row."""
    return Ratio(*names_of((above, below), "ratio"))
