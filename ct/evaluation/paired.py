"""How much better one version is than another on the same rows, with an interval that holds where rows come in clusters. Numpy and scipy only.

Rows of one day share their weather: DeLong's interval and a bootstrap over rows take them for independent and are too narrow.
Here whole blocks of time are the independent units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ct.errors import TrainingFailed
from ct.evaluation.losses import row_losses
from ct.evaluation.stats import auroc_influence
from ct.objectives import Objective
from ct.roles import Columns

Floats = NDArray[np.float64]
Own = Callable[[Floats, Floats, Columns], float]

FEWEST_BLOCKS = 10
DEALT = 200
ROUNDS = 1000
OWN_ROUNDS = 200
BINS = 15

HIGHER = frozenset({"auroc", "average_precision", "f1", "accuracy", "r2"})
COMPARED = {
    "binary": ("auroc", "average_precision", "f1", "accuracy", "log_loss", "brier", "ece"),
    "classes": ("auroc", "f1", "accuracy", "log_loss", "brier", "ece"),
    "number": ("mae", "rmse", "r2"),
    "quantiles": ("pinball",),
}
PRIMARY = {"binary": "log_loss", "classes": "log_loss", "number": "mae", "quantiles": "pinball"}
"""The metric of each objective by which it is compared with the trivial baseline."""


@dataclass(frozen=True)
class Answers:
    """What one version says to n rows: scores [n] or [n, k], and the score from which a binary label is 1."""

    scores: Floats
    threshold: float = 0.5

    def of(self, mask: NDArray[Any]) -> Answers:
        """The answers to the rows under a mask or at places."""
        return Answers(self.scores[mask], self.threshold)


@dataclass(frozen=True)
class Gain:
    """How much better one version is in a metric: positive is better, in the metric's own unit.

    `low` is the bound that the truth is below with probability 1 - confidence, `high` the one that it is above with the same.
    `error` is the standard error, `blocks` how many independent blocks of rows it comes from. Not finite where too little is known.
    """

    ours: float
    theirs: float
    estimate: float
    low: float
    high: float
    error: float
    blocks: int
    rows: int

    def worse_than(self, limit: float) -> float:
        """The p-value of "the gain is at least `limit`": small where it is surely lower."""
        from scipy.special import stdtr

        if not math.isfinite(self.error):
            return 1.0
        if self.error == 0:
            return float(self.estimate >= limit)
        return float(stdtr(self.blocks - 1, (self.estimate - limit) / self.error))

    def to_json(self) -> dict[str, float | None]:
        """Plain numbers, None for one that is not finite."""
        return {name: value if math.isfinite(value) else None for name, value in vars(self).items()}


def blocks(times: NDArray[np.int64], length: int, *, fewest: int = FEWEST_BLOCKS, seed: int = 0) -> NDArray[np.int64]:
    """The block [n] of each row: those of the same `length` (microseconds) of time, counted from 1970 UTC.

    A span of fewer than `fewest` such blocks is cut into so many equal parts. A `length` of 0 says that rows are independent: they
    are dealt into 200 blocks at random, which gives the same intervals as single rows.
    """
    if not length:
        return np.random.default_rng(seed).permutation(len(times)) % DEALT
    place = times // length
    if len(times) and len(np.unique(place)) < fewest:
        first, last = int(times.min()), int(times.max())
        place = (times - first) * fewest // (last - first + 1)
    found: NDArray[np.int64] = np.unique(place, return_inverse=True)[1].astype(np.int64)
    return found


def gain(
    objective: Objective,
    metric: str,
    ours: Answers,
    theirs: Answers,
    labels: Floats,
    block: NDArray[np.int64],
    *,
    confidence: float = 0.95,
    seed: int = 0,
) -> Gain:
    """How much better `ours` is than `theirs` in `metric` (see COMPARED) on the same n rows, in the blocks `block` [n].

    AUROC by DeLong's components, summed over blocks; every other metric by a paired bootstrap of whole blocks. The bounds are the
    estimate and its standard error times Student's quantile for that many blocks: percentiles of so few blocks promise too much.
    Raises TrainingFailed for AUROC where only one class is present.
    """
    sign = 1.0 if metric in HIGHER else -1.0
    if metric == "auroc":
        ours_value, pull = _auroc(objective, ours.scores, labels)
        theirs_value, other = _auroc(objective, theirs.scores, labels)
        sums = np.bincount(_dense(block), pull - other)
        count = len(sums)
        error = math.sqrt(count / (count - 1) * float((sums**2).sum())) if count > 1 else math.inf
        return _bounded(sign, ours_value, theirs_value, error, count, len(labels), confidence)
    if metric == "average_precision":
        return _resampled(_average_precision, {}, ours, theirs, labels, block, True, confidence, seed)
    parts, value = _sums(objective, metric, ours, labels)
    others, _ = _sums(objective, metric, theirs, labels)
    place = _dense(block)
    count = int(place.max(initial=-1)) + 1
    mine, other_sums = _by_block(place, parts, count), _by_block(place, others, count)
    times = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), ROUNDS).astype(np.float64)
    gaps = value(times @ mine) - value(times @ other_sums)
    totals = [float(value(sums.sum(axis=0, keepdims=True))[0]) for sums in (mine, other_sums)]
    return _bounded(sign, totals[0], totals[1], _spread(gaps, count), count, len(labels), confidence)


def own_gain(
    value: Own,
    higher: bool,
    columns: Columns,
    ours: Answers,
    theirs: Answers,
    labels: Floats,
    block: NDArray[np.int64],
    *,
    confidence: float = 0.95,
    seed: int = 0,
) -> Gain:
    """How much better `ours` is in a user's metric, by a paired bootstrap of whole blocks: the function is called 402 times."""
    return _resampled(value, columns, ours, theirs, labels, block, higher, confidence, seed)


