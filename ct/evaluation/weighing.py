"""How much each training row counts: by how wrong or unsure the champion is about it, by its slice's drift, by its age. Pure, numpy only.

Every rule gives weights from 0 to a bound whose mean over the rows is 1, so that a step is as long as without weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ct.clock import duration
from ct.errors import InvalidPipeline
from ct.evaluation.losses import row_losses
from ct.evaluation.stacking import LOSS
from ct.objectives import Objective
from ct.roles import Weighed, Weigher

Floats = NDArray[np.float64]
_LEAST = 1e-6  # a score of 0 or 1 is never taken at its word


@dataclass(frozen=True)
class Hard:
    """Rows count the more, the worse the champion predicts them."""

    share: float
    most: float

    def segments(self) -> tuple[str, ...]:
        """None."""
        return ()

    def weights(self, rows: Weighed) -> Floats:
        """`1 - share + share * loss / mean loss`, losses being the champion's: uniform and loss-proportional sampling mixed
        (after Loshchilov and Hutter, arXiv:1511.06343, and Katharopoulos and Fleuret, arXiv:1803.00942). Ones without a champion."""
        if rows.scores is None:
            return np.ones(len(rows.label))
        return mixed(row_losses(rows.objective, LOSS[rows.objective.kind], rows.scores, rows.label), self.share, self.most)

    def explain(self) -> str:
        """The share and the bound."""
        return f"{self.share:.4g} by the champion's loss, {self.most:.4g} times at most"


@dataclass(frozen=True)
class Unsure:
    """Rows count the more, the less sure the champion is about them."""

    share: float
    most: float

    def segments(self) -> tuple[str, ...]:
        """None."""
        return ()

    def weights(self, rows: Weighed) -> Floats:
        """`1 - share + share * u / mean u`. u is the entropy of the score (uncertainty sampling: Settles 2009, section 3.1), or the
        distance from the lowest to the highest quantile. Ones without a champion. Raises InvalidPipeline for a number, whose score
        says nothing of its uncertainty."""
        if rows.objective.kind == "number":
            raise InvalidPipeline(
                "ct.unsure() for a label that is a number", "classes or quantiles", "declare quantiles, or use ct.hard()"
            )
        if rows.scores is None:
            return np.ones(len(rows.label))
        return mixed(uncertainty(rows.objective, rows.scores), self.share, self.most)

    def explain(self) -> str:
        """The share and the bound."""
        return f"{self.share:.4g} by the champion's uncertainty, {self.most:.4g} times at most"


@dataclass(frozen=True)
class Drifted:
    """Rows of slices whose features have drifted since the champion was trained count more."""

    by: tuple[str, ...]
    gain: float
    most: float

    def segments(self) -> tuple[str, ...]:
        """Whose values are the slices."""
        return self.by

    def weights(self, rows: Weighed) -> Floats:
        """In proportion to `1 + gain * effect`, the effect being the greatest one of the row's slices (monitoring/drift.py): a row of a
        slice that is as it was keeps its say, one of a slice that is wholly another counts `1 + gain` times as much."""
        effect = np.zeros(len(rows.label))
        for name in self.by:
            known = rows.drift.get(name, {})
            values = rows.segments[name].tolist()
            effect = np.maximum(effect, np.array([known.get(value, 0.0) for value in values], dtype=np.float64).reshape(-1))
        return mixed(1 + self.gain * effect, 1.0, self.most)

    def explain(self) -> str:
        """The segments, the gain and the bound."""
        return f"{1 + self.gain:.4g} times for drifted slices of {', '.join(self.by)}, {self.most:.4g} times at most"


@dataclass(frozen=True)
class Recent:
    """Newer rows count more."""

    half_life: str
    least: float
    most: float

    def segments(self) -> tuple[str, ...]:
        """None."""
        return ()

    def weights(self, rows: Weighed) -> Floats:
        """In proportion to `least + (1 - least) * 2 ** (-age / half_life)`, the age counted back from the newest row: exponential forgetting
        (Klinkenberg 2004, global weighing), with a floor so that nothing is forgotten."""
        if not len(rows.times):
            return np.ones(0)
        age = (rows.times.max() - rows.times).astype(np.float64) / (duration(self.half_life).total_seconds() * 1e6)
        return mixed(self.least + (1 - self.least) * np.exp2(-age), 1.0, self.most)

    def explain(self) -> str:
        """The half-life and the floor."""
        return f"newer rows more, half as much after {self.half_life}, {self.least:.4g} of it at least"


def hard(share: float = 0.5, *, most: float = 4.0) -> Hard:
    """Weigh training rows by the champion's loss: the part `share` of all weight goes to rows in proportion to their loss, the rest evenly.

    No row counts more than `most` rows. Mislabelled rows look hard too: keep the bound low where labels are noisy. The model's scores are
    calibrated on rows that nothing weighs. Raises InvalidPipeline for a share outside (0, 1] or a bound of at most 1.
    """
    return Hard(_share("hard", share), _most("hard", most))


def unsure(share: float = 0.5, *, most: float = 4.0) -> Unsure:
    """Weigh training rows by the champion's uncertainty, as `hard` does by its loss. Labels take no part, so wrong ones count no more."""
    return Unsure(_share("unsure", share), _most("unsure", most))


