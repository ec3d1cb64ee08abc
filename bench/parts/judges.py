"""Who judges a canary: the product's own verdict, and the common forms of other controllers. Each says at which look it calls the canary worse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import mannwhitneyu, norm

from ct.rollout.plans import Plan
from ct.rollout.verdict import Cell, judge

Ints = NDArray[np.int64]
NEVER = 0
ALPHA = 0.05


@dataclass(frozen=True)
class Streams:
    """R rollouts of the same looks: the canary's `weight` [looks], and for each rollout, look and arm (stable, canary) [R, looks, 2] the requests.

    `bad` has the bad ones by kind ("errors", or "p99" for those above that limit). `units` asked in the look, and `first` has those whose
    first request of the look was bad: a look is a window of the tally, in which one request speaks for its unit. `new` asked at this weight
    for the first time.
    """

    weight: NDArray[np.float64]
    total: Ints
    bad: dict[str, Ints]
    units: Ints
    first: dict[str, Ints]
    new: Ints

    def by_request(self) -> Streams:
        """The same, with users counted as often as they ask."""
        return Streams(self.weight, self.total, self.bad, self.total, self.bad, self.new)


Judge = Callable[[Streams, str], Ints]
"""(streams, kind of bad event) → for each rollout the look at which the canary is called worse, from 1; NEVER where it is not."""


def ours(plan: Plan, decision: str = "roll_back") -> Judge:
    """The product's own verdict, at each look over all counts so far."""

    def call(streams: Streams, kind: str) -> Ints:
        found = [_first_alarm(plan, streams, at, decision) for at in range(len(streams.total))]
        return np.array(found, np.int64)

    return call


def _first_alarm(plan: Plan, streams: Streams, at: int, decision: str) -> int:
    names = [name for name in streams.bad if name != "errors"]
    for look, cells in enumerate(_cells(streams, at, names), 1):
        if judge(plan, cells, step=0, elapsed_s=0.0, alpha=ALPHA).decision == decision:
            return look
    return NEVER


def _cells(streams: Streams, at: int, names: list[str]) -> list[list[Cell]]:
    """For each look the counts until then, by weight and arm."""
    weights = np.unique(streams.weight)
    errors = "errors" in streams.bad
    parts = [streams.total, streams.units, streams.new, *(streams.bad[n] for n in names), *(streams.first[n] for n in names)]
    parts += [streams.bad["errors"], streams.first["errors"]] if errors else []
    here = (streams.weight[:, None] == weights)[:, :, None]  # [looks, weights, 1]
    sums = [np.cumsum(part[at][:, None, :] * here, axis=0).tolist() for part in parts]
    begun = np.cumsum(here[:, :, 0], axis=0).tolist()
    wide, made = len(names), []
    for look in range(len(streams.weight)):
        cells = []
        for place, weight in enumerate(weights.tolist()):
            if not begun[look][place]:
                continue
            for side, arm in enumerate(("stable", "canary")):
                told = [part[look][place][side] for part in sums]
                slow, first = told[3 : 3 + wide], told[3 + wide : 3 + 2 * wide]
                cells.append(
                    Cell(
                        weight,
                        arm,
                        told[0],
                        errors=told[-2] if errors else 0,
                        slow=dict(zip(names, slow, strict=True)),
                        unit_total=told[1],
                        unit_errors=told[-1] if errors else 0,
                        unit_slow=dict(zip(names, first, strict=True)),
                        distinct=told[2],
                    )
                )
        made.append(cells)
    return made


def threshold(streams: Streams, kind: str) -> Ints:
    """Five windows in which the canary was below 99 % success; for slow requests, above twice the share that is expected (Flagger, Argo)."""
    limit = 0.01 if kind == "errors" else 0.02
    total, bad = streams.total[:, :, 1], streams.bad[kind][:, :, 1]
    failed = (total > 0) & (bad > limit * total)
    return _first(np.cumsum(failed, axis=1) >= 5)


def ranks(streams: Streams, kind: str) -> Ints:
    """Mann-Whitney on the rates of the windows so far at 98 % with a tolerance of a quarter, at each look from the tenth on (Kayenta)."""
    rates = streams.bad[kind] / np.maximum(streams.total, 1)
    over = np.zeros(rates.shape[:2], bool)
    for look in range(10, rates.shape[1] + 1):
        stable, canary = rates[:, :look, 0], rates[:, :look, 1]
        over[:, look - 1] = higher(canary - 0.25 * stable.mean(axis=1, keepdims=True), stable)
    return _first(over)


def higher(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Is each row of `ours` higher by Mann-Whitney, at 1 % on this side?"""
    varied = np.ptp(np.concatenate([ours, theirs], axis=1), axis=1) > 0
    found = np.zeros(len(ours), bool)
    if varied.any():
        test = mannwhitneyu(ours[varied], theirs[varied], alternative="greater", axis=1, method="asymptotic")
        found[varied] = test.pvalue < 0.01
    return found


def peeking(streams: Streams, kind: str) -> Ints:
    """A test of two shares at 5 %, at each look over all requests so far."""
    n, bad = streams.total.cumsum(axis=1), streams.bad[kind].cumsum(axis=1)
    pooled = bad.sum(axis=2) / n.sum(axis=2)
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = np.sqrt(pooled * (1 - pooled) * (1 / n[:, :, 0] + 1 / n[:, :, 1]))
        z = (bad[:, :, 1] / n[:, :, 1] - bad[:, :, 0] / n[:, :, 0]) / spread
    return _first(z > norm.ppf(0.975))


def _first(over: NDArray[np.bool_]) -> Ints:
    """The first look that is True in each row, from 1."""
    return np.where(over.any(axis=1), over.argmax(axis=1) + 1, NEVER)


OTHERS: dict[str, Judge] = {"threshold": threshold, "mann_whitney": ranks, "peeking": peeking}