def holm(p_values: list[float]) -> list[float]:
    """P-values corrected so that the chance of even one false alarm among them stays at the level (Holm 1979)."""
    order = np.argsort(p_values, kind="stable")
    raised = np.array([p_values[at] * (len(p_values) - rank) for rank, at in enumerate(order)], np.float64)
    found = [1.0] * len(p_values)
    for at, value in zip(order, np.maximum.accumulate(raised), strict=True):
        found[at] = min(1.0, float(value))
    return found


def _bounded(sign: float, ours: float, theirs: float, error: float, count: int, rows: int, confidence: float) -> Gain:
    from scipy.special import stdtrit

    estimate = sign * (ours - theirs)
    half = float(stdtrit(count - 1, confidence)) * error if count > 1 and math.isfinite(error) else math.inf
    return Gain(ours, theirs, estimate, estimate - half, estimate + half, error, count, rows)


def _auroc(objective: Objective, scores: Floats, labels: Floats) -> tuple[float, Floats]:
    if objective.kind == "binary":
        return auroc_influence(scores, labels)
    present = [at for at in range(objective.outputs) if 0 < (labels == at).sum() < len(labels)]
    if not present:
        raise TrainingFailed(
            "rows of one class only", "two classes or more", "judge on a longer window or wait for more labels"
        )
    found = [auroc_influence(scores[:, at], (labels == at).astype(np.float64)) for at in present]
    return float(np.mean([area for area, _ in found])), np.asarray(np.mean([pull for _, pull in found], axis=0))


def _dense(block: NDArray[np.int64]) -> NDArray[np.int64]:
    """Blocks numbered from 0 without holes."""
    found: NDArray[np.int64] = np.unique(block, return_inverse=True)[1].astype(np.int64)
    return found


def _by_block(place: NDArray[np.int64], parts: Floats, count: int) -> Floats:
    return np.stack([np.bincount(place, column, minlength=count) for column in parts.T], axis=1)


def _spread(gaps: Floats, count: int) -> float:
    """The standard error from bootstrapped differences. Resampling `count` blocks understates it by sqrt(1 - 1/count)."""
    kept = gaps[np.isfinite(gaps)]
    return float(kept.std(ddof=1)) * math.sqrt(count / (count - 1)) if count > 1 and len(kept) > len(gaps) / 2 else math.inf


