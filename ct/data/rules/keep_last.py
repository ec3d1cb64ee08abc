"""Of several rows with one key, the last is kept."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ct.data.checks import QUARANTINE, Example
from ct.data.hashing import row_hash
from ct.data.rules.unique import published, repeated
from ct.roles import Columns, Past


@dataclass(frozen=True)
class KeepLast:
    """Of a shard's rows with the same `key` the one with the latest `by` is published, the others are set aside and counted.

    Of two as late as each other the later row stays. A key that is published already stays as it was published: a published row never changes.
    """

    key: str | tuple[str, ...]
    by: str

    @property
    def severity(self) -> str:
        """Rows that break it are set aside."""
        return QUARANTINE

    @property
    def _key(self) -> tuple[str, ...]:
        return (self.key,) if isinstance(self.key, str) else tuple(self.key)

    def columns(self) -> tuple[str, ...]:
        """The key and the order."""
        return (*self._key, self.by)

    def violations(self, rows: Columns, past: Past) -> NDArray[np.bool_]:
        """True for rows that another one replaces."""
        every = row_hash(rows, self._key)
        sorted_hashes = np.sort(every)
        broken = published(rows, self._key, every, sorted_hashes, past)
        several = np.flatnonzero(repeated(rows, self._key, every, sorted_hashes))
        if len(several):
            hashes, order = every[several], rows[self.by][several]
            sorted_ = np.lexsort((several, order, hashes))
            last = np.append(hashes[sorted_][1:] != hashes[sorted_][:-1], True)
            broken[several[sorted_[~last]]] = True
        return broken

    def explain(self) -> str:
        """The rule."""
        return f"the last row of each {', '.join(self._key)} by {self.by}"

    def limit(self) -> float:
        """None may break it."""
        return 0.0

    @classmethod
    def example(cls) -> Example:
        """Rows that keep it and rows that break it."""
        once, twice = np.array(["x", "y"], dtype=object), np.array(["x", "x"], dtype=object)
        time = np.array([1, 2], dtype=np.int64)
        return Example(cls("a", by="t"), {"a": once, "t": time}, {"a": twice, "t": time})
