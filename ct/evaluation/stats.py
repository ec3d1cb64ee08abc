"""Intervals for paired comparisons and sequential tests by e-values. Numpy and scipy only; nothing here decides anything."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ct.errors import TrainingFailed

Floats = NDArray[np.float64]
E_MAX = 1e12
"""E-values are reported up to this size; it is far beyond every limit and stays plain JSON."""
_SMALLEST = 1e-15


@dataclass(frozen=True)
class Interval:
    """A point estimate with its confidence interval."""

    estimate: float
    low: float
    high: float


# -- AUROC


def auroc(scores: ArrayLike, labels: ArrayLike) -> float | None:
    """The area under the ROC curve by ranks, ties counted half; None where only one class is present.

    `scores` [n] higher for label 1, `labels` [n] in {0, 1}.
    """
    score, label = np.asarray(scores, np.float64), np.asarray(labels, np.float64)
    ones = int((label == 1).sum())
    zeros = len(label) - ones
    if not ones or not zeros:
        return None
    ranks = _midranks(score)[label == 1].sum()
    return float((ranks - ones * (ones + 1) / 2) / (ones * zeros))


def auroc_interval(scores: ArrayLike, labels: ArrayLike, *, level: float = 0.95) -> Interval:
    """AUROC with DeLong's interval. Raises TrainingFailed where only one class is present."""
    label = np.asarray(labels, np.float64)
    area, by_one, by_zero = _components(np.asarray(scores, np.float64), label)
    return _normal(area, _variance(by_one) + _variance(by_zero), level, 0.0, 1.0)


def delong(scores_a: ArrayLike, scores_b: ArrayLike, labels: ArrayLike, *, level: float = 0.95) -> Interval:
    """AUROC(a) - AUROC(b) on the same n rows, with DeLong's paired interval (Biometrics 44, 1988; ranks as in Sun and Xu 2014).

    Rows count as independent: where they come in clusters (days, users) the interval is too narrow.
    Raises TrainingFailed where only one class is present.
    """
    label = np.asarray(labels, np.float64)
    area_a, one_a, zero_a = _components(np.asarray(scores_a, np.float64), label)
    area_b, one_b, zero_b = _components(np.asarray(scores_b, np.float64), label)
    return _normal(area_a - area_b, _variance(one_a - one_b) + _variance(zero_a - zero_b), level, -1.0, 1.0)


def auroc_influence(scores: ArrayLike, labels: ArrayLike) -> tuple[float, Floats]:
    """AUROC, and how much each of n rows pulls at it, [n]: the variance is the sum of squares of sums over independent groups of rows.

    With groups of one row this is DeLong's variance, with clusters Obuchowski's (Biometrics 53, 1997). Raises TrainingFailed where
    only one class is present.
    """
    label = np.asarray(labels, np.float64)
    area, by_one, by_zero = _components(np.asarray(scores, np.float64), label)
    pull = np.zeros(len(label))
    pull[label == 1] = (by_one - area) / len(by_one)
    pull[label == 0] = (by_zero - area) / len(by_zero)
    return area, pull


def _components(score: Floats, label: Floats) -> tuple[float, Floats, Floats]:
    """AUROC, and for each row of either class the share of the other class that it is ranked rightly against."""
    one, zero = score[label == 1], score[label == 0]
    if not len(one) or not len(zero):
        raise TrainingFailed(
            f"{len(one)} rows of class 1 and {len(zero)} of class 0 among {len(label)}",
            "both classes",
            "judge on a longer window or wait for more labels",
        )
    whole = _midranks(np.concatenate([one, zero]))
    by_one = (whole[: len(one)] - _midranks(one)) / len(zero)
    by_zero = 1.0 - (whole[len(one) :] - _midranks(zero)) / len(one)
    return float(by_one.mean()), by_one, by_zero


