"""Numbers of the row itself: as they are, clipped, on a logarithmic scale, or in quantile bins."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ct.errors import InvalidPipeline
from ct.features.kinds.naming import Made, Times, names_of
from ct.features.transform import numbers
from ct.roles import Column, Columns, Feature, History, Lookup


@dataclass(frozen=True)
class Numeric:
    """The row's own numbers, clipped to `clip`; with `log`, log(1 + x) of values above -1 and missing otherwise.

    How the model sees them is fitted on the training rows: standardized with `scale`, else as they are; with `bins`, the number of the
    quantile bin, as a category.
    """

    names: tuple[str, ...]
    log: bool = False
    clip: tuple[float, ...] = ()
    scale: bool = True
    bins: int = 0

    @classmethod
    def example(cls) -> Numeric:
        """Two columns."""
        return cls(("leg", "load"), log=True, clip=(0.0, 1e6))

    def outputs(self) -> tuple[Column, ...]:
        """One number for each column."""
        return tuple(Column(name, "numeric", scaled=self.scale, bins=self.bins) for name in self.names)

    def inputs(self) -> tuple[str, ...]:
        """The columns themselves."""
        return self.names

    def lookups(self) -> tuple[Lookup, ...]:
        """None."""
        return ()

    def compute(self, rows: Columns, times: Times, history: History) -> Made:
        """The columns, clipped, or their logarithms."""
        made: Made = {name: numbers(rows, name) for name in self.names}
        if self.clip:
            # Which of 0.0 and -0.0 a maximum gives may depend on how many values there are.
            made = {name: np.minimum(np.maximum(values, self.clip[0]), self.clip[1]) + 0.0 for name, values in made.items()}
        return {name: _log1p(values) for name, values in made.items()} if self.log else made


def _log1p(values: NDArray[Any]) -> NDArray[np.float64]:
    # One number at a time: numpy's own loop may round otherwise for one value than for eight. Each different number once.
    different, place = np.unique(values + 0.0, return_inverse=True)  # minus zero is zero: which of the two stays is chance
    found = np.array([math.log1p(value) if value > -1 else math.nan for value in different.tolist()], dtype=np.float64)
    return found[place] if len(values) else np.empty(0)


def numeric(
    *columns: str, log: bool = False, clip: tuple[float, float] | None = None, scale: bool = True, bins: int = 0
) -> Feature:
    """The row's own numbers, clipped to `clip` (low, high), with `log` as log(1 + x).

    The model sees them standardized, with `scale=False` as they are, with `bins=k` as the number of one of k quantile bins.
    """
    if clip is not None and not clip[0] < clip[1]:
        raise InvalidPipeline(f"numeric(clip={clip!r})", "a lower and a higher number", "swap them")
    if bins and not 2 <= bins <= 1024:
        raise InvalidPipeline(f"numeric(bins={bins!r})", "2 to 1024", "leave it out for no bins")
    return Numeric(names_of(columns, "numeric"), log, tuple(map(float, clip or ())), scale, bins)
