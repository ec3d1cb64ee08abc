"""What is predicted: the label's declaration, and what a table's rows say of it. Building one runs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ct.errors import InvalidPipeline, TrainingFailed
from ct.objectives import Objective
from ct.roles import Columns


@dataclass(frozen=True)
class Label:
    """What is predicted, and from when on the truth is known (`known_at`, a time column).

    `Label("arr_delay", above=15, known_at=…)`: is the column above 15? A binary label. `Label("outcome", classes=("late", "on time"), known_at=…)`:
    which of these texts. `Label("arr_delay", known_at=…)`: the number itself, and with `quantiles=(0.1, 0.5, 0.9)` its quantiles.
    `weight` names a column of the predicted table: how much a row counts in training, 1.0 where it is not given. It must be 0 or more.
    Raises InvalidPipeline for a declaration that contradicts itself.
    """

    column: str
    above: float | None = None
    known_at: str = ""
    classes: Sequence[str] = ()
    quantiles: Sequence[float] = ()
    weight: str = ""

    def __post_init__(self) -> None:
        for name in ("classes", "quantiles"):
            if isinstance(getattr(self, name), str):
                raise InvalidPipeline(f"Label({name}={getattr(self, name)!r})", "several of them", f"write {name}=(…, …)")
            object.__setattr__(self, name, tuple(getattr(self, name)))
        said = f"Label({self.column!r}, above={self.above!r}, classes={list(self.classes)}, quantiles={list(self.quantiles)})"
        if not self.known_at:
            raise InvalidPipeline(f"{said} without known_at", "the column that says when the truth is known", "add known_at=")
        if sum((self.above is not None, bool(self.classes), bool(self.quantiles))) > 1:
            raise InvalidPipeline(said, "one of above, classes and quantiles, or none for a number", "choose one")
        if self.classes and (
            len(self.classes) < 2
            or not all(isinstance(name, str) and name for name in self.classes)
            or len(set(self.classes)) < len(self.classes)
        ):
            raise InvalidPipeline(said, "two or more different classes, as texts", "name each class once, as the column has it")
        if not all(_finite(number) for number in (*self.quantiles, self.above or 0.0)):
            raise InvalidPipeline(said, "finite numbers in above and quantiles", "mend them")
        rising = list(self.quantiles) == sorted(set(self.quantiles))
        if self.quantiles and not (rising and self.quantiles[0] > 0 and self.quantiles[-1] < 1):
            raise InvalidPipeline(said, "rising quantiles between 0 and 1", "for example quantiles=(0.1, 0.5, 0.9)")

    @property
    def objective(self) -> Objective:
        """What the model is trained for."""
        kind = "classes" if self.classes else "quantiles" if self.quantiles else "number" if self.above is None else "binary"
        return Objective(kind, tuple(self.classes), tuple(self.quantiles))

    def values(self, rows: Columns) -> NDArray[np.float64]:
        """Labels [n], NaN where there is none: 0.0 or 1.0, the class's place, or the number.

        A text that is no class, and a number that is not finite, is no label. Raises InvalidPipeline for a column of the other kind.
        """
        given = rows[self.column]
        if self.classes:
            self._of_kind(given, "O", "text, as classes are")
            places: dict[Any, float] = {text: float(at) for at, text in enumerate(self.classes)}
            return np.array([places.get(text, np.nan) for text in given.tolist()], dtype=np.float64)
        self._of_kind(given, "fiub", "numbers")
        raw = np.asarray(given, dtype=np.float64)
        if self.above is None:
            return np.where(np.isfinite(raw), raw, np.nan)
        return np.where(np.isnan(raw), np.nan, (raw > self.above).astype(np.float64))

    def weights(self, given: NDArray[Any]) -> NDArray[np.float64]:
        """How much each row counts [n], of the values in the column `weight`: 1.0 where there is none.

        Raises InvalidPipeline for texts, TrainingFailed, "invalid", when some are negative or infinite, with their number.
        """
        if given.dtype.kind not in "fiub":
            raise InvalidPipeline(
                f"the weights {self.weight!r} are no numbers", "a column of numbers", "weigh by another column"
            )
        found = np.asarray(given, dtype=np.float64)
        wrong = (found < 0) | np.isinf(found)
        if wrong.any():
            raise TrainingFailed(
                f"{int(wrong.sum()):,} of {len(found):,} rows have a weight {self.weight!r} that is negative or infinite",
                "finite weights of at least 0",
                "mend the rows, or declare ct.Within on the column so that they do not get in",
                state="invalid",
            )
        return np.where(np.isnan(found), 1.0, found)

    def _of_kind(self, given: NDArray[Any], kinds: str, expected: str) -> None:
        if given.dtype.kind not in kinds:
            has = "text" if given.dtype.kind == "O" else "numbers"
            raise InvalidPipeline(
                f"the label {self.column!r} is a column of {has}",
                f"a column of {expected}",
                "declare classes= for a label of text" if has == "text" else "leave classes out for a label of numbers",
            )


def _finite(number: object) -> bool:
    return not isinstance(number, bool) and isinstance(number, (int, float)) and bool(np.isfinite(number))
