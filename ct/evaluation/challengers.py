"""Challengers: other kinds of models that are fitted beside a candidate, so that a team sees when its own is not worth it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ct.errors import InvalidPipeline
from ct.objectives import Objective
from ct.roles import Encoded

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class LightGBM:
    """Gradient boosted trees on the candidate's encoded training rows: `rounds` trees of `leaves` leaves; `options` are LightGBM's own.

    One thread and its deterministic mode, so the same rows give the same scores. Needs the extra `lightgbm`.
    """

    rounds: int = 300
    leaves: int = 31
    lr: float = 0.05
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.leaves < 2 or not self.lr > 0:
            raise InvalidPipeline(repr(self), "rounds of at least 1, leaves of at least 2, a learning rate above 0", "mend it")

    @property
    def name(self) -> str:
        """Its name in reports."""
        return "LightGBM"

    def missing(self) -> str:
        """Why it cannot run here, empty when it can."""
        return "" if find_spec("lightgbm") else "the package lightgbm is not installed; run `pip install 'ct[lightgbm]'`"

    def scores(self, objective: Objective, train: Encoded, asked: Encoded) -> Floats:
        """Its scores of `asked`: probabilities, class shares [n, k], numbers, or quantiles [n, k] in rising order."""
        if objective.kind == "binary":
            return self._fitted({"objective": "binary"}, train, asked)
        if objective.kind == "classes":
            return self._fitted({"objective": "multiclass", "num_class": objective.outputs}, train, asked)
        if objective.kind == "number":
            return self._fitted({"objective": "regression"}, train, asked)
        each = [self._fitted({"objective": "quantile", "alpha": q}, train, asked) for q in objective.quantiles]
        return np.sort(np.stack(each, axis=1), axis=1)

    def _fitted(self, aim: Mapping[str, Any], train: Encoded, asked: Encoded) -> Floats:
        import lightgbm

        settings = {
            "num_leaves": self.leaves,
            "learning_rate": self.lr,
            "seed": self.seed,
            "deterministic": True,
            "force_row_wise": True,
            "num_threads": 1,
            "verbosity": -1,
            **self.options,
            **aim,
        }
        numbers = train.numeric.shape[1]
        places = list(range(numbers, numbers + train.category.shape[1]))
        data = lightgbm.Dataset(_matrix(train), train.label, weight=train.weight, categorical_feature=places)
        made = lightgbm.train(settings, data, num_boost_round=self.rounds)
        return np.asarray(made.predict(_matrix(asked), num_threads=1), np.float64)


def _matrix(rows: Encoded) -> Floats:
    return np.concatenate([rows.numeric.astype(np.float64), rows.category.astype(np.float64)], axis=1)
