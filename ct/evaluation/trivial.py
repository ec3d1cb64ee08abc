"""The trivial baseline: what one would say without a model. Learned on the training rows, judged on the same rows as the model. Numpy only."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ct.evaluation.losses import quantile_name, row_losses
from ct.objectives import Objective

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Trivial:
    """One answer for all rows, or for each row the last truth that was known.

    `constant` [1] or [k]: the base rate, the classes' shares, the mean, or the quantiles of the labels it was learned from; `middle` is
    their median, which is the constant with the least absolute error. `last` [n] stands for both where it is given (numbers only).
    """

    constant: Floats
    middle: float
    last: Floats | None = None

    @staticmethod
    def learned(objective: Objective, labels: Floats) -> Trivial:
        """The baseline of the training rows' labels [n], at least one."""
        middle = float(np.median(labels))
        if objective.kind == "classes":
            # One row more in each class: a class that was never seen is rare, not impossible.
            counts = np.bincount(labels.astype(np.int64), minlength=objective.outputs) + 1.0
            return Trivial(counts / counts.sum(), middle)
        if objective.kind == "quantiles":
            return Trivial(np.quantile(labels, objective.quantiles), middle)
        return Trivial(np.array([labels.mean()]), middle)

    def scores(self, objective: Objective, metric: str, n: int) -> Floats:
        """Its scores for n rows, [n] or [n, k], where it is judged by `metric`."""
        if self.last is not None:
            return np.repeat(self.last[:, None], objective.outputs, axis=1) if objective.kind == "quantiles" else self.last
        if objective.kind in ("classes", "quantiles"):
            return np.tile(self.constant, (n, 1))
        return np.full(n, self.middle if metric == "mae" else self.constant[0])

    def of(self, mask: NDArray[np.bool_]) -> Trivial:
        """The baseline for the rows under a mask [n]."""
        return self if self.last is None else replace(self, last=self.last[mask])

    def losses(self, objective: Objective, labels: Floats) -> dict[str, float]:
        """Its mean losses on rows with the labels [n]: log_loss and brier, also accuracy of classes; mae and rmse; or pinball of each quantile."""
        names = {
            "binary": ("log_loss", "brier"),
            "classes": ("log_loss", "brier", "accuracy"),
            "number": ("mae", "rmse"),
            "quantiles": ("pinball", *(quantile_name(q) for q in objective.quantiles)),
        }[objective.kind]
        found = {}
        for name in names:
            row = row_losses(objective, "mse" if name == "rmse" else name, self.scores(objective, name, len(labels)), labels)
            found[name] = float(np.sqrt(row.mean()) if name == "rmse" else row.mean())
        return found


def last_known(
    times: NDArray[np.int64], known_at: NDArray[np.int64], labels: Floats, groups: NDArray[Any] | None, asked: NDArray[np.bool_]
) -> Floats:
    """For each of the rows under `asked`: the label of the same group that became known last before the row's time; NaN where there is none.

    `times`, `known_at` (microseconds), `labels` (NaN: none) and `groups` (texts; None: all rows are one group) are [n].
    """
    place = np.zeros(len(times), np.int64)
    if groups is not None:
        _, place = np.unique(np.array([str(value) for value in groups]), return_inverse=True)
    known = ~np.isnan(labels)
    order = np.flatnonzero(known)[np.lexsort((times[known], known_at[known], place[known]))]
    found = np.full(int(asked.sum()), np.nan)
    at = np.flatnonzero(asked)
    for group in np.unique(place[at]):
        mine = order[place[order] == group]
        rows = np.flatnonzero(place[at] == group)
        before = np.searchsorted(known_at[mine], times[at[rows]], side="left") - 1
        seen = before >= 0
        found[rows[seen]] = labels[mine[before[seen]]]
    return found
