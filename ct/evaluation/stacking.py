"""Fitting the weights of an ensemble's members on rows that none of them was trained on. Numpy and scipy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ct.evaluation.losses import row_losses
from ct.objectives import PLAIN, Objective

Floats = NDArray[np.float64]
LOSS = {"binary": "log_loss", "classes": "log_loss", "number": "mse", "quantiles": "pinball"}
"""The metric whose mean is the loss of each objective."""
_RIDGE, _VARIANCE = 1e-3, 5.0


def fit(objective: Objective, raw: Floats, label: Floats) -> tuple[Floats, Floats]:
    """Weights [m] of at least 0 and intercepts [k] with the least loss of `raw @ weights + intercepts` on n rows.

    `raw` [n, m] or [n, m, k] are the members' raw outputs, `label` [n] as the members learned it. Weights below 0 are not allowed, which
    is what makes stacking steady (Breiman, "Stacked regressions", 1996); a small ridge draws them to equal ones, so that members that
    say the same share their weight, and intercepts have a wide normal prior (variance 5), so that a class that no row has becomes rare, not
    impossible. Rounded to 6 digits: the last bits of an optimizer are nobody's.
    """
    from scipy.optimize import minimize

    wide = raw if raw.ndim == 3 else raw[:, :, None]
    members, outputs = wide.shape[1], wide.shape[2]

    def loss(found: Floats) -> float:
        mixed = np.einsum("nmk,m->nk", wide, found[:members]) + found[members:]
        scores = PLAIN.scores(objective, mixed if objective.outputs > 1 else mixed[:, 0])
        told = row_losses(objective, LOSS[objective.kind], scores, label).mean()
        drawn = _RIDGE * members * np.square(found[:members] - 1 / members).sum()
        return float(told + drawn + np.square(found[members:]).sum() / (2 * _VARIANCE * len(label)))

    first = np.concatenate([np.full(members, 1 / members), np.zeros(outputs)])
    bounds = [(0.0, None)] * members + [(None, None)] * outputs
    best = minimize(loss, first, method="L-BFGS-B", bounds=bounds, options={"maxiter": 200})
    found = np.round(best.x if best.fun < loss(first) else first, 6)
    return found[:members], found[members:]
