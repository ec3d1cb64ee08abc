"""What is told about a score, for each kind of label: in plain JSON, as tensors of the Open Inference Protocol, and in the prediction log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ct.objectives import Objective

_TYPES = {"score": "FP64", "label": "INT64", "class": "BYTES", "scores": "FP64", "value": "FP64", "quantiles": "FP64"}
_PARTS = {
    "binary": ("score", "label"),
    "classes": ("class", "score", "scores"),
    "number": ("value",),
    "quantiles": ("quantiles",),
}


@dataclass(frozen=True)
class Answer:
    """What a request is told: scores [n] or [n, k] as the objective says, with their ids, and who answered.

    `threshold` is the score from which a binary label is 1.
    """

    ids: tuple[str, ...]
    scores: NDArray[np.float64]
    objective: Objective
    threshold: float
    version: str
    arm: str
    epoch: int

    def plain(self) -> dict[str, Any]:
        """The answer of /predict: see docs/labels.md for what stands in a prediction."""
        parts, names = self._columns(), self.objective.names
        lists = {
            part: [dict(zip(names, row, strict=True)) for row in values.tolist()] if values.ndim == 2 else values.tolist()
            for part, values in parts.items()
        }
        rows = [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]
        return {
            "predictions": [{"prediction_id": name, **row} for name, row in zip(self.ids, rows, strict=True)],
            "model_version": self.version,
            "arm": self.arm,
            "epoch": self.epoch,
        }

    def tensors(self) -> list[dict[str, Any]]:
        """The outputs of an Open Inference Protocol answer, one tensor for each part; those of shape [n, k] name their k columns."""
        made = [
            {**_named(self.objective, part), "shape": list(values.shape), "data": values.ravel().tolist()}
            for part, values in self._columns().items()
        ]
        return [*made, {"name": "prediction_id", "datatype": "BYTES", "shape": [len(self.ids)], "data": list(self.ids)}]

    def _columns(self) -> dict[str, NDArray[Any]]:
        match self.objective.kind:
            case "binary":
                return {"score": self.scores, "label": (self.scores >= self.threshold).astype(np.int64)}
            case "classes":
                best = self.scores.argmax(axis=1)
                names = np.array(self.objective.classes, dtype=object)
                return {"class": names[best], "score": self.scores.max(axis=1), "scores": self.scores}
            case "number":
                return {"value": self.scores}
            case _:
                return {"quantiles": self.scores}


def outputs(objective: Objective) -> list[dict[str, Any]]:
    """The outputs as the model's metadata describes them."""
    wide = {"scores", "quantiles"}
    made = [
        {**_named(objective, part), "shape": [-1, objective.outputs] if part in wide else [-1]}
        for part in _PARTS[objective.kind]
    ]
    return [*made, {"name": "prediction_id", "datatype": "BYTES", "shape": [-1]}]


def _named(objective: Objective, part: str) -> dict[str, Any]:
    columns = {"parameters": {"columns": list(objective.names)}} if part in ("scores", "quantiles") else {}
    return {"name": part, "datatype": _TYPES[part], **columns}


def logged(objective: Objective, scores: NDArray[np.float64]) -> list[dict[str, Any]]:
    """What the prediction log keeps of each row's scores: `scores` {class or quantile: value}, empty where there is but one, and `score`.

    That one is the score, the number, the probability of the class that was answered, or the middle quantile.
    """
    if objective.outputs == 1:
        return [{"score": score, "scores": {}} for score in scores.tolist()]
    one = scores.max(axis=1) if objective.kind == "classes" else scores[:, objective.outputs // 2]
    return [
        {"score": score, "scores": dict(zip(objective.names, row, strict=True))}
        for score, row in zip(one.tolist(), scores.tolist(), strict=True)
    ]


def read(objective: Objective, record: Mapping[str, Any]) -> dict[str, Any]:
    """A record of the prediction log as its parts with a name each: {"score": …}, {"class": …, "score": …, "score late": …}, …"""
    if record["score"] is None:
        return {"score": None}
    scores = record.get("scores")  # records of an older ct have none
    match objective.kind:
        case "classes" if scores:
            best = max(scores, key=scores.__getitem__)
            return {"class": best, "score": record["score"], **{f"score {name}": score for name, score in scores.items()}}
        case "quantiles" if scores:
            return {f"quantile {name}": value for name, value in scores.items()}
        case "number":
            return {"value": record["score"]}
        case _:
            return {"score": record["score"]}
