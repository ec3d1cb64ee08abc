"""What declarations of features share: checking names of columns, and the types that they compute with."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ct.errors import InvalidPipeline

Made = dict[str, NDArray[Any]]
Times = NDArray[np.int64]


def names_of(names: tuple[str, ...], what: str) -> tuple[str, ...]:
    """The names. Raises InvalidPipeline when there is none, or one that is no text."""
    if not names or not all(isinstance(name, str) and name for name in names):
        raise InvalidPipeline(f"{what}{names!r}", "names of columns", "name at least one column")
    return tuple(names)
