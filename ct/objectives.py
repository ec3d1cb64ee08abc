"""What a model's outputs mean: the objective it is trained for, and the calibration between its raw outputs and its scores. Values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ct.errors import Corrupt

Floats = NDArray[np.float64]
KINDS = ("binary", "classes", "number", "quantiles")


@dataclass(frozen=True)
class Objective:
    """What is predicted, and so what a raw output and a score are. n rows, k outputs.

    "binary": one raw output, a logit; scores [n] in [0, 1]. "classes": k logits; scores [n, k] that sum to 1, in the order of `classes`;
    a label is the class's place. "number": one raw output; scores [n]. "quantiles": k raw outputs; scores [n, k] in the order of
    `quantiles`, rising along a row.
    """

    kind: str = "binary"
    classes: tuple[str, ...] = ()
    quantiles: tuple[float, ...] = ()

    @property
    def outputs(self) -> int:
        """The number k of raw outputs."""
        return len(self.classes) or len(self.quantiles) or 1

    @property
    def names(self) -> tuple[str, ...]:
        """What the k outputs are called in answers and in the prediction log: the classes, or the quantiles as "0.1"; none for one output."""
        return self.classes or tuple(str(float(quantile)) for quantile in self.quantiles)

    @staticmethod
    def from_json(fields: Mapping[str, Any]) -> Objective:
        """The objective that `dataclasses.asdict` wrote. Raises Corrupt for a kind this ct does not know."""
        if fields.get("kind") not in KINDS:
            raise Corrupt(f"an objective of kind {fields.get('kind')!r}", f"one of {list(KINDS)}", "upgrade ct")
        return Objective(fields["kind"], tuple(fields["classes"]), tuple(fields["quantiles"]))


BINARY = Objective()


@dataclass(frozen=True)
class Calibration:
    """How raw outputs become scores, after the training. It is part of the served graph.

    Logits are divided by `temperature`, and `shift` is added ([1] for a binary label, [k] for classes; none for nothing), before the
    sigmoid or softmax. `knots` (rising scores) and `heights` (what they become) are an
    isotonic map of a binary score, straight between the knots and flat beyond them; none for no such map. A number or quantile is
    `center + spread * raw`.
    """

    temperature: float = 1.0
    knots: tuple[float, ...] = ()
    heights: tuple[float, ...] = ()
    center: float = 0.0
    spread: float = 1.0
    shift: tuple[float, ...] = ()

    @property
    def steepest(self) -> float:
        """The steepest slope of the isotonic map, 1.0 at least: by so much it may enlarge a difference of scores."""
        slopes = np.diff(self.heights) / np.diff(self.knots)
        return float(max(1.0, slopes.max(initial=1.0)))

    def gap(self, objective: Objective, found: Floats, expected: Floats) -> float:
        """How far two runs of one model are apart, in the size of its scores; infinitely far for other shapes or what is no number.

        The size is 1 for a score, or the steepest slope of its isotonic map. For numbers it is the largest distance from `center`, at
        least `spread`, and at least a billionth of the number itself: far from 0, float64 holds no more.
        """
        if found.shape != expected.shape:
            return float("inf")
        size = self.steepest
        if objective.kind in ("number", "quantiles"):
            far = float(np.abs(expected - self.center).max(initial=0.0))
            size = max(self.spread, far, 1e-9 * float(np.abs(expected).max(initial=0.0)))
        gap = float(np.abs(found - expected).max(initial=0.0)) / size
        return gap if np.isfinite(gap) else float("inf")

    def standard(self, label: Floats) -> Floats:
        """The labels [n] that a module learns: `(label - center) / spread`. Those of classes stay as they are."""
        return (label - self.center) / self.spread if (self.center, self.spread) != (0.0, 1.0) else label

    def to_json(self) -> dict[str, Any]:
        """The calibration as plain data."""
        return asdict(self)

    @staticmethod
    def from_json(fields: Mapping[str, Any]) -> Calibration:
        """The calibration that `to_json` wrote."""
        values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
        return Calibration(**values)

    def scores(self, objective: Objective, raw: Floats) -> Floats:
        """Scores of raw outputs: [n] of [n], or [n, k] of [n, k]."""
        if objective.kind == "binary":
            score: Floats = np.exp(-np.logaddexp(0.0, -self._logits(raw)))  # never overflows
            return np.interp(score, self.knots, self.heights) if self.knots else score
        if objective.kind == "classes":
            shifted = self._logits(raw)
            powers = np.exp(shifted - shifted.max(axis=1, keepdims=True))
            shares: Floats = powers / powers.sum(axis=1, keepdims=True)
            return shares
        found: Floats = self.center + self.spread * raw
        return np.sort(found, axis=1) if objective.kind == "quantiles" else found

    def _logits(self, raw: Floats) -> Floats:
        logits: Floats = raw / self.temperature
        return logits + np.array(self.shift) if self.shift else logits


PLAIN = Calibration()
