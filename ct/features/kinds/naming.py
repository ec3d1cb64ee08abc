"""What declarations of features share: checking names of columns and conditions, and the types that they compute with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ct.errors import InvalidPipeline
from ct.features.transform import OPERATORS

Made = dict[str, NDArray[Any]]
Times = NDArray[np.int64]
Where = tuple[tuple[str, str, str | float], ...]
_WORDS = {"==": "is", "!=": "is_not", "<": "below", "<=": "at_most", ">": "above", ">=": "at_least"}


def names_of(names: tuple[str, ...], what: str) -> tuple[str, ...]:
    """The names. Raises InvalidPipeline when there is none, or one that is no text."""
    if not names or not all(isinstance(name, str) and name for name in names):
        raise InvalidPipeline(f"{what}{names!r}", "names of columns", "name at least one column")
    return tuple(names)


def tuple_of(value: str | Sequence[str]) -> tuple[str, ...]:
    """One name or several, as several."""
    return (value,) if isinstance(value, str) else tuple(value)


def condition(part: Any) -> Any:
    """A condition of a `where` with numbers as float64; what is no condition as it is, for `check_where` to refuse."""
    whole = isinstance(part, Sequence) and len(part) == 3 and isinstance(part[2], int)
    return (part[0], part[1], float(part[2])) if whole else tuple(part) if isinstance(part, list) else part


def check_where(where: Sequence[Any], what: str) -> None:
    """Raises InvalidPipeline for what is no condition, see `roles.Lookup`."""
    for part in where:
        if not _is_condition(part):
            raise InvalidPipeline(
                f"{what} where {part!r}", f"(column, one of {list(OPERATORS)}, text or number)", "mend that condition"
            )


def words_of(where: Where) -> str:
    """The conditions as the end of a column's name."""
    return "".join(f"_{column}_{_WORDS[sign]}_{value}" for column, sign, value in where)


def _is_condition(part: Any) -> bool:
    return (
        isinstance(part, tuple)
        and len(part) == 3
        and isinstance(part[0], str)
        and part[1] in OPERATORS
        and (isinstance(part[2], str) or (isinstance(part[2], float | int) and math.isfinite(part[2])))
    )
