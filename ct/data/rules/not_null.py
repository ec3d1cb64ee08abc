"""Values that must not be missing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ct.data.checks import Example
from ct.data.checks import share as _share
from ct.data.columns import missing
from ct.errors import InvalidPipeline
from ct.roles import Columns, Past


@dataclass(frozen=True, init=False)
class NotNull:
    """No value of `columns` is missing, in all but a `share` of the rows."""

    names: tuple[str, ...]
    share: float

    def __init__(self, *columns: str, share: float = 0.0) -> None:
        if not columns:
            raise InvalidPipeline("NotNull() without a column", "at least one column", "name the columns")
        object.__setattr__(self, "names", columns)
        object.__setattr__(self, "share", _share(share))

    def columns(self) -> tuple[str, ...]:
        """The columns."""
        return self.names

    def violations(self, rows: Columns, past: Past) -> NDArray[np.bool_]:
        """True where any of them is missing."""
        return np.asarray(np.logical_or.reduce([missing(rows, name) for name in self.names]), dtype=np.bool_)

    def explain(self) -> str:
        """The rule."""
        return f"{', '.join(self.names)} not missing"

    def limit(self) -> float:
        """The allowed share."""
        return self.share

    @classmethod
    def example(cls) -> Example:
        """Rows that keep it and rows that break it."""
        return Example(cls("a"), {"a": np.array([1.0, 2.0])}, {"a": np.array([1.0, np.nan])})
