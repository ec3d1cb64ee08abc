"""Metrics of every objective by torchmetrics: whole, by slice, over time, beside the trivial baseline. Arrays in, plain numbers out; nothing here decides."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ct.evaluation.trivial import Trivial
from ct.objectives import BINARY, Objective

ECE_BINS = 15
FEWEST = 50
PARTS = 31
_SMALLEST = 1e-7

Floats = NDArray[Any]
Own = Callable[[NDArray[np.bool_]], Mapping[str, float]]


def measured(
    objective: Objective, scores: Floats, labels: Floats, threshold: float = 0.5, trivial: Trivial | None = None
) -> dict[str, float]:
    """Metrics of `scores` ([n], or [n, k]) against `labels` [n], as ct/objectives.py defines both. Only finite numbers are told.

    binary: auroc, average_precision, f1 and accuracy at `threshold`, log_loss, brier, ece (15 equal bins), base_rate (of the labels).
    classes: accuracy, log_loss, brier (summed over classes), ece of the likeliest class; f1, auroc and average_precision as means over
    the classes (one against the rest; a class without rows does not count). number: mae, rmse, r2. quantiles: pinball (mean over the
    quantiles), pinball_<q>, coverage (share of labels between the outermost quantiles), coverage_<q> (share at or below).
    With `trivial`, the baseline's value on the same rows stands beside as base_<name>; without, binary has the labels' own base rate.
    """
    import torch

    score = torch.as_tensor(np.ascontiguousarray(scores, np.float64))
    if objective.kind == "binary":
        found = _binary(score, torch.as_tensor(np.asarray(labels, np.int64)), threshold)
        trivial = trivial or Trivial.learned(objective, np.asarray(labels, np.float64))
    elif objective.kind == "classes":
        found = _classes(score, torch.as_tensor(np.asarray(labels, np.int64)))
    elif objective.kind == "number":
        found = _number(score, torch.as_tensor(np.asarray(labels, np.float64)))
    else:
        found = _quantiles(score, torch.as_tensor(np.asarray(labels, np.float64)), objective.quantiles)
    plain = {name: float(value) for name, value in found.items()}
    if trivial is not None:
        plain |= {f"base_{name}": value for name, value in trivial.losses(objective, np.asarray(labels, np.float64)).items()}
    return {name: value for name, value in plain.items() if math.isfinite(value)}


def metrics(scores: Floats, labels: Floats, threshold: float) -> dict[str, float]:
    """`measured` for a binary label, beside the base rate of the same rows."""
    return measured(BINARY, scores, labels, threshold)


def _binary(score: Any, label: Any, threshold: float) -> dict[str, Any]:
    import torch
    from torchmetrics import functional as tm

    rate = float(label.double().mean())
    found: dict[str, Any] = {
        "auroc": math.nan,
        "average_precision": math.nan,
        "f1": tm.f1_score(score, label, task="binary", threshold=threshold),
        "accuracy": tm.accuracy(score, label, task="binary", threshold=threshold),
        "log_loss": torch.nn.functional.binary_cross_entropy(score.clamp(_SMALLEST, 1 - _SMALLEST), label.double()),
        "brier": tm.mean_squared_error(score, label.double()),
        "ece": tm.calibration_error(score, label, task="binary", n_bins=ECE_BINS, norm="l1"),
        "base_rate": rate,
    }
    if 0 < rate < 1:
        found["auroc"] = tm.auroc(score, label, task="binary")
        found["average_precision"] = tm.average_precision(score, label, task="binary")
    return found


def _classes(score: Any, label: Any) -> dict[str, Any]:
    import torch
    from torchmetrics import functional as tm

    count = score.shape[1]
    hot = torch.nn.functional.one_hot(label, count)
    present = [at for at in range(count) if 0 < int(hot[:, at].sum()) < len(label)]
    areas: list[Any] = [tm.auroc(score[:, at], hot[:, at], task="binary") for at in present]
    precisions: list[Any] = [tm.average_precision(score[:, at], hot[:, at], task="binary") for at in present]
    best = score.argmax(dim=1)
    f1 = tm.f1_score(best, label, task="multiclass", num_classes=count, average="none")
    seen = hot.sum(dim=0) > 0
    return {
        "accuracy": tm.accuracy(best, label, task="multiclass", num_classes=count, average="micro"),
        "f1": f1[seen].mean(),
        "auroc": np.mean([float(area) for area in areas]) if areas else math.nan,
        "average_precision": np.mean([float(value) for value in precisions]) if areas else math.nan,
        "log_loss": -score.gather(1, label[:, None]).clamp(_SMALLEST, 1).log().mean(),
        "brier": ((score - hot.double()) ** 2).sum(dim=1).mean(),
        "ece": tm.calibration_error(score, label, task="multiclass", num_classes=count, n_bins=ECE_BINS, norm="l1"),
    }


def _number(score: Any, label: Any) -> dict[str, Any]:
    from torchmetrics import functional as tm

    varied = len(label) > 1 and float(label.max()) > float(label.min())
    return {
        "mae": tm.mean_absolute_error(score, label),
        "rmse": tm.mean_squared_error(score, label, squared=False),
        "r2": tm.r2_score(score, label) if varied else math.nan,
    }


def _quantiles(score: Any, label: Any, quantiles: tuple[float, ...]) -> dict[str, Any]:
    import torch

    found: dict[str, Any] = {}
    for at, q in enumerate(quantiles):
        gap = label - score[:, at]
        found[f"pinball_{q:g}"] = torch.maximum(q * gap, (q - 1) * gap).mean()
        found[f"coverage_{q:g}"] = (label <= score[:, at]).double().mean()
    found["pinball"] = sum(found[f"pinball_{q:g}"] for q in quantiles) / len(quantiles)
    found["coverage"] = ((score[:, 0] <= label) & (label <= score[:, -1])).double().mean()
    return found


# -- parts of the rows


def by_segment(
    scores: Floats,
    labels: Floats,
    segment: Floats,
    threshold: float,
    *,
    objective: Objective = BINARY,
    trivial: Trivial | None = None,
    own: Own | None = None,
    most: int = 50,
) -> dict[str, dict[str, float]]:
    """{segment value: metrics} of the `most` largest segments with at least 50 rows and different labels; "rows" is added.

    `own` gives further metrics of the rows under a mask.
    """
    texts = np.array([str(value) for value in segment])
    names, counts = np.unique(texts, return_counts=True)
    found = {}
    for name in names[np.argsort(-counts, kind="stable")][:most]:
        made = _part(objective, scores, labels, texts == name, threshold, trivial, own)
        if made is not None:
            found[str(name)] = made
    return found


def over_time(
    scores: Floats,
    labels: Floats,
    times: NDArray[np.int64],
    threshold: float,
    *,
    objective: Objective = BINARY,
    trivial: Trivial | None = None,
    own: Own | None = None,
) -> list[dict[str, float]]:
    """Metrics of each UTC day of `times` [n] (microseconds), or of 31 equal parts of a longer span; "start" and "rows" are added.

    Parts with fewer than 50 rows, or with labels that are all alike, are left out.
    """
    day = 86_400_000_000
    first = int(times.min()) // day * day
    span = int(times.max()) - first + 1
    length = day if span <= PARTS * day else -(-span // PARTS)
    place = (times - first) // length
    found = []
    for at in np.unique(place):
        made = _part(objective, scores, labels, place == at, threshold, trivial, own)
        if made is not None:
            found.append({"start": float(first + at * length), **made})
    return found


def _part(
    objective: Objective,
    scores: Floats,
    labels: Floats,
    mask: NDArray[np.bool_],
    threshold: float,
    trivial: Trivial | None,
    own: Own | None,
) -> dict[str, float] | None:
    label = labels[mask]
    if len(label) < FEWEST or label.min() == label.max():
        return None
    here = trivial.of(mask) if trivial is not None else None
    further = own(mask) if own is not None else {}
    return measured(objective, scores[mask], label, threshold, here) | dict(further) | {"rows": float(len(label))}


# -- what the scores are read by


def best_threshold(scores: Floats, labels: Floats) -> float:
    """The score from which on saying "yes" gives the highest F1 on these rows; the lowest such score of equals."""
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(labels[order])
    f1 = 2 * hits / (np.arange(1, len(ranked) + 1) + labels.sum())
    # Only the last of equal scores is a threshold that can be drawn.
    last = np.append(ranked[1:] != ranked[:-1], True)
    return float(ranked[last][np.argmax(f1[last])])


def curve(objective: Objective, scores: Floats, labels: Floats, bins: int = ECE_BINS) -> list[dict[str, float]]:
    """What is said against what is true, for a calibration plot: `said`, `true` and `rows` of each bin that has rows.

    binary: mean score and share of ones in equal bins of the score; classes: the same of the likeliest class. number: mean score and
    mean label in bins of equally many rows. quantiles: each quantile, and the share of labels at or below it.
    """
    if objective.kind == "quantiles":
        below = (labels[:, None] <= scores).mean(axis=0)
        return [
            {"said": float(q), "true": float(share), "rows": float(len(labels))}
            for q, share in zip(objective.quantiles, below, strict=True)
        ]
    said, true = np.asarray(scores, np.float64), np.asarray(labels, np.float64)
    if objective.kind == "classes":
        best = said.argmax(axis=1)
        said, true = said.max(axis=1), (best == true).astype(np.float64)
    if objective.kind == "number":
        place = np.argsort(np.argsort(said, kind="stable"), kind="stable") * bins // len(said)
    else:
        place = np.clip((said * bins).astype(np.int64), 0, bins - 1)
    rows = np.bincount(place, minlength=bins)
    sums = [np.bincount(place, values, minlength=bins) for values in (said, true)]
    return [
        {"said": float(sums[0][at] / rows[at]), "true": float(sums[1][at] / rows[at]), "rows": float(rows[at])}
        for at in np.flatnonzero(rows)
    ]