def _sums(objective: Objective, metric: str, answers: Answers, labels: Floats) -> tuple[Floats, Callable[[Floats], Floats]]:
    """A metric as a function of sums over rows: what each row adds [n, m], and the metric of such sums [B, m] → [B]."""
    one = np.ones(len(labels))
    if metric in ("rmse", "r2"):
        squares = row_losses(objective, "mse", answers.scores, labels)
        if metric == "rmse":
            return np.stack([squares, one], axis=1), lambda sums: np.sqrt(sums[:, 0] / sums[:, 1])
        # Around a middle value, so that the difference of large squares does not lose its digits.
        from_middle = labels - labels.mean()
        parts = np.stack([squares, from_middle, from_middle**2, one], axis=1)
        return parts, lambda sums: 1 - sums[:, 0] / (sums[:, 2] - sums[:, 1] ** 2 / sums[:, 3])
    if metric == "ece":
        said, true = answers.scores, labels
        if objective.kind == "classes":
            said, true = answers.scores.max(axis=1), (answers.scores.argmax(axis=1) == labels).astype(np.float64)
        bins = np.clip((said * BINS).astype(np.int64), 0, BINS - 1)
        gaps = np.zeros((len(labels), BINS))
        gaps[np.arange(len(labels)), bins] = said - true
        return np.column_stack([gaps, one]), lambda sums: np.abs(sums[:, :-1]).sum(axis=1) / sums[:, -1]
    if metric == "f1":
        return _f1(objective, answers, labels)
    row = row_losses(objective, metric, answers.scores, labels, answers.threshold)
    return np.stack([row, one], axis=1), lambda sums: sums[:, 0] / sums[:, 1]


def _f1(objective: Objective, answers: Answers, labels: Floats) -> tuple[Floats, Callable[[Floats], Floats]]:
    """Twice the hits, and what was said or is true, of each class; f1 is their ratio, averaged over the classes that occur."""
    if objective.kind == "binary":
        said, true = (answers.scores >= answers.threshold)[:, None], (labels == 1)[:, None]
    else:
        classes = np.arange(objective.outputs)
        said, true = answers.scores.argmax(axis=1)[:, None] == classes, labels[:, None] == classes
    count = said.shape[1]
    parts = np.concatenate([2.0 * (said & true), said.astype(np.float64) + true, true], axis=1)

    def value(sums: Floats) -> Floats:
        hits, told, seen = sums[:, :count], sums[:, count : 2 * count], sums[:, 2 * count :] > 0
        each = np.where(seen, hits / np.maximum(told, 1.0), 0.0)
        found: Floats = each.sum(axis=1) / np.maximum(seen.sum(axis=1), 1)
        return found

    return parts, value


def _average_precision(scores: Floats, labels: Floats, _: Mapping[str, Any]) -> float:
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(labels[order])
    last = np.append(ranked[1:] != ranked[:-1], True)
    hits, seen = hits[last], (np.flatnonzero(last) + 1).astype(np.float64)
    found = np.diff(hits, prepend=0.0) @ (hits / seen) / hits[-1] if hits[-1] else math.nan
    return float(found)


def _resampled(
    value: Own,
    columns: Columns,
    ours: Answers,
    theirs: Answers,
    labels: Floats,
    block: NDArray[np.int64],
    higher: bool,
    confidence: float,
    seed: int,
) -> Gain:
    place = _dense(block)
    order = np.argsort(place, kind="stable")
    edges = np.append(np.searchsorted(place[order], np.arange(place.max(initial=-1) + 1)), len(place))
    members = [order[a:b] for a, b in pairwise(edges.tolist())]
    random, gaps = np.random.default_rng(seed), []
    for _ in range(OWN_ROUNDS):
        rows = np.concatenate([members[at] for at in random.integers(0, len(members), len(members))])
        drawn = {name: values[rows] for name, values in columns.items()}
        gaps.append(value(ours.scores[rows], labels[rows], drawn) - value(theirs.scores[rows], labels[rows], drawn))
    totals = value(ours.scores, labels, columns), value(theirs.scores, labels, columns)
    error = _spread(np.array(gaps, np.float64), len(members))
    return _bounded(1.0 if higher else -1.0, float(totals[0]), float(totals[1]), error, len(members), len(labels), confidence)
