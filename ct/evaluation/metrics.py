"""Metrics of a binary classifier by torchmetrics, whole and by segment. Arrays in, plain numbers out; nothing here decides."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

ECE_BINS = 15
FEWEST = 50


def metrics(scores: NDArray[Any], labels: NDArray[Any], threshold: float) -> dict[str, float]:
    """Metrics of `scores` [n] in [0, 1] against `labels` [n] in {0, 1}.

    auroc, average_precision, f1 (at `threshold`), log_loss, brier, ece (15 equal bins), and base_rate with base_log_loss, the log
    loss of always saying the base rate.
    """
    import torch
    from torchmetrics import functional as tm

    score = torch.as_tensor(np.asarray(scores, np.float64))
    label = torch.as_tensor(np.asarray(labels, np.int64))
    rate = float(label.double().mean())
    clipped = score.clamp(1e-7, 1 - 1e-7)
    found: dict[str, Any] = {
        "auroc": tm.auroc(score, label, task="binary"),
        "average_precision": tm.average_precision(score, label, task="binary"),
        "f1": tm.f1_score(score, label, task="binary", threshold=threshold),
        "log_loss": torch.nn.functional.binary_cross_entropy(clipped, label.double()),
        "brier": tm.mean_squared_error(score, label.double()),
        "ece": tm.calibration_error(score, label, task="binary", n_bins=ECE_BINS, norm="l1"),
    }
    base = float(np.clip(rate, 1e-7, 1 - 1e-7))
    plain = {name: float(value) for name, value in found.items()}
    return plain | {"base_rate": rate, "base_log_loss": float(-(rate * np.log(base) + (1 - rate) * np.log(1 - base)))}


def by_segment(
    scores: NDArray[Any], labels: NDArray[Any], segment: NDArray[Any], threshold: float, *, most: int = 50
) -> dict[str, dict[str, float]]:
    """{segment value: metrics} of the `most` largest segments with at least 50 rows and both classes; "rows" is added."""
    names, counts = np.unique(np.array([str(value) for value in segment]), return_counts=True)
    texts = np.array([str(value) for value in segment])
    found = {}
    for name in names[np.argsort(-counts, kind="stable")][:most]:
        chosen = texts == name
        label = labels[chosen]
        if chosen.sum() >= FEWEST and 0 < label.sum() < len(label):
            found[str(name)] = metrics(scores[chosen], label, threshold) | {"rows": float(chosen.sum())}
    return found


def best_threshold(scores: NDArray[Any], labels: NDArray[Any]) -> float:
    """The score from which on saying "yes" gives the highest F1 on these rows; the lowest such score of equals."""
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(labels[order])
    f1 = 2 * hits / (np.arange(1, len(ranked) + 1) + labels.sum())
    # Only the last of equal scores is a threshold that can be drawn.
    last = np.append(ranked[1:] != ranked[:-1], True)
    return float(ranked[last][np.argmax(f1[last])])
