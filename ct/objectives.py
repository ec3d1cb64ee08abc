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

    Logits are divided by `temperature` before the sigmoid or softmax. `knots` (rising scores) and `heights` (what they become) are an
    isotonic map of a binary score, straight between the knots and flat beyond them; none for no such map. A number or quantile is
    `center + spread * raw`.
    """

    temperature: float = 1.0
    knots: tuple[float, ...] = ()
    heights: tuple[float, ...] = ()
    center: float = 0.0
    spread: float = 1.0

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
            score: Floats = 1.0 / (1.0 + np.exp(-raw / self.temperature))
            return np.interp(score, self.knots, self.heights) if self.knots else score
        if objective.kind == "classes":
            shifted = raw / self.temperature
            powers = np.exp(shifted - shifted.max(axis=1, keepdims=True))
            shares: Floats = powers / powers.sum(axis=1, keepdims=True)
            return shares
        found: Floats = self.center + self.spread * raw
        return np.sort(found, axis=1) if objective.kind == "quantiles" else found


PLAIN = Calibration()
