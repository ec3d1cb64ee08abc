"""What is watched while a candidate gets traffic: bad events, and how many of them are let pass. Guards count and allow; verdict.py judges."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from ct.rollout.verdict import Cell

NOISE = 0.01
"""Added to the share of slow requests that passes: 200 requests of an equal canary stray by this much."""
MIDDLE, LEARNED_FROM = 0.9, 100
"""Extreme is a score outside the middle share of stable's earlier ones, of which there must be so many."""
QUANTILES = {"p50": 0.50, "p90": 0.90, "p95": 0.95, "p99": 0.99}


@runtime_checkable
class Guard(Protocol):
    """A bad event that is watched, and how much of it is let pass. A user's own guard has these methods."""

    def metric(self) -> str:
        """Its name in evidence and reports."""
        ...

    def events(self, cell: Cell) -> tuple[int, float]:
        """(requests that could go badly, requests that did) of one cell. One that went badly in part counts as that part of 1."""
        ...

    def ratio(self, stable: float) -> float:
        """Harm is a canary with more than this many times stable's rate; at least 1. `stable` is the rate seen so far."""
        ...

    def cap(self) -> float | None:
        """Harm is also a canary with a rate above this, None for no such limit."""
        ...

    def allowed(self, stable: float) -> float:
        """The highest canary rate that passes a step, given stable's rate."""
        ...

    def needed(self) -> int:
        """How many requests that could go badly the canary must have had in the whole rollout before a step passes."""
        ...

    def compares(self) -> bool:
        """Does it mean nothing without stable beside the canary?"""
        ...

    def validate(self) -> list[str]:
        """What is wrong with its fields."""
        ...


@dataclass(frozen=True)
class ErrorRate:
    """Failed requests. The canary is harmful when it fails more often than stable, or than `max`."""

    max: float = 0.01

    def metric(self) -> str:
        return "error_rate"

    def events(self, cell: Cell) -> tuple[int, int]:
        return cell.total, cell.errors

    def ratio(self, stable: float) -> float:
        return 1.0

    def cap(self) -> float | None:
        return self.max

    def allowed(self, stable: float) -> float:
        return self.max

    def needed(self) -> int:
        return 0

    def compares(self) -> bool:
        return False

    def validate(self) -> list[str]:
        return [] if is_number(self.max, 0, 1) else [f"error_rate(max={self.max!r}), expected a share between 0 and 1"]


@dataclass(frozen=True)
class Latency:
    """Slow requests: those above stable's earlier `quantiles`. Harmful is a canary that is slow over `factor` times as often as stable.

    Several quantiles are judged each on its own (see `each`), and together by the mean of their e-values, which is an e-value too.
    """

    quantiles: tuple[str, ...] = ("p99",)
    factor: float = 1.5

    def metric(self) -> str:
        return "_".join(("latency", *self.quantiles))

    def each(self) -> tuple[Latency, ...]:
        """A guard for each quantile."""
        return tuple(Latency((quantile,), self.factor) for quantile in self.quantiles)

    def events(self, cell: Cell) -> tuple[int, float]:
        """A request above some of the limits went badly in part."""
        slow = sum(cell.slow.get(quantile, 0) for quantile in self.quantiles)
        return cell.total, slow / len(self.quantiles)

    def ratio(self, stable: float) -> float:
        return self.factor

    def cap(self) -> float | None:
        return None

    def allowed(self, stable: float) -> float:
        usual = sum(1 - QUANTILES[quantile] for quantile in self.quantiles) / len(self.quantiles)
        return min(1.0, self.factor * max(stable, usual) + NOISE)

    def needed(self) -> int:
        return 0

    def compares(self) -> bool:
        return False

    def validate(self) -> list[str]:
        if not self.quantiles or len(set(self.quantiles)) < len(self.quantiles) or not set(self.quantiles) <= set(QUANTILES):
            return [f"latency{self.quantiles!r}, expected some of {list(QUANTILES)}, each once"]
        if not is_number(self.factor, 1, 1000, low_included=True):
            return [f"latency(factor={self.factor!r}), expected a number from 1 to 1000"]
        lowest = min(self.quantiles, key=QUANTILES.__getitem__)
        most = 1 / (1 - QUANTILES[lowest])
        told = f"latency({lowest!r}, factor={self.factor!r}) can never be harmful: {1 - QUANTILES[lowest]:.0%} of stable's answers are"
        return [] if self.factor < most - 1e-9 else [f"{told} above it, expected a factor below {most:g}"]


