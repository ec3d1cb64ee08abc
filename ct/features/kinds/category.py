"""Texts of the row itself, and pairs of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ct.errors import InvalidPipeline
from ct.features.kinds.naming import Made, Times, names_of
from ct.features.transform import texts
from ct.roles import Column, Columns, Feature, History, Lookup


@dataclass(frozen=True)
class Category:
    """The row's own texts; numbers become text, whole ones without a point.

    The model sees ids: missing, unknown, rare (seen fewer than `rare` times in training), then one for each value; or with `hashed`,
    missing and one of so many buckets by a hash of the text.
    """

    names: tuple[str, ...]
    rare: int = 5
    hashed: int = 0

    @classmethod
    def example(cls) -> Category:
        """Two columns."""
        return cls(("town", "line"))

    def outputs(self) -> tuple[Column, ...]:
        """One category for each column."""
        return tuple(Column(name, "category", rare=self.rare, hashed=self.hashed) for name in self.names)

    def inputs(self) -> tuple[str, ...]:
        """The columns themselves."""
        return self.names

    def lookups(self) -> tuple[Lookup, ...]:
        """None."""
        return ()

    def compute(self, rows: Columns, times: Times, history: History) -> Made:
        """The columns."""
        return {name: texts(rows, name) for name in self.names}


def category(*columns: str, rare: int = 5, hashed: int = 0) -> Feature:
    """The row's own texts: values seen fewer than `rare` times in training share a bucket; with `hashed=k`, k buckets by hash and no vocabulary."""
    if rare < 1:
        raise InvalidPipeline(f"category(rare={rare!r})", "1 or more", "1 keeps every value")
    if hashed and not 2 <= hashed <= 1 << 22:
        raise InvalidPipeline(f"category(hashed={hashed!r})", f"2 to {1 << 22}", "leave it out for a vocabulary")
    return Category(names_of(columns, "category"), rare, hashed)


@dataclass(frozen=True)
class Cross:
    """Several texts of the row as one category: "EWR|IAH"; missing where one of them is."""

    names: tuple[str, ...]
    rare: int = 5
    hashed: int = 0

    @classmethod
    def example(cls) -> Cross:
        """A pair."""
        return cls(("town", "line"))

    def outputs(self) -> tuple[Column, ...]:
        """One category."""
        return (Column("_x_".join(self.names), "category", rare=self.rare, hashed=self.hashed),)

    def inputs(self) -> tuple[str, ...]:
        """The columns."""
        return self.names

    def lookups(self) -> tuple[Lookup, ...]:
        """None."""
        return ()

    def compute(self, rows: Columns, times: Times, history: History) -> Made:
        """The texts joined; a "|" within one is doubled, so that different texts stay different."""
        made = np.empty(len(times), dtype=object)
        parts = [texts(rows, name).tolist() for name in self.names]
        made[:] = [
            None if None in values else "|".join(value.replace("|", "||") for value in values)
            for values in zip(*parts, strict=True)
        ]
        return {self.outputs()[0].name: made}


def cross(*columns: str, rare: int = 5, hashed: int = 0) -> Feature:
    """Two texts or more as one category."""
    if len(names_of(columns, "cross")) < 2:
        raise InvalidPipeline(f"cross{columns!r}", "two columns or more", "use ct.category for one")
    made = category(*columns, rare=rare, hashed=hashed)
    assert isinstance(made, Category)
    return Cross(made.names, made.rare, made.hashed)