def _midranks(values: Floats) -> Floats:
    """Ranks from 1; equal values share the mean of their ranks."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    ranks: Floats = (last - (count - 1) / 2)[place]
    return ranks


def _variance(parts: Floats) -> float:
    return float(parts.var(ddof=1) / len(parts)) if len(parts) > 1 else math.inf


def _normal(estimate: float, variance: float, level: float, lowest: float, highest: float) -> Interval:
    from scipy.special import ndtri

    half = float(ndtri((1 + level) / 2)) * math.sqrt(variance)
    return Interval(estimate, max(lowest, estimate - half), min(highest, estimate + half))


# -- losses


def log_losses(scores: ArrayLike, labels: ArrayLike) -> Floats:
    """-log of the probability given to what happened, in nats, [n]. Probabilities are kept 1e-15 away from 0 and 1."""
    score = np.clip(np.asarray(scores, np.float64), _SMALLEST, 1 - _SMALLEST)
    label = np.asarray(labels, np.float64)
    losses: Floats = -(label * np.log(score) + (1 - label) * np.log1p(-score))
    return losses


def calibration_error(scores: ArrayLike, labels: ArrayLike, bins: int = 15) -> float:
    """Expected calibration error: mean distance of score and truth over equal-width bins of the score, weighted by rows."""
    score, label = np.asarray(scores, np.float64), np.asarray(labels, np.float64)
    place = np.clip((score * bins).astype(np.int64), 0, bins - 1)
    gap = np.bincount(place, weights=score - label, minlength=bins)
    return float(np.abs(gap).sum() / len(score))


# -- e-values: evidence that may be looked at as often as one likes; P(ever >= 1/alpha) <= alpha under the null (Ville)


def running_mean(parts: ArrayLike, *, alpha: float, planned: int = 1000) -> Interval:
    """The mean of n values with bounds that hold at every n at once, each with probability 1 - `alpha`, as n grows.

    The asymptotic confidence sequence of Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas (arXiv:2103.06476, one side), tightest at `planned`
    values. Asymptotic: with few values (below a hundred or so) the guarantee is only approximate. Below two values it says nothing.
    """
    values = np.asarray(parts, np.float64)
    n = len(values)
    if n < 2:
        return Interval(float(values.mean()) if n else 0.0, -E_MAX, E_MAX)
    log_alpha = -2 * math.log(2 * alpha)
    rho2 = (log_alpha + math.log(log_alpha + 1)) / planned
    scale = n * rho2 + 1
    half = float(values.std(ddof=1)) * math.sqrt(2 * scale / (n**2 * rho2) * math.log(1 + math.sqrt(scale) / (2 * alpha)))
    mean = float(values.mean())
    return Interval(mean, mean - half, mean + half)


@cache
def _grid() -> tuple[float, ...]:
    """Log rate ratios that a harm is looked for at, 1.1 to 55 times."""
    return tuple(float(d) for d in np.geomspace(0.1, 4.0, 16))


def worse_arm(levels: Iterable[tuple[float, float, float]], ratio: float = 1.0) -> float:
    """Evidence that the canary's rate of bad events is more than `ratio` times stable's.

    `levels` holds (w, bad events in both arms, those in the canary) for each assignment probability w that was in force.
    Given that a request went badly it was the canary's with probability w*ratio / (w*ratio + 1 - w) at most, whatever the base rate
    was then; the wealth is the mean over a grid of d > 0 of prod exp(d*y) / (1 - w + w*exp(d)) (Lindon and Malek, arXiv:2011.03567).
    A request may go badly in part: losses from 0 to 1 are added up instead of events, and the null is then about mean losses. It holds for
    these too: with D = 1 - w + w*exp(d), both (exp(d)/D)^l and D^-l are convex in the loss l, so a loss in between bets less than its chord.
    At w = 0 or 1 there is nothing to compare and the factor is 1.
    """
    wealth = np.zeros(len(_grid()))
    d = np.array(_grid())
    for weight, bad, canary in levels:
        null = weight * ratio / (weight * ratio + 1 - weight)
        if bad and 0 < null < 1:
            wealth += d * canary - bad * np.log1p(null * np.expm1(d))
    return _mean_exp(wealth)


def above_rate(rate: float, total: int, bad: float) -> float:
    """Evidence that bad events come with a probability above `rate`, from `bad` of `total`: a mixture of likelihood ratios."""
    if not 0 < rate < 1 or not total:
        return 1.0
    higher = rate * np.exp(_grid())
    higher = higher[higher < 1] if (higher < 1).any() else np.array([(1 + rate) / 2])
    return _mean_exp(bad * np.log(higher / rate) + (total - bad) * np.log((1 - higher) / (1 - rate)))


def uneven_split(levels: Iterable[tuple[float, int, int]], strength: float = 20.0) -> float:
    """Evidence that the canary's share of the requests is not w. `levels` holds (w, requests, the canary's) for each w.

    A beta-binomial mixture around each w, of the weight of `strength` requests; two-sided.
    """
    total = 0.0
    for weight, requests, canary in levels:
        if not requests or not 0 < weight < 1:
            continue
        a, b = strength * weight, strength * (1 - weight)
        mixture = _log_beta(a + canary, b + requests - canary) - _log_beta(a, b)
        total += mixture - canary * math.log(weight) - (requests - canary) * math.log1p(-weight)
    return _mean_exp(np.array([total]))


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _mean_exp(logs: Floats) -> float:
    top = float(logs.max())
    log_mean = top + math.log(float(np.exp(logs - top).mean()))
    return math.exp(min(log_mean, math.log(E_MAX)))
