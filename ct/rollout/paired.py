"""A shadow against stable on the same rows, once their truth is known. The same rows, so far fewer labels are needed than with two arms. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ct.errors import TrainingFailed
from ct.evaluation.losses import row_losses
from ct.evaluation.stats import E_MAX, Interval, auroc_influence, running_mean
from ct.objectives import Objective

Floats = NDArray[np.float64]
_METRICS = {"binary": "auroc", "classes": "accuracy", "number": "mae", "quantiles": "pinball"}
_LOSSES = ("mae", "pinball")
LEAST = 100
FAILING = 0.01
"""A shadow that fails on a larger share of the rows does not pass."""


@dataclass(frozen=True)
class Paired:
    """The candidate's `metric` minus stable's on `n` labelled rows; positive is better. `low` and `high` hold at any number of looks.

    The shadow was asked about `asked` rows and failed on `failed` of them.
    """

    metric: str
    n: int
    difference: float
    low: float
    high: float
    asked: int = 0
    failed: int = 0

    @property
    def harmful(self) -> bool:
        """Is the candidate worse for sure? Never said of fewer than LEAST rows, where the bounds mean nothing yet."""
        return self.n >= LEAST and self.high < 0

    def passes(self, within: float) -> bool:
        """Is it, for sure, not worse than stable by more than `within`, and does it answer?"""
        return self.n >= LEAST and self.low > -within and self.failed <= FAILING * self.asked

    def __str__(self) -> str:
        told = f"{self.metric} {self.difference:+.4f} ({self.low:+.4f} to {self.high:+.4f}) on {self.n:,} labelled rows of both"
        return f"{told}; {self.failed:,} of {self.asked:,} rows failed" if self.failed else told


def compare(objective: Objective, stable: Floats, candidate: Floats, label: Floats, *, alpha: float) -> Paired:
    """Compare scores [n] or [n, k] of the same n rows. Rows without a label or a score of either count for nothing.

    binary: AUROC, each row's pull at the difference as in DeLong's variance; classes: accuracy; number: mean absolute error; quantiles:
    pinball loss, the last two with their sign turned. Either bound fails with probability `alpha` at most over all looks, asymptotically.
    """
    metric = _METRICS[objective.kind]
    known = np.isfinite(label)
    for scores in (stable, candidate):
        wide = math.prod(scores.shape[1:])  # -1 cannot be told where there is no row yet
        known &= np.isfinite(scores.reshape(len(scores), wide)).all(axis=1)
    ours, theirs, truth = candidate[known], stable[known], label[known]
    if objective.kind == "binary":
        found = _auroc(theirs, ours, truth, alpha)
    elif len(truth):
        sign = -1.0 if metric in _LOSSES else 1.0
        gap = row_losses(objective, metric, ours, truth) - row_losses(objective, metric, theirs, truth)
        found = running_mean(sign * gap, alpha=alpha)
    else:
        found = running_mean(truth, alpha=alpha)
    return Paired(metric, len(truth), found.estimate, found.low, found.high)


def _auroc(stable: Floats, candidate: Floats, label: Floats, alpha: float) -> Interval:
    try:
        area, pull = auroc_influence(candidate, label)
        other, pulled = auroc_influence(stable, label)
    except TrainingFailed:  # only one class is known yet
        return Interval(0.0, -E_MAX, E_MAX)
    parts = (pull - pulled) * len(label)  # sums to zero; its mean's variance is DeLong's
    found = running_mean(parts, alpha=alpha)
    return Interval(area - other, area - other + found.low, area - other + found.high)
