"""Fitting the map from a model's raw outputs to its scores on rows that it was not trained on. Numpy and scipy only."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ct.objectives import Calibration, Objective

Floats = NDArray[np.float64]
KNOTS = 50


def fit(kind: str, objective: Objective, raw: Floats, label: Floats) -> Calibration:
    """The calibration of `kind` ("temperature", "isotonic" or "" for none) for raw outputs [n] or [n, k] with the labels [n].

    Temperature: the one divisor of the logits with the least log loss (Guo et al. 2017). Isotonic, for a binary objective: the
    rising step function of the score nearest to the labels, joined by straight lines.
    """
    if objective.kind not in ("binary", "classes") or not kind:
        return Calibration()
    if kind == "temperature" or objective.kind == "classes":
        return Calibration(temperature=_temperature(objective, raw, label))
    return _isotonic(Calibration().scores(objective, raw), label)


def _temperature(objective: Objective, raw: Floats, label: Floats) -> float:
    from scipy.optimize import minimize_scalar

    place = label.astype(np.int64)

    def loss(power: float) -> float:
        scores = Calibration(temperature=float(np.exp(power))).scores(objective, raw)
        chosen = np.where(place == 1, scores, 1 - scores) if objective.kind == "binary" else scores[np.arange(len(raw)), place]
        return float(-np.log(np.clip(chosen, 1e-15, 1.0)).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-3.0, 3.0), method="bounded", options={"xatol": 1e-4}).x))


def _isotonic(scores: Floats, label: Floats) -> Calibration:
    from scipy.optimize import isotonic_regression

    order = np.lexsort((label, scores))
    found = isotonic_regression(label[order])
    blocks = found.blocks
    middles = np.array([scores[order][a:b].mean() for a, b in pairwise(blocks)])
    heights = found.x[blocks[:-1]]
    places, first = np.unique(middles, return_index=True)
    heights = np.clip(heights[first], 1e-4, 1 - 1e-4)
    if len(places) > KNOTS:
        kept = np.unique(np.linspace(0, len(places) - 1, KNOTS).astype(np.int64))
        places, heights = places[kept], heights[kept]
    return Calibration(knots=tuple(places.tolist()), heights=tuple(heights.tolist()))
