"""A row's own share of a metric: losses whose mean is the metric. Numpy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ct.evaluation.stats import log_losses
from ct.objectives import Objective

Floats = NDArray[np.float64]
_SMALLEST = 1e-7


def quantile_name(q: float) -> str:
    """The name of one quantile's loss."""
    return f"pinball_{q:g}"


def row_losses(objective: Objective, metric: str, scores: Floats, labels: Floats, threshold: float = 0.5) -> Floats:
    """Each row's part [n] of the mean that `metric` is: log_loss, brier, accuracy, mae, mse, pinball or pinball_<q>.

    `scores` [n] or [n, k] and `labels` [n] as in ct/objectives.py.
    """
    if metric == "mae":
        return np.asarray(np.abs(scores - labels))
    if metric == "mse":
        gap: Floats = (scores - labels) ** 2
        return gap
    if metric.startswith("pinball"):
        return _pinball(objective, metric, scores, labels)
    if objective.kind == "binary":
        if metric == "log_loss":
            return log_losses(np.clip(scores, _SMALLEST, 1 - _SMALLEST), labels)
        told = (scores - labels) ** 2 if metric == "brier" else (scores >= threshold) == (labels == 1)
        return np.asarray(told, np.float64)
    place = labels.astype(np.int64)
    if metric == "log_loss":
        chosen: Floats = -np.log(np.clip(scores[np.arange(len(scores)), place], _SMALLEST, 1.0))
        return chosen
    if metric == "brier":
        told = (scores**2).sum(axis=1) - 2 * scores[np.arange(len(scores)), place] + 1
        return np.asarray(told, np.float64)
    return np.asarray(scores.argmax(axis=1) == place, np.float64)


def _pinball(objective: Objective, metric: str, scores: Floats, labels: Floats) -> Floats:
    quantiles = np.array(objective.quantiles)
    gap = labels[:, None] - scores
    each = np.maximum(quantiles * gap, (quantiles - 1) * gap)
    if metric == "pinball":
        return np.asarray(each.mean(axis=1))
    at = [quantile_name(q) for q in objective.quantiles].index(metric)
    return np.asarray(each[:, at])
