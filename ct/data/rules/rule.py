"""A rule that is a function of one's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ct.data.checks import Example
from ct.data.checks import share as _share
from ct.errors import InvalidPipeline
from ct.roles import Columns, Past


@dataclass(frozen=True, init=False)
class Rule:
    """`holds(rows)` is true for the rows that are right, in all but a `share` of them; or, as one truth value, for the shard as a whole.

    `columns` are the columns it reads: of Columns as in roles.py, arrays [n]. The function must stand in a file.
    """

    holds: Callable[[Columns], Any]
    names: tuple[str, ...]
    share: float

    def __init__(self, holds: Callable[[Columns], Any], *columns: str, share: float = 0.0) -> None:
        if not callable(holds):
            raise InvalidPipeline(f"Rule({holds!r})", "a function of a shard's columns", "pass the function first")
        object.__setattr__(self, "holds", holds)
        object.__setattr__(self, "names", columns)
        object.__setattr__(self, "share", _share(share))

    def columns(self) -> tuple[str, ...]:
        """The columns."""
        return self.names

    def violations(self, rows: Columns, past: Past) -> NDArray[np.bool_]:
        """True where the function is false."""
        return ~np.asarray(self.holds(rows), dtype=np.bool_)

    def explain(self) -> str:
        """The function's name."""
        return f"{getattr(self.holds, '__name__', 'rule').replace('_', ' ')}({', '.join(self.names)})"

    def limit(self) -> float:
        """The allowed share."""
        return self.share

    @classmethod
    def example(cls) -> Example:
        """Rows that keep it and rows that break it."""
        return Example(cls(_whole, "a"), {"a": np.array([1.0, 2.0])}, {"a": np.array([1.0, 2.5])})


def _whole(rows: Columns) -> Any:
    return rows["a"] == np.floor(rows["a"])
