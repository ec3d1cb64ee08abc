"""The gate: candidate against floors and champion → a verdict with every number behind it. Pure; what follows is decided elsewhere."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import overload

from ct.errors import InvalidPipeline
from ct.evaluation.stats import Interval

MARGIN = 0.01


@dataclass(frozen=True)
class Floor:
    """An absolute limit of one metric: at least `low`, at most `high`."""

    metric: str
    low: float | None = None
    high: float | None = None

    def fault(self, metrics: Mapping[str, float]) -> str:
        """Why the metric breaks the limit, empty when it does not."""
        value = metrics[self.metric]
        if self.low is not None and not value >= self.low:
            return f"{self.metric} {value:.4f} is below the floor {self.low:g}"
        if self.high is not None and not value <= self.high:
            return f"{self.metric} {value:.4f} is above the limit {self.high:g}"
        return ""


@dataclass(frozen=True)
class Better:
    """The candidate's AUROC is better than the champion's by `by`, or at worst `margin` short of it, with 95 % confidence."""

    by: float = 0.0
    margin: float = MARGIN


@overload
def auc(floor: float) -> Floor: ...


@overload
def auc(*, by: float, margin: float = MARGIN) -> Better: ...


def auc(floor: float | None = None, *, by: float | None = None, margin: float = MARGIN) -> Floor | Better:
    """`auc(0.60)` is a floor. `auc(by=0.0)` compares with the champion: better by `by`, up to `margin`."""
    if (floor is None) == (by is None):
        raise InvalidPipeline(f"auc({floor}, by={by})", "either a floor or by=", "write ct.auc(0.60) or ct.auc(by=0.0)")
    if floor is not None:
        if not 0 <= floor <= 1:
            raise InvalidPipeline(f"auc({floor})", "a floor from 0 to 1", "for example 0.60")
        return Floor("auroc", low=floor)
    assert by is not None
    if not 0 <= margin < 1 or not -1 < by < 1:
        raise InvalidPipeline(f"auc(by={by}, margin={margin})", "by in (-1, 1), margin in [0, 1)", "for example by=0.0")
    return Better(by, margin)


def ece(max: float) -> Floor:
    """The expected calibration error is at most `max`."""
    if not 0 < max <= 1:
        raise InvalidPipeline(f"ece(max={max})", "a limit above 0, at most 1", "for example 0.05")
    return Floor("ece", high=max)


@dataclass(frozen=True)
class Gate:
    """What a candidate must show: `floors` by itself, `beats` against the champion."""

    beats: Better
    floors: Sequence[Floor] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "floors", tuple(self.floors))

    def validate(self) -> list[str]:
        """Faults of the declaration, none for a good one."""
        faults = []
        if not isinstance(self.beats, Better):
            faults.append(f"beats is {self.beats!r}, expected ct.auc(by=...)")
        if not self.floors:
            faults.append("there is no floor: without one the first model would go live unjudged; add for example ct.auc(0.60)")
        faults += [
            f"floor {floor!r} is no ct.auc(0.60) or ct.ece(max=0.05)" for floor in self.floors if not isinstance(floor, Floor)
        ]
        return faults


@dataclass(frozen=True)
class Evaluation:
    """A version's metrics on `rows` rows."""

    metrics: Mapping[str, float]
    rows: int


@dataclass(frozen=True)
class Verdict:
    """ "pass", "fail", "inconclusive" or "error", and why. Only "pass" goes on."""

    decision: str
    reasons: tuple[str, ...]


def decide(gate: Gate, candidate: Evaluation, champion: Evaluation | None, difference: Interval | None) -> Verdict:
    """Judge a candidate. `difference` is the paired interval of candidate minus champion in AUROC on the same rows.

    Without a champion the candidate must beat the base rate: a log loss below that of always saying the base rate.
    A needed metric that is missing or no number is an error, never a pass.
    """
    needed = [floor.metric for floor in gate.floors] + ["auroc", "log_loss", "base_log_loss"]
    unknown = [name for name in needed if not math.isfinite(candidate.metrics.get(name, math.nan))]
    if unknown or (champion is not None and (difference is None or champion.rows != candidate.rows)):
        return Verdict("error", (f"not measured: {unknown or 'the difference on the same rows'}",))
    faults = tuple(fault for floor in gate.floors if (fault := floor.fault(candidate.metrics)))
    if faults:
        return Verdict("fail", faults)
    if champion is None or difference is None:
        ours, base = candidate.metrics["log_loss"], candidate.metrics["base_log_loss"]
        said = f"log loss {ours:.4f} against {base:.4f} of the base rate, on {candidate.rows:,} rows"
        return Verdict("pass" if ours < base else "fail", (said,))
    limit = gate.beats.by - gate.beats.margin
    said = (
        f"AUROC {candidate.metrics['auroc']:.4f} against the champion's {champion.metrics['auroc']:.4f}: "
        f"difference {difference.estimate:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}], limit {limit:+.4f}, "
        f"on {candidate.rows:,} rows"
    )
    if difference.low >= limit:
        return Verdict("pass", (said,))
    return Verdict("fail" if difference.high < limit else "inconclusive", (said,))
