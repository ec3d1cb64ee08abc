"""A user's own function over plain arrays as a feature."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from inspect import isfunction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ct.errors import InvalidPipeline
from ct.features.kinds.naming import Made, Times, names_of
from ct.ids import canonical, describe, sha256
from ct.roles import Column, Columns, History, Lookup


@dataclass(frozen=True)
class Own:
    """`function` of the row's own columns `names`, given as arrays [n]; it returns one array [n]. Calling it calls the function.

    A row's value may depend on that row alone. A model's spec keeps the hash of the function's source; the function itself lies in the
    archive of code that the model carries.
    """

    function: Callable[..., NDArray[Any]]
    names: tuple[str, ...]
    kind: str
    name: str

    @classmethod
    def example(cls) -> Own:
        """The number of letters."""
        return cls(_letters, ("town",), "numeric", "letters")

    def __call__(self, *columns: NDArray[Any]) -> NDArray[Any]:
        return self.function(*columns)

    @cached_property
    def source(self) -> str:
        """SHA-256 of the function's source, and of what it uses of its file: see `ids.describe`."""
        told = describe(self.function)
        return sha256(canonical([told["source"], told["uses"]])) if "uses" in told else str(told["source"])

    def outputs(self) -> tuple[Column, ...]:
        """One column of the function's name."""
        return (Column(self.name, self.kind),)

    def inputs(self) -> tuple[str, ...]:
        """The columns it is given."""
        return self.names

    def lookups(self) -> tuple[Lookup, ...]:
        """None."""
        return ()

    def compute(self, rows: Columns, times: Times, history: History) -> Made:
        """What the function returns. Raises InvalidPipeline when it fails or returns something else than a value a row."""
        try:
            # Copies: what a function does to its arrays must not reach other features.
            made = np.asarray(self.function(*(rows[name].copy() for name in self.names)))
            if self.kind == "numeric":
                made = made.astype(np.float64)
        except Exception as error:  # a user's function may raise anything
            raise InvalidPipeline(
                f"feature {self.name!r} fails: {type(error).__name__}: {error}", "a function of arrays", "mend the function"
            ) from error
        if made.shape != times.shape:
            raise InvalidPipeline(
                f"feature {self.name!r} returns shape {made.shape}", f"one value a row, {times.shape}", "mend it"
            )
        if self.kind == "numeric":
            return {self.name: made}
        texts = np.empty(len(made), dtype=object)
        texts[:] = [None if value is None or value != value else str(value) for value in made.tolist()]
        return {self.name: texts}


def _letters(town: NDArray[Any]) -> NDArray[Any]:
    return np.array([np.nan if value is None else len(value) for value in town], dtype=np.float64)


def feature(*columns: str, kind: str = "numeric") -> Callable[[Callable[..., NDArray[Any]]], Own]:
    """Makes a function of arrays a feature: `@ct.feature("dest")` above `def dest_length(dest): ...`, which returns one value a row.

    Numbers come as float64 with NaN, times as int64 microseconds, text as object with None. `kind` is "numeric" or "category".
    """
    if kind not in ("numeric", "category"):
        raise InvalidPipeline(f"feature(kind={kind!r})", "numeric or category", "choose one")
    names = names_of(columns, "feature")

    def made(function: Callable[..., NDArray[Any]]) -> Own:
        if not isfunction(function):
            raise InvalidPipeline(f"@ct.feature of {function!r}", "a function in a file", "write `def name(...):` below it")
        return Own(function, names, kind, function.__name__)

    return made