def apart(guard: Guard) -> tuple[Guard, ...]:
    """The guards that `guard` consists of: a latency guard's quantiles; any other is itself."""
    return guard.each() if isinstance(guard, Latency) else (guard,)


@dataclass(frozen=True)
class Quality:
    """Wrong predictions, among those whose truth is known. The canary may be wrong `margin` (a share of rows) more often than stable.

    A number is wrong when it is off by more than `limit`, quantiles when their pinball loss is: None for one learned from stable.
    """

    margin: float = 0.05
    min_labels: int = 50
    limit: float | None = None

    def metric(self) -> str:
        return "wrong_rate"

    def events(self, cell: Cell) -> tuple[int, int]:
        return cell.labelled, cell.wrong

    def ratio(self, stable: float) -> float:
        return 1.0 + self.margin / stable if stable > 0 else 1.0

    def cap(self) -> float | None:
        return None

    def allowed(self, stable: float) -> float:
        return min(1.0, stable + self.margin)

    def needed(self) -> int:
        return self.min_labels

    def compares(self) -> bool:
        return True

    def validate(self) -> list[str]:
        faults = []
        if not is_number(self.margin, 0, 1):
            faults.append(f"quality(margin={self.margin!r}), expected a share between 0 and 1")
        if not is_count(self.min_labels, 0):
            faults.append(f"quality(min_labels={self.min_labels!r}), expected a whole number")
        if self.limit is not None and not is_number(self.limit, 0, float("inf")):
            faults.append(f"quality(limit={self.limit!r}), expected a number above 0, or None to learn it from stable")
        return faults


Value = Callable[[Mapping[str, Any], float, float], float]
"""(the row as it was asked, the score, the label) → what the answer was worth."""


@dataclass(frozen=True)
class Business:
    """What answers are worth, by the user's own function, once their truth is known; without one, the value that was told with the truth.

    Lost is what a row's worth is below `high`. The canary is harmful when it loses over `factor` times what stable loses. A worth outside `low` to `high` counts as the nearer of them.
    """

    value: Value | None
    low: float
    high: float
    factor: float = 1.1
    min_labels: int = 50
    name: str = "business"

    def metric(self) -> str:
        return self.name

    def events(self, cell: Cell) -> tuple[int, float]:
        return next(((n, lost) for name, n, lost in cell.losses if name == self.name), (0, 0.0))

    def loss(self, row: Mapping[str, Any], score: float, label: float, told: float | None = None) -> float | None:
        """The part of the range that was lost, 0 to 1. `told` is the value that came with the label.

        None where there is no worth, the function fails or gives no number; then the row counts for nothing.
        """
        try:
            worth = told if self.value is None else float(self.value(row, score, label))
        except Exception:  # a row that it cannot value must not keep errors and latency from being judged
            return None
        if worth is None or not math.isfinite(worth):
            return None
        return min(1.0, max(0.0, (self.high - worth) / (self.high - self.low)))

    def ratio(self, stable: float) -> float:
        return self.factor

    def cap(self) -> float | None:
        return None

    def allowed(self, stable: float) -> float:
        return min(1.0, self.factor * stable)

    def needed(self) -> int:
        return self.min_labels

    def compares(self) -> bool:
        return True

    def validate(self) -> list[str]:
        faults = []
        if self.value is not None and not callable(self.value):
            faults.append(f"business(value={self.value!r}), expected a function of (row, score, label), or none")
        limits = (self.low, self.high)
        if not all(is_number(limit, -math.inf, math.inf) for limit in limits) or not self.low < self.high:
            faults.append(f"business(low={self.low!r}, high={self.high!r}), expected two numbers, the lower one first")
        if not is_number(self.factor, 1, 1000, low_included=True):
            faults.append(f"business(factor={self.factor!r}), expected a number from 1 to 1000")
        if not is_count(self.min_labels, 1):
            faults.append(f"business(min_labels={self.min_labels!r}), expected a whole number of at least 1")
        if not isinstance(self.name, str) or not self.name:
            faults.append(f"business(name={self.name!r}), expected a text")
        return faults