def drifted(*segments: str, gain: float = 3.0, most: float = 4.0) -> Drifted:
    """Weigh training rows up by how far the features of their slices of `segments` have drifted since the champion was trained.

    A segment must be a category feature too: by those the features are profiled. Raises InvalidPipeline without a segment.
    """
    if not segments or not all(isinstance(name, str) for name in segments):
        raise InvalidPipeline(
            f"drifted({', '.join(map(repr, segments))})", "one or more segments", "name them: drifted('carrier')"
        )
    if isinstance(gain, bool) or not isinstance(gain, (int, float)) or not 0 < gain < np.inf:
        raise InvalidPipeline(f"drifted(gain={gain!r})", "a number above 0", "write for example gain=3")
    return Drifted(tuple(segments), float(gain), _most("drifted", most))


def recent(half_life: str, *, least: float = 0.1, most: float = 4.0) -> Recent:
    """Weigh newer training rows up: one that is `half_life` older than the newest counts half as much, none less than `least` of it."""
    duration(half_life)
    if isinstance(least, bool) or not isinstance(least, (int, float)) or not 0 <= least < 1:
        raise InvalidPipeline(f"recent(least={least!r})", "a share from 0 to below 1", "write for example least=0.1")
    return Recent(half_life, float(least), _most("recent", most))


def _share(name: str, share: float) -> float:
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
        raise InvalidPipeline(f"{name}(share={share!r})", "a share above 0, at most 1", "write for example share=0.5")
    return float(share)


def _most(name: str, most: float) -> float:
    if isinstance(most, bool) or not isinstance(most, (int, float)) or not 1 < most < np.inf:
        raise InvalidPipeline(f"{name}(most={most!r})", "a number above 1", "write for example most=4")
    return float(most)


def combined(weighers: Sequence[Weigher], rows: Weighed) -> Floats:
    """The product of all weighers' weights, brought to mean 1, [n]. Raises InvalidPipeline when one gives no weights."""
    found = np.ones(len(rows.label))
    for part in weighers:
        made = np.asarray(part.weights(rows))
        if made.shape != found.shape or made.dtype.kind not in "fiu" or not np.isfinite(made).all() or (made < 0).any():
            raise InvalidPipeline(
                f"weigher {part!r} gives {made.dtype} of shape {made.shape}, or weights below 0 or no numbers",
                f"finite weights of at least 0 [{len(found)}]",
                "mend weights()",
            )
        found = found * made
    total = float(np.sort(found).sum())
    if len(found) and not total > 0:
        raise InvalidPipeline("the weighers leave no row any weight", "some weight above 0", "mend them, or use fewer")
    return found * (len(found) / total) if len(found) else found


def mixed(size: Floats, share: float, most: float) -> Floats:
    """`1 - share + share * c`, c [n] in proportion to `size` (at least 0), at most `most`, with mean 1. Ones where every size is 0.

    What the bound cuts off goes to the rows below it, in proportion too; where only so few sizes are above 0 that all of them reach
    the bound, what is left goes to the others evenly. The order of the rows plays no part, to the last bit.
    """
    count = len(size)
    if not count or not size.max() > 0:
        return np.ones(count)
    rising = np.sort(size)
    below = np.cumsum(rising)
    at = np.arange(count, 0, -1)  # so many of the smallest stay below the bound
    left = count - most * (count - at)
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = left / below[at - 1]
        fits = (left > 0) & (below[at - 1] > 0) & (factor * rising[at - 1] <= most)
    if fits.any():
        found: Floats = np.minimum(size * factor[np.argmax(fits)], most)
    else:  # too few rows have a size at all
        some = size > 0
        found = np.where(some, most, (count - most * some.sum()) / max(1, count - some.sum()))
    return (1 - share) + share * found


def uncertainty(objective: Objective, scores: Floats) -> Floats:
    """How unsure each row's score [n] or [n, k] is: its entropy in nats, or the width of its quantiles."""
    if objective.kind == "quantiles":
        return np.asarray(scores[:, -1] - scores[:, 0])
    shares = np.column_stack([1 - scores, scores]) if objective.kind == "binary" else scores
    kept = np.clip(shares, _LEAST, 1.0)
    return np.asarray(np.maximum(-(kept * np.log(kept)).sum(axis=1), 0.0))
