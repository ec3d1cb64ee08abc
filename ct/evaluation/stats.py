"""Intervals for paired comparisons and sequential tests by e-values. Numpy and scipy only; nothing here decides anything."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

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


def auroc_interval(scores: ArrayLike, labels: ArrayLike, *, level: float = 0.95) -> Interval:
    """The area under the ROC curve by ranks, ties counted half, with DeLong's interval.

    `scores` [n] higher for label 1, `labels` [n] in {0, 1}. Raises TrainingFailed where only one class is present.
    """
    label = np.asarray(labels, np.float64)
    area, by_one, by_zero = _components(np.asarray(scores, np.float64), label)
    return _normal(area, _variance(by_one) + _variance(by_zero), level, 0.0, 1.0)


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
def _grid() -> Floats:
    """Log rate ratios that a harm is looked for at, 1.1 to 55 times."""
    return np.geomspace(0.1, 4.0, 16)


@lru_cache(maxsize=4096)
def _price(null: float) -> Floats:
    """What a bad event costs each bet where it is the canary's with probability `null`."""
    return np.log1p(null * np.expm1(_grid()))


def worse_arm(levels: Iterable[tuple[float, float, float]], ratio: float = 1.0) -> float:
    """Evidence that the canary's rate of bad events is more than `ratio` times stable's.

    `levels` holds (w, bad events in both arms, those in the canary) for each assignment probability w that was in force.
    Given that a request went badly it was the canary's with probability w*ratio / (w*ratio + 1 - w) at most, whatever the base rate
    was then; the wealth is the mean over a grid of d > 0 of prod exp(d*y) / (1 - w + w*exp(d)) (Lindon and Malek, arXiv:2011.03567).
    A request may go badly in part: losses from 0 to 1 are added up instead of events, and the null is then about mean losses. It holds for
    these too: with D = 1 - w + w*exp(d), both (exp(d)/D)^l and D^-l are convex in the loss l, so a loss in between bets less than its chord.
    At w = 0 or 1 there is nothing to compare and the factor is 1.
    """
    wealth, ours = np.zeros(len(_grid())), 0.0
    for weight, bad, canary in levels:
        null = weight * ratio / (weight * ratio + 1 - weight)
        if bad and 0 < null < 1:
            wealth -= bad * _price(null)
            ours += canary
    return _mean_exp(wealth + _grid() * ours)


@lru_cache(maxsize=256)
def _higher(rate: float) -> tuple[Floats, Floats]:
    """For rates above `rate`: the log likelihood ratio of a bad request, and of a good one."""
    higher = rate * np.exp(_grid())
    higher = higher[higher < 1] if (higher < 1).any() else np.array([(1 + rate) / 2])
    return np.log(higher / rate), np.log((1 - higher) / (1 - rate))


def above_rate(rate: float, total: int, bad: float) -> float:
    """Evidence that bad events come with a probability above `rate`, from `bad` of `total`: a mixture of likelihood ratios."""
    if not 0 < rate < 1 or not total:
        return 1.0
    of_bad, of_good = _higher(rate)
    return _mean_exp(bad * of_bad + (total - bad) * of_good)


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
    return math.exp(min(total, math.log(E_MAX)))


def rejected(e_values: Sequence[float], alpha: float) -> tuple[int, ...]:
    """The places of the hypotheses that e-BH rejects (Wang and Ramdas, arXiv:2009.02824), the largest e-value first.

    Of those rejected a share of `alpha` at most is true, in expectation and whatever hangs together: with K hypotheses, the k largest e-values go
    as long as the k-th is at least K / (alpha * k).
    """
    order = sorted(range(len(e_values)), key=lambda place: -e_values[place])
    passed = [k for k, place in enumerate(order, 1) if alpha * k * e_values[place] >= len(order)]
    return tuple(order[: passed[-1]]) if passed else ()


def effect(weight: ArrayLike, treated: ArrayLike, value: ArrayLike, *, alpha: float) -> Interval:
    """By how much the mean of a value from 0 to 1 differs where `treated`, with bounds that hold at every n at once, together but for `alpha`.

    Rows [n] in the order in which they came; `weight` is each one's chance of being treated, drawn for itself. The estimate and the bounds
    are about z = (A/w - (1-A)/(1-w)) * (value - c), whose mean is the difference whatever c, here the mean of the values before; so a base
    that moves over the day does no harm. The bounds are the hedged capital of Waudby-Smith and Ramdas (arXiv:2010.09686, predictable
    plug-in bets of theorem 3), each cut to half of what its own z could lose, so that a weight may change. Rows of weight 0 or 1 tell nothing.
    """
    w, a, x = (np.asarray(part, np.float64) for part in (weight, treated, value))
    told = (w > 0) & (w < 1)
    w, a, x = w[told], a[told], x[told]
    n = len(x)
    if not n:
        return Interval(0.0, -1.0, 1.0)
    count = np.arange(1, n + 1)
    centre = (np.concatenate([[0.0], np.cumsum(x)[:-1]]) + 0.5) / count
    z = np.where(a > 0, (x - centre) / w, -(x - centre) / (1 - w))
    least = np.maximum(centre / w, (1 - centre) / (1 - w))  # z >= -least
    most = np.maximum((1 - centre) / w, centre / (1 - w))  # z <= most
    mean = np.cumsum(z) / count
    spread = (0.25 / (w[0] * (1 - w[0])) + np.concatenate([[0.0], np.cumsum(np.square(z - mean))[:-1]])) / count
    bet = np.sqrt(2 * math.log(2 / alpha) / (spread * count * np.log(count + 1)))

    def above(difference: float) -> bool:
        """Is the mean of z surely above it?"""
        cut = np.minimum(bet, 0.5 / np.maximum(least + difference, _SMALLEST))
        return float(np.log1p(cut * (z - difference)).sum()) >= math.log(2 / alpha)

    def below(difference: float) -> bool:
        cut = np.minimum(bet, 0.5 / np.maximum(most - difference, _SMALLEST))
        return float(np.log1p(-cut * (z - difference)).sum()) >= math.log(2 / alpha)

    return Interval(float(np.clip(mean[-1], -1.0, 1.0)), _edge(above, -1.0, 1.0), _edge(below, 1.0, -1.0))


def _edge(excluded: Callable[[float], bool], outer: float, inner: float) -> float:
    """The last excluded point on the way from `outer` to `inner`; `outer` where even that is not excluded."""
    if not excluded(outer):
        return outer
    for _ in range(30):
        middle = (outer + inner) / 2
        outer, inner = (middle, inner) if excluded(middle) else (outer, middle)
    return outer


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _mean_exp(logs: Floats) -> float:
    top = float(logs.max())
    log_mean = top + math.log(float(np.exp(logs - top).sum()) / len(logs))
    return math.exp(min(log_mean, math.log(E_MAX)))
