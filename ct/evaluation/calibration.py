"""Fitting the map from a model's raw outputs to its scores on rows that it was not trained on, and the scale of a number's label. Numpy and scipy only."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ct.errors import TrainingFailed
from ct.objectives import PLAIN, Calibration, Objective

Floats = NDArray[np.float64]
KNOTS = 50
ROWS, RARE = 1_000, 50
"""Isotonic needs so many rows, and so many of the rarer class: with fewer it learns their noise (Niculescu-Mizil and Caruana 2005, section 4)."""
STEEPEST = 100.0
"""No isotonic map rises faster than this: it would turn the last bits of a score into another answer."""
MOST = 10.0
"""The largest shift of a logit: a class that no held row has becomes rare, not impossible."""
_LEAST = 1e-15


def scale(objective: Objective, label: Floats) -> Calibration:
    """The calibration by which a module learns a number or its quantiles: mean and standard deviation of the training labels [n].

    A plain one for classes. Raises TrainingFailed where the labels are so large that float64 cannot hold their spread.
    """
    if objective.kind in ("binary", "classes"):
        return PLAIN
    largest = float(np.abs(label).max())
    part = label / largest if largest else label  # squares of huge numbers would overflow, those of tiny ones vanish
    center, spread = float(part.mean() * largest), float(part.std() * largest)
    if not (np.isfinite(spread) and spread > 0):
        raise TrainingFailed(
            f"labels from {label.min():g} to {label.max():g} with a standard deviation of {spread:g}",
            "labels that differ, in a size that a number can hold",
            "check the label's column, or predict another unit",
        )
    return Calibration(center=center, spread=spread)


def fit(kind: str, objective: Objective, raw: Floats, label: Floats, *, weighed: bool = False) -> Calibration:
    """The calibration of `kind` ("temperature", "isotonic" or "" for none) for raw outputs [n] or [n, k] with the labels [n].

    Temperature: the one divisor of the logits with the least log loss (Guo et al. 2017). Isotonic, for a binary objective with enough
    rows: after the temperature, the rising step function of the score nearest to the labels (Zadrozny and Elkan 2002), joined by straight
    lines. A model that learned from `weighed` rows is wrong about how frequent classes are, which no divisor mends: then a shift of each
    logit is fitted with the temperature (Platt 1999, for two classes). Whatever does not better the log loss of these rows is left out.
    See `explain`.
    """
    if objective.kind not in ("binary", "classes") or not kind or not len(label):
        return PLAIN
    tempered = _temperature(objective, raw, label)
    if weighed:
        tempered = min(tempered, _shifted(tempered, objective, raw, label), key=lambda it: _loss(objective, it, raw, label))
    if kind == "temperature" or _lacking(objective, label):
        return tempered
    found = _isotonic(tempered, tempered.scores(objective, raw), label)
    return found if _loss(objective, found, raw, label) <= _loss(objective, tempered, raw, label) else tempered


def explain(kind: str, objective: Objective, found: Calibration, label: Floats) -> str:
    """What `fit` made of these labels [n], in a sentence, and why where it is not what was asked for."""
    if objective.kind not in ("binary", "classes"):
        return f"labels are learned less {found.center:g}, by {found.spread:g}"
    if not kind or not len(label):
        return "none" + ("" if not kind else ": no rows were held back")
    moved = " and a shift of the logits" if found.shift else ""
    made = f"temperature {found.temperature:.4g}{moved}" + (
        f", then isotonic in {len(found.knots)} knots" if found.knots else ""
    )
    why = ""
    if kind == "isotonic" and not found.knots:
        why = f", no isotonic map: {_lacking(objective, label) or 'it does not better the log loss'}"
    return f"{made}{why}, on {len(label):,} rows"


def _lacking(objective: Objective, label: Floats) -> str:
    """Why there can be no isotonic map, empty where there can."""
    if objective.kind != "binary":
        return "it is for a binary label"
    rare = int(min(label.sum(), len(label) - label.sum()))
    if len(label) < ROWS or rare < RARE:
        return f"{len(label):,} rows with {rare:,} of the rarer class, at least {ROWS:,} with {RARE} are needed"
    return ""


def _temperature(objective: Objective, raw: Floats, label: Floats) -> Calibration:
    from scipy.optimize import minimize_scalar

    def loss(power: float) -> float:
        return _loss(objective, Calibration(temperature=float(np.exp(power))), raw, label)

    found = minimize_scalar(loss, bounds=(-3.0, 3.0), method="bounded", options={"xatol": 1e-4})
    return Calibration(temperature=float(np.exp(found.x))) if found.fun < loss(0.0) else PLAIN


def _shifted(tempered: Calibration, objective: Objective, raw: Floats, label: Floats) -> Calibration:
    """Temperature and shifts with the least log loss together, from the temperature alone on. The first class is not shifted."""
    from scipy.optimize import minimize
    from scipy.special import log_softmax

    logits = np.column_stack([np.zeros(len(raw)), raw]) if objective.kind == "binary" else raw
    hot = np.eye(logits.shape[1])[label.astype(np.int64)]

    def loss(x: Floats) -> tuple[float, Floats]:
        tilted = logits * np.exp(x[0])
        told = log_softmax(tilted + np.concatenate([[0.0], x[1:]]), axis=1)
        off = (np.exp(told) - hot) / len(raw)
        return -float((told * hot).sum()) / len(raw), np.concatenate([[(off * tilted).sum()], off.sum(axis=0)[1:]])

    begin = np.zeros(logits.shape[1])
    begin[0] = -np.log(tempered.temperature)
    bounds = [(-3.0, 3.0), *[(-MOST, MOST)] * (len(begin) - 1)]
    found = minimize(loss, begin, jac=True, method="L-BFGS-B", bounds=bounds).x
    shift = found[1:] if objective.kind == "binary" else np.concatenate([[0.0], found[1:]])
    return Calibration(temperature=float(np.exp(-found[0])), shift=tuple(shift.tolist()))


def _loss(objective: Objective, calibration: Calibration, raw: Floats, label: Floats) -> float:
    scores, place = calibration.scores(objective, raw), label.astype(np.int64)
    chosen = np.where(place == 1, scores, 1 - scores) if objective.kind == "binary" else scores[np.arange(len(raw)), place]
    return float(-np.log(np.clip(chosen, _LEAST, 1.0)).mean())


def _isotonic(tempered: Calibration, scores: Floats, label: Floats) -> Calibration:
    from scipy.optimize import isotonic_regression

    # The served graph's scores are float32. Rows of one score are one point: they can have one height only.
    places, which, counts = np.unique(scores.astype(np.float32), return_inverse=True, return_counts=True)
    found = isotonic_regression(np.bincount(which, label) / counts, weights=counts.astype(np.float64))
    starts = found.blocks[:-1]
    rows = np.add.reduceat(counts, starts).astype(np.float64)
    x, y = np.add.reduceat(places * counts.astype(np.float64), starts) / rows, found.x[starts]
    x, y, rows = _pooled(x, y, rows, np.arange(len(x)) * KNOTS // max(len(x), KNOTS))
    # Nothing is more certain than half a row in all of them: a block without a positive row is no proof that there is none.
    least = 0.5 / (len(label) + 1)
    y = np.clip(y, least, 1 - least)
    while len(x) > 1 and (steep := np.diff(y) > STEEPEST * np.diff(x)).any():
        x, y, rows = _pooled(x, y, rows, np.concatenate([[0], np.cumsum(~steep)]))
    return replace(tempered, knots=tuple(x.tolist()), heights=tuple(y.tolist()))


def _pooled(x: Floats, y: Floats, rows: Floats, group: NDArray[np.int64]) -> tuple[Floats, Floats, Floats]:
    """Neighbouring points of one group as one, at their mean by rows. What rises still does."""
    total: Floats = np.bincount(group, rows).astype(np.float64)
    kept = total > 0
    return (np.bincount(group, x * rows) / total)[kept], (np.bincount(group, y * rows) / total)[kept], total[kept]
