"""Columns that have not gone dead."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ct.data.checks import Example
from ct.data.columns import codes, count, is_text, missing, texts
from ct.errors import InvalidPipeline
from ct.roles import Columns, Past


@dataclass(frozen=True, init=False)
class Varied:
    """None of `columns` holds one value alone, or none at all, in a shard of at least `rows` rows. Smaller shards are not judged."""

    names: tuple[str, ...]
    rows: int

    def __init__(self, *columns: str, rows: int = 100) -> None:
        if not columns or rows < 2:
            raise InvalidPipeline(f"Varied({columns}, rows={rows})", "at least one column and two rows", "name the columns")
        object.__setattr__(self, "names", columns)
        object.__setattr__(self, "rows", rows)

    def columns(self) -> tuple[str, ...]:
        """The columns."""
        return self.names

    def violations(self, rows: Columns, past: Past) -> NDArray[np.bool_]:
        """One truth value."""
        return np.asarray(bool(self._dead(rows)))

    def found(self, rows: Columns, past: Past) -> str:
        """Which columns are dead."""
        return f"{', '.join(self._dead(rows))} has the same value in all {count(rows):,} rows, or none"

    def _dead(self, rows: Columns) -> list[str]:
        return [name for name in self.names if count(rows) >= self.rows and not _varies(rows, name)]

    def explain(self) -> str:
        """The rule."""
        return f"{', '.join(self.names)} not constant"

    def limit(self) -> float:
        """None may break it."""
        return 0.0

    @classmethod
    def example(cls) -> Example:
        """Rows that keep it and rows that break it."""
        return Example(cls("a", rows=2), {"a": np.array([1.0, 2.0])}, {"a": np.array([1.0, 1.0])})


def _varies(rows: Columns, name: str) -> bool:
    if is_text(rows, name):
        index, _ = codes(texts(rows, name))
        return len(np.unique(index[index >= 0])) > 1
    values = rows[name][~missing(rows, name)]
    return len(values) > 0 and bool((values != values[0]).any())
