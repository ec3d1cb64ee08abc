"""Who judges a shadow by its AUROC, on the same rows as stable. Each says after how many labelled rows it calls the shadow worse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from bench.parts.judges import ALPHA, NEVER, higher
from ct.evaluation.stats import auroc_influence, running_mean
from ct.objectives import BINARY
from ct.rollout.paired import compare

Floats = NDArray[np.float64]
AUC = 0.80
PER_LOOK = 200


@dataclass(frozen=True)
class Pairs:
    """Labelled rows [n] that stable and the shadow have both scored, in the order in which their labels came."""

    stable: Floats
    shadow: Floats
    label: Floats

    def until(self, n: int) -> Pairs:
        return Pairs(self.stable[:n], self.shadow[:n], self.label[:n])


def pairs(rng: np.random.Generator, n: int, drop: float, alike: float = 0.95) -> Pairs:
    """Rows of which three of ten are positive; stable's AUROC is AUC, the shadow's less by `drop`, their scores are correlated by `alike`."""
    label = (rng.random(n) < 0.3).astype(float)
    noise = rng.normal(size=n)
    other = alike * noise + np.sqrt(1 - alike**2) * rng.normal(size=n)
    apart = [np.sqrt(2) * norm.ppf(area) for area in (AUC, AUC - drop)]
    return Pairs(noise + apart[0] * label, other + apart[1] * label, label)


Judge = Callable[[Pairs, Sequence[int]], int]
"""(rows, the looks as numbers of rows) → the rows after which the shadow is called worse; NEVER where it is not."""


def ours(rows: Pairs, looks: Sequence[int]) -> int:
    """The product's own comparison, at each look over all rows so far."""
    for n in looks:
        seen = rows.until(n)
        if compare(BINARY, seen.stable, seen.shadow, seen.label, alpha=ALPHA).harmful:
            return n
    return NEVER


def threshold(rows: Pairs, looks: Sequence[int]) -> int:
    """Five windows in which the shadow's AUROC was below stable's known one by more than 0.01 (Flagger, Argo)."""
    failed = 0
    for n, area in zip(looks, _areas(rows.shadow, rows.label, looks), strict=True):
        failed += area < AUC - 0.01
        if failed >= 5:
            return n
    return NEVER


def ranks(rows: Pairs, looks: Sequence[int]) -> int:
    """Mann-Whitney on the AUROC of the windows so far at 98 %, from the tenth on (Kayenta). Without its tolerance, which is ten times the change."""
    stable, shadow = (np.array(_areas(scores, rows.label, looks)) for scores in (rows.stable, rows.shadow))
    for at in range(10, len(looks) + 1):
        if higher(-shadow[None, :at], -stable[None, :at])[0]:
            return looks[at - 1]
    return NEVER


def peeking(rows: Pairs, looks: Sequence[int]) -> int:
    """DeLong's paired test at 5 %, at each look over all rows so far."""
    for n in looks:
        seen = rows.until(n)
        (area, pull), (other, pulled) = auroc_influence(seen.shadow, seen.label), auroc_influence(seen.stable, seen.label)
        if area - other < norm.ppf(0.025) * np.sqrt(np.square(pull - pulled).sum()):
            return n
    return NEVER


def two_arms(rows: Pairs, others: Pairs, looks: Sequence[int]) -> int:
    """The product's bounds without pairs: each arm has its own rows, so the variances add. Counts the rows of both."""
    for n in looks:
        ours, theirs = rows.until(n), others.until(n)
        (area, pull), (other, pulled) = auroc_influence(ours.shadow, ours.label), auroc_influence(theirs.stable, theirs.label)
        parts = np.hypot(pull, pulled) * n * np.where(np.arange(n) % 2, 1.0, -1.0)  # only their spread is used
        bound = running_mean(parts, alpha=ALPHA)
        if area - other + (bound.high - bound.estimate) < 0:
            return 2 * n
    return NEVER


def _areas(scores: Floats, label: Floats, looks: Sequence[int]) -> list[float]:
    """The AUROC of each window between two looks, of which each has rows of both classes."""
    return [auroc_influence(scores[n - PER_LOOK : n], label[n - PER_LOOK : n])[0] for n in looks]


OTHERS: dict[str, Judge] = {"threshold": threshold, "mann_whitney": ranks, "peeking": peeking}
