"""Texts out of a set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ct.data.checks import Example, share
from ct.data.columns import codes, texts
from ct.roles import Columns, Past


@dataclass(frozen=True)
class OneOf:
    """Texts of `column` are among `values`, in all but a `share` of the rows. Missing values pass."""

    column: str
    values: Sequence[str]
    share: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(self.values))
        share(self.share)

    def columns(self) -> tuple[str, ...]:
        """The column."""
        return (self.column,)

    def violations(self, rows: Columns, past: Past) -> NDArray[np.bool_]:
        """True for any other text."""
        index, distinct = codes(texts(rows, self.column))
        known = {*self.values, None}
        return np.array([*(value not in known for value in distinct), False], dtype=np.bool_)[index]

    def explain(self) -> str:
        """The rule."""
        return f"{self.column} one of {list(self.values)}"

    def limit(self) -> float:
        """The allowed share."""
        return self.share

    @classmethod
    def example(cls) -> Example:
        """Rows that keep it and rows that break it."""
        keeps, breaks = np.array(["x", None, "y"], dtype=object), np.array(["x", "z"], dtype=object)
        return Example(cls("a", ["x", "y"]), {"a": keeps}, {"a": breaks})
