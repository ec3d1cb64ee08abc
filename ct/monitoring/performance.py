"""Live quality from answered scores and the labels that have come in so far, with the maturity beside it. Estimates nothing before labels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ct.evaluation.stats import auroc_interval, calibration_error, log_losses


def live(scores: ArrayLike, labels: ArrayLike) -> dict[str, Any]:
    """Metrics of one version's answers: `scores` [n] in [0, 1] (missing: the request failed), `labels` [n] in {0, 1} (missing: not known yet).

    `auroc` with `auroc_low` and `auroc_high` (95 %), `ece`, `log_loss`, `base_rate`, `mean_score` over the labelled rows, None where they
    cannot be had; `predictions`, `labelled`, and `maturity`, the share of predictions that are labelled.
    A low maturity biases the rest: truths that are known early differ from late ones. See `cohort`.
    """
    score, label = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    answered = np.isfinite(score)
    known = answered & np.isfinite(label)
    score, label = score[known], label[known]
    predictions, labelled = int(answered.sum()), int(known.sum())
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
        "predictions": predictions,
        "labelled": labelled,
        "maturity": labelled / predictions if predictions else 0.0,
    }


def cohort(times: ArrayLike, now: int, delay: int) -> NDArray[np.bool_]:
    """True for predictions whose truth has had its time: those made `delay` or longer before `now` (all int microseconds), [n].

    Judging these alone keeps early truths from standing for all.
    """
    old: NDArray[np.bool_] = np.asarray(times, dtype=np.int64) <= now - delay
    return old
