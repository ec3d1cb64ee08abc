"""Live quality from answered scores and the labels that have come in so far, with the maturity beside it. Estimates nothing before labels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ct.evaluation.losses import row_losses
from ct.evaluation.stats import auroc_interval, calibration_error, log_losses
from ct.objectives import BINARY, Objective

Floats = NDArray[np.float64]


HEADLINE = {"binary": "auroc", "classes": "log_loss", "number": "mae", "quantiles": "pinball"}
"""The metric by which quality is followed, for each kind of label; all but the first are better when lower."""


def live(scores: ArrayLike, labels: ArrayLike, objective: Objective = BINARY) -> dict[str, Any]:
    """Metrics of one version's answers: `scores` [n] or [n, k] (missing: the request failed), `labels` [n] (missing: not known yet).

    `predictions`, `labelled`, and `maturity`, the share of predictions that are labelled; over the labelled rows, None where they cannot
    be had: binary: `auroc` with `auroc_low` and `auroc_high` (95 %), `ece`, `log_loss`, `base_rate`, `mean_score`. classes: `log_loss`,
    `accuracy`. number: `mae`, `rmse`, `bias` (score less label), `mean_label`. quantiles: `pinball`, `coverage` (of the outermost),
    `mean_label`. Those that are means over rows have `_low` and `_high` beside the first.
    A low maturity biases the rest: truths that are known early differ from late ones. See `cohort`.
    """
    score, label = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    answered = np.isfinite(score).all(axis=tuple(range(1, score.ndim)))
    known = answered & np.isfinite(label)
    score, label = score[known], label[known]
    predictions, labelled = int(answered.sum()), int(known.sum())
    found = {
        "predictions": predictions,
        "labelled": labelled,
        "maturity": labelled / predictions if predictions else 0.0,
    }
    return (_binary(score, label) if objective.kind == "binary" else _other(objective, score, label)) | found


def _binary(score: Floats, label: Floats) -> dict[str, Any]:
    labelled = len(label)
    both = labelled > 0 and 0 < label.sum() < labelled
    area = auroc_interval(score, label) if both else None
    return {
        "auroc": area.estimate if area else None,
        "auroc_low": area.low if area else None,
        "auroc_high": area.high if area else None,
        "ece": calibration_error(score, label) if labelled else None,
        "log_loss": float(log_losses(score, label).mean()) if labelled else None,
        "base_rate": float(label.mean()) if labelled else None,
        "mean_score": float(score.mean()) if labelled else None,
    }


def _other(objective: Objective, score: Floats, label: Floats) -> dict[str, Any]:
    name, labelled = HEADLINE[objective.kind], len(label)
    losses = row_losses(objective, name, score, label) if labelled else np.empty(0)
    middle = float(losses.mean()) if labelled else None
    reach = float(1.96 * losses.std(ddof=1) / np.sqrt(labelled)) if labelled > 1 else None
    found: dict[str, Any] = {
        name: middle,
        f"{name}_low": None if middle is None or reach is None else middle - reach,
        f"{name}_high": None if middle is None or reach is None else middle + reach,
    }
    if objective.kind == "classes":
        return found | {"accuracy": float((score.argmax(axis=1) == label).mean()) if labelled else None}
    found["mean_label"] = float(label.mean()) if labelled else None
    if objective.kind == "number":
        gap = score - label
        return found | {
            "rmse": float(np.sqrt(np.square(gap).mean())) if labelled else None,
            "bias": float(gap.mean()) if labelled else None,
        }
    inside = (score[:, 0] <= label) & (label <= score[:, -1])
    return found | {"coverage": float(inside.mean()) if labelled else None}


def cohort(times: ArrayLike, now: int, delay: int) -> NDArray[np.bool_]:
    """True for predictions whose truth has had its time: those made `delay` or longer before `now` (all int microseconds), [n].

    Judging these alone keeps early truths from standing for all.
    """
    old: NDArray[np.bool_] = np.asarray(times, dtype=np.int64) <= now - delay
    return old