def business(
    value: Value | None = None,
    *,
    low: float,
    high: float,
    factor: float = 1.1,
    min_labels: int = 50,
    name: str = "business",
) -> Business:
    """Guard what answers are worth: `value(row, score, label)` from `low` to `high`, judged from `min_labels` canary rows on.

    Without a function a row is worth the value that was told with its label (`"value"` in the feedback), such as a revenue.
    Harmful is a canary that loses (stays below `high`) over `factor` times what stable does. Of each unit the row whose label came first counts.
    """
    return Business(value, low, high, factor, min_labels, name)


@dataclass(frozen=True)
class Scores:
    """Extreme scores, too low or too high: outside the middle 90 % of stable's earlier ones. Needs no labels.

    Harmful is a canary that gives them over `factor` times as often as stable.
    """

    factor: float = 1.5

    def metric(self) -> str:
        return "extreme_scores"

    def events(self, cell: Cell) -> tuple[int, float]:
        return next(((n, lost) for name, n, lost in cell.losses if name == self.metric()), (0, 0.0))

    def ratio(self, stable: float) -> float:
        return self.factor

    def cap(self) -> float | None:
        return None

    def allowed(self, stable: float) -> float:
        return min(1.0, self.factor * max(stable, 1 - MIDDLE) + NOISE)

    def needed(self) -> int:
        return 1

    def compares(self) -> bool:
        return True

    def validate(self) -> list[str]:
        good = is_number(self.factor, 1, 1000, low_included=True)
        return [] if good else [f"scores(factor={self.factor!r}), expected a number from 1 to 1000"]


def middle(scores: Iterable[float]) -> tuple[float, float] | None:
    """Between which two values the middle share of stable's earlier `scores` lies; None when there are too few."""
    ordered = sorted(score for score in scores if math.isfinite(score))
    if len(ordered) < LEARNED_FROM:
        return None
    tail = int(len(ordered) * (1 - MIDDLE) / 2)
    return ordered[tail], ordered[-1 - tail]


def scores(factor: float = 1.5) -> Scores:
    """Guard the scores themselves: outside the middle 90 % of stable's earlier ones at most `factor` times as often as stable. Needs no labels.

    Of each unit its first request counts. It passes nothing until stable has answered 100 times before the rollout.
    """
    return Scores(factor)


def error_rate(max: float = 0.01) -> ErrorRate:
    """Guard against failing requests: never more often than stable, and at most a share of `max`."""
    return ErrorRate(max)


def latency(*quantiles: str, factor: float = 1.5) -> Latency:
    """Guard against slow requests: above each of stable's earlier `quantiles` ("p99" by default) at most `factor` times as often as stable."""
    return Latency(quantiles or ("p99",), factor)


def quality(margin: float = 0.05, min_labels: int = 50, limit: float | None = None) -> Quality:
    """Guard against wrong predictions: at most `margin` more often than stable, judged from `min_labels` labelled rows of the canary on.

    A number or quantiles are wrong when they are off by more than `limit`, which is learned from stable's earlier errors when None.
    """
    return Quality(margin, min_labels, limit)


def is_number(value: object, low: float, high: float, *, low_included: bool = False) -> bool:
    """Is it a number between `low` and `high`?"""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return (low <= value if low_included else low < value) and value < high


def is_count(value: object, low: int) -> bool:
    """Is it a whole number of at least `low`?"""
    return isinstance(value, int) and not isinstance(value, bool) and value >= low
