"""What a candidate's answers are worth beside stable's, in the user's own unit, with an interval that holds at every look. Reported only. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ct.evaluation.stats import effect
from ct.registry.routes import WHOLE
from ct.rollout.guards import Business
from ct.rollout.tally import Worth


@dataclass(frozen=True)
class Gain:
    """The mean worth of a labelled row on stable and on the canary, and by how much more the canary's is, `low` to `high`.

    `difference` and its bounds come from each row's chance of its arm, so they need not be the plain difference of the two means, which
    a base that moved while the weight grew would tilt. The bounds hold together at all looks but for a probability of 5 %.
    """

    metric: str
    stable_n: int
    stable: float | None
    canary_n: int
    canary: float | None
    difference: float
    low: float
    high: float

    def __str__(self) -> str:
        told = f"{self.difference:+.4g} a row ({self.low:+.4g} to {self.high:+.4g})"
        return f"{self.metric}: {told} on {self.canary_n:,} of the canary and {self.stable_n:,} of stable"


def gain(guard: Business, rows: Sequence[Worth], *, alpha: float) -> Gain:
    """Compare the canary with stable over `rows`, in the order in which their labels came. Rows at which one of the two had no share count for nothing."""
    weight = np.array([row.weight / WHOLE for row in rows])
    ours = np.array([row.arm == "canary" for row in rows], dtype=bool)
    kept = 1.0 - np.array([row.loss for row in rows])
    compared = (weight > 0) & (weight < 1)
    weight, ours, kept = weight[compared], ours[compared], kept[compared]
    found, wide = effect(weight, ours, kept, alpha=alpha), guard.high - guard.low

    def mean(which: np.ndarray) -> float | None:
        return float(guard.low + wide * kept[which].mean()) if which.any() else None

    counts = int((~ours).sum()), int(ours.sum())
    bounds = (found.estimate * wide, found.low * wide, found.high * wide)
    return Gain(guard.metric(), counts[0], mean(~ours), counts[1], mean(ours), *bounds)
