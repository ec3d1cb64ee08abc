"""The distance of two rows of counts and its test against a floor, for many rows at once. Pure numpy; knows no profiles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]

EXPECTED = 5.0
"""Bins are pooled until the smaller side may expect so many rows in each: below, the chi-square law does not hold."""
_CHUNK = 1 << 14


@dataclass(frozen=True)
class Tested:
    """Per row [r]: the noise-free distance `effect`, the `p_value` for "the distance is the floor at most", and the degrees of freedom.

    `freedom` is 0 where everything fell into one pool, -1 where one side has no rows.
    """

    effect: Floats
    p_value: Floats
    freedom: Ints


def measure(old: NDArray[np.integer], new: NDArray[np.integer], frequent: Mask | None, floor: float) -> Tested:
    """Counts before and now, [r, w], missing last. `frequent` [r, w] marks values that may stand alone; None for bins that are in order.

    The distance is sqrt(sum (p - q)^2 / (p + q) / 2). With n and m rows, 4nm/(n+m) times its square follows a non-central chi-square law
    (idea: arXiv:2307.11878).
    """
    parts = []
    for start in range(0, len(old), _CHUNK):
        here = slice(start, start + _CHUNK)
        free = None if frequent is None else frequent[here]
        parts.append(_squared(old[here].astype(np.float64), new[here].astype(np.float64), free))
    squared, size, freedom = (np.concatenate(part) for part in zip(*parts, strict=True))
    effect = np.sqrt(np.maximum(0.0, squared - np.maximum(freedom, 0) / size))
    live = freedom > 0
    p_value = np.ones(len(squared))
    p_value[live] = _tail(size[live] * squared[live], freedom[live], size[live] * floor * floor)
    return Tested(np.where(live, effect, 0.0), p_value, freedom)


def false_discovery(p_values: Floats, alpha: float) -> Mask:
    """Which p-values [r] are finds, so that the share of false ones among them is `alpha` at most (Benjamini and Hochberg, 1995)."""
    ranked = np.sort(p_values)
    held = ranked[ranked <= alpha * np.arange(1, len(ranked) + 1) / max(len(ranked), 1)]
    return p_values <= (held[-1] if len(held) else -1.0)


def _tail(statistic: Floats, freedom: Ints, centre: Floats) -> Floats:
    from scipy.stats import ncx2  # a second to import: only where a comparison is made

    if not len(statistic):
        return statistic
    p = np.asarray(ncx2.sf(statistic, freedom, centre), np.float64)
    return np.where(np.isfinite(p), np.clip(p, 0.0, 1.0), 1.0)


def _squared(old: Floats, new: Floats, frequent: Mask | None) -> tuple[Floats, Floats, Ints]:
    """The squared distance of the pooled counts, what it is multiplied with to follow the law, and the degrees of freedom, each [r]."""
    n, m = old.sum(axis=1, keepdims=True), new.sum(axis=1, keepdims=True)
    empty = (n * m == 0)[:, 0]
    n, m = np.maximum(n, 1), np.maximum(m, 1)
    expected = np.minimum(n, m) * ((old / n + new / m) / 2)
    groups = _neighbours(expected) if frequent is None else _rare_together(expected, frequent)
    flat = (np.arange(len(old))[:, None] * old.shape[1] + groups).ravel()
    pooled = (np.bincount(flat, side.ravel(), minlength=flat.size).reshape(old.shape) for side in (old, new))
    p, q = (side / rows for side, rows in zip(pooled, (n, m), strict=True))
    both = p + q
    squared = np.divide((p - q) ** 2, both, out=np.zeros_like(both), where=both > 0).sum(axis=1) / 2
    return squared, (4 * n * m / (n + m))[:, 0], np.where(empty, -1, groups.max(axis=1))


def _neighbours(expected: Floats) -> Ints:
    """A group for each run of bins that may expect EXPECTED rows together."""
    groups = np.empty(expected.shape, np.int64)
    group, weight = np.zeros(len(expected), np.int64), np.zeros(len(expected))
    for index in range(expected.shape[1]):
        groups[:, index] = group
        weight += expected[:, index]
        closed = weight >= EXPECTED
        group += closed
        weight[closed] = 0.0
    return np.minimum(groups, np.maximum(group - 1, 0)[:, None])  # what is left over at the end is too thin to stand alone


def _rare_together(expected: Floats, frequent: Mask) -> Ints:
    """A group for each frequent value, and the last one for all others; if thin, it joins the rarest frequent value.

    Only values that the reference happened to hold have a bin, so beside "other" rare ones would always seem to have become rarer.
    """
    alone = frequent & (expected >= EXPECTED)
    count = alone.sum(axis=1, keepdims=True)
    groups = np.where(alone, np.cumsum(alone, axis=1) - 1, count)
    rest = np.where(alone, 0.0, expected).sum(axis=1)
    thin = (count[:, 0] > 0) & (rest < EXPECTED)
    rarest = np.take_along_axis(groups, np.argmin(np.where(alone, expected, np.inf), axis=1)[:, None], axis=1)
    return np.where(thin[:, None] & ~alone, rarest, groups)
