"""When a run is lost: what a step showed, the running level of its loss, and the sentence that says why to stop. Pure values, no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

TIMES, START, LASTING = 10.0, 2.0, 10
_KEPT = 0.95


@dataclass(frozen=True)
class Seen:
    """What one step showed, the same on every worker: the mean loss of its rows before the step, the norm of its gradient before clipping,
    and the learning rate it used."""

    loss: float
    gradient_norm: float
    rate: float = 0.0


@dataclass(frozen=True)
class Level:
    """A run's losses so far: how many, the first, a running mean (decay 0.95), the least that mean has been, and how many losses in a row
    have been far above it."""

    steps: int = 0
    first: float = 0.0
    loss: float = 0.0
    least: float = 0.0
    above: int = 0

    @property
    def limit(self) -> float:
        """A loss above this is far above: 10 times the least running mean, and twice the first."""
        return max(TIMES * self.least, START * self.first) if self.steps else math.inf

    def after(self, seen: Seen) -> Level:
        """The level with one more step."""
        if not math.isfinite(seen.loss):
            return self
        if not self.steps:
            return Level(1, seen.loss, seen.loss, seen.loss)
        mean = _KEPT * self.loss + (1 - _KEPT) * seen.loss
        return Level(self.steps + 1, self.first, mean, min(self.least, mean), self.above + 1 if seen.loss > self.limit else 0)

    def numbers(self) -> tuple[float, ...]:
        """The level for a checkpoint."""
        return float(self.steps), self.first, self.loss, self.least, float(self.above)

    @staticmethod
    def of(numbers: Sequence[float]) -> Level:
        """The level that `numbers` gave."""
        steps, first, loss, least, above = numbers
        return Level(int(steps), first, loss, least, int(above))


def fault(seen: Seen, history: Level) -> str:
    """Why a run is diverged after this step, "" while it is not. `history` is the level before the step.

    One step far above the level is an odd batch; ten in a row are an explosion.
    """
    if not math.isfinite(seen.loss):
        return f"its loss is {seen.loss}, no number"
    if not math.isfinite(seen.gradient_norm):
        return f"the norm of its gradient is {seen.gradient_norm}, no number"
    if seen.loss > history.limit and history.above + 1 >= LASTING:
        return (
            f"its loss explodes: {seen.loss:.4g}, and above {history.limit:.4g} for {history.above + 1} steps,"
            f" where {history.least:.4g} was reached"
        )
    return ""
