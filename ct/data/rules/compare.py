"""A rule across two columns."""

from __future__ import annotations

import operator
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from ct.data.checks import Example, share
from ct.data.columns import is_text, missing, texts
from ct.errors import InvalidPipeline
from ct.roles import Columns, Past

_SIGNS = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq, "!=": operator.ne,
}  # fmt: skip


@dataclass(frozen=True)
class Compare:
    """In each row `left` and `right`, two columns of one kind, stand in the relation `sign`, in all but a `share` of the rows.

    A row with either missing passes.
    """

    left: str
    sign: str
    right: str
    share: float = 0.0

    def __post_init__(self) -> None:
        if self.sign not in _SIGNS:
            raise InvalidPipeline(f"Compare(sign={self.sign!r})", f"one of {list(_SIGNS)}", "choose one")
        share(self.share)

    def columns(self) -> tuple[str, ...]:
        """Both columns."""
        return (self.left, self.right)

    def violations(self, rows: Columns, past: Past) -> NDArray[np.bool_]:
        """True where both are there and do not stand in the relation."""
        both = ~(missing(rows, self.left) | missing(rows, self.right))
        if is_text(rows, self.left) != is_text(rows, self.right):
            raise TypeError(f"{self.left} and {self.right} are of different kinds")
        return np.asarray(both & ~self._holds(rows), dtype=np.bool_)

    def _holds(self, rows: Columns) -> NDArray[np.bool_]:
        if not is_text(rows, self.left):
            return np.asarray(_SIGNS[self.sign](rows[self.left], rows[self.right]))
        kernel = {
            "<": pc.less,
            "<=": pc.less_equal,
            ">": pc.greater,
            ">=": pc.greater_equal,
            "==": pc.equal,
            "!=": pc.not_equal,
        }
        left, right = (texts(rows, name).cast("string") for name in (self.left, self.right))
        return np.asarray(kernel[self.sign](left, right).fill_null(True).to_numpy(), dtype=np.bool_)

    def explain(self) -> str:
        """The rule."""
        return f"{self.left} {self.sign} {self.right}"

    def limit(self) -> float:
        """The allowed share."""
        return self.share

    @classmethod
    def example(cls) -> Example:
        """Rows that keep it and rows that break it."""
        a = np.array([1.0, 2.0, np.nan])
        return Example(cls("a", "<=", "b"), {"a": a, "b": a}, {"a": a, "b": np.array([1.0, 1.0, 1.0])})
