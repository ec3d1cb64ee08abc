"""How often a rollout's judge is wrong about an equal canary, and how many requests or labels it needs for a bad one; beside three others.

A/A: whole rollouts of 30 looks whose weights change, whose base rate drifts over the day, whose requests come from users who stay on one arm
and differ in how often they fail. A/B: errors from 0.1 to 1 %, latencies 20 % longer, AUROC lower by 0.02. The judge is the product's own
(`ct.rollout.verdict.judge`, `ct.rollout.paired.compare`), over the counts that its tally makes of the same streams. The others: a fixed
threshold on each look's window (99 % success, five failed checks: the form of Flagger and Argo), Mann-Whitney on the windows' rates (98 %,
tolerance 0.25: the form of Kayenta), and a two-sided test of two shares at 5 %, peeked at. Needs no Ray. `--quick` takes fewer rollouts.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, mannwhitneyu, norm

import ct
from ct.evaluation.stats import auroc_influence, running_mean
from ct.objectives import BINARY
from ct.rollout.paired import compare
from ct.rollout.verdict import Cell, judge

LOOKS, PER_LOOK, USERS = 30, 400, 3000
WEIGHTS = np.repeat([0.1, 0.5, 0.25], LOOKS // 3)
PLAN = ct.Canary(10, 25, 50, guards=[ct.error_rate(max=0.05), ct.latency("p99")], min_requests=10**9)
ALPHA = 0.05
SIGMA = 0.3
AUC = 0.80


@dataclass(frozen=True)
class Looks:
    """One rollout: for each look and arm (stable, canary) [looks, 2] requests and bad ones; units that asked, and those whose first request of the look was bad."""

    weight: NDArray[np.float64]
    total: NDArray[np.int64]
    bad: NDArray[np.int64]
    units: NDArray[np.int64]
    first: NDArray[np.int64]


def main() -> None:
    """Measure and print; the last line is the result as JSON."""
    quick = "--quick" in sys.argv
    rollouts, tries = (400, 30) if quick else (2000, 300)
    figures: dict[str, float] = {}
    figures |= _equal(rollouts)
    figures |= _worse(tries)
    figures |= _paired(max(40, tries // 3))
    goals = {"false_rollback_rate_at_5pct": ["<=", ALPHA]}
    for name in ("detect_error_0p1_to_1pct_requests", "detect_p99_20pct_requests", "detect_auc_002_labels"):
        rivals = [figures[f"{name}_{other}"] for other in JUDGES if f"{name}_{other}" in figures and _honest(figures, other)]
        if rivals:
            goals[name] = ["<=", min(rivals)]
    conditions = {
        "rollouts": rollouts,
        "looks": LOOKS,
        "users": USERS,
        "cores": os.cpu_count(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in ("numpy", "scipy")}},
    }
    print(json.dumps({"bench": "verdict", "figures": figures, "goals": goals, "conditions": conditions}))


# -- streams


def clustered(rng: np.random.Generator) -> Looks:
    """An A/A rollout of users: a few ask much, some fail often on either version; the base rate swells and falls."""
    active = rng.pareto(1.5, USERS) + 0.2
    prone = np.where(rng.random(USERS) < 0.01, 0.3, 0.004)
    bucket = rng.random(USERS)
    total, bad, units, first = (np.zeros((LOOKS, 2), np.int64) for _ in range(4))
    for look, weight in enumerate(WEIGHTS):
        users = rng.choice(USERS, PER_LOOK, p=active / active.sum())
        rate = prone[users] * (1 + 0.8 * np.sin(look / 3))
        fails = rng.random(PER_LOOK) < rate
        arm = (bucket[users] < weight).astype(int)
        total[look], bad[look] = np.bincount(arm, minlength=2), np.bincount(arm[fails], minlength=2)
        _, one = np.unique(users, return_index=True)  # a look is a window of the tally: each unit's first request speaks for it
        units[look], first[look] = np.bincount(arm[one], minlength=2), np.bincount(arm[one][fails[one]], minlength=2)
    return Looks(WEIGHTS, total, bad, units, first)


def steady(rng: np.random.Generator, stable: float, canary: float, *, looks: int, per_look: int, weight: float = 0.1) -> Looks:
    """An A/B rollout whose requests are independent."""
    arm = rng.binomial(per_look, weight, looks)
    total = np.stack([per_look - arm, arm], axis=1)
    bad = np.stack([rng.binomial(total[:, 0], stable), rng.binomial(total[:, 1], canary)], axis=1)
    return Looks(np.full(looks, weight), total, bad, total, bad)


# -- judges: the look at which the canary is called worse, None when it never is

Judge = Callable[[Looks, str], int | None]


def ours(found: Looks, kind: str) -> int | None:
    """The product's own verdict, at each look over all counts so far."""
    for look in range(1, len(found.total) + 1):
        if judge(PLAN, _cells(found, look, kind), step=0, elapsed_s=0.0, alpha=ALPHA).decision == "roll_back":
            return look
    return None


def _cells(found: Looks, look: int, kind: str) -> list[Cell]:
    cells = []
    for weight in np.unique(found.weight[:look]):
        here = found.weight[:look] == weight
        for at, arm in enumerate(("stable", "canary")):
            parts = (found.total, found.bad, found.units, found.first)
            total, bad, units, first = (int(part[:look][here, at].sum()) for part in parts)
            if kind == "errors":
                cells.append(Cell(float(weight), arm, total, errors=bad, unit_total=units, unit_errors=first))
            else:
                cells.append(Cell(float(weight), arm, total, slow=bad, unit_total=units, unit_slow=first))
    return cells


def threshold(found: Looks, kind: str) -> int | None:
    """Five windows in which the canary was below 99 % success; for slow requests, above twice the share that is expected."""
    limit, failed = (0.01 if kind == "errors" else 0.02), 0
    for look, (total, bad) in enumerate(zip(found.total[:, 1], found.bad[:, 1], strict=True), 1):
        failed += bool(total) and bad / total > limit
        if failed >= 5:
            return look
    return None


def ranks(found: Looks, _: str) -> int | None:
    """Mann-Whitney on the rates of the windows so far, at each look from the tenth on."""
    rates = found.bad / np.maximum(found.total, 1)
    for look in range(10, len(rates) + 1):
        stable, canary = rates[:look, 0], rates[:look, 1]
        shifted = canary - 0.25 * stable.mean()
        if np.ptp(np.concatenate([stable, shifted])) > 0 and mannwhitneyu(shifted, stable, alternative="greater").pvalue < 0.01:
            return look
    return None


def peeking(found: Looks, _: str) -> int | None:
    """A test of two shares at 5 %, at each look over all requests so far."""
    n, bad = found.total.cumsum(axis=0), found.bad.cumsum(axis=0)
    pooled = bad.sum(axis=1) / n.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = np.sqrt(pooled * (1 - pooled) * (1 / n[:, 0] + 1 / n[:, 1]))
        z = (bad[:, 1] / n[:, 1] - bad[:, 0] / n[:, 0]) / spread
    over = np.flatnonzero(z > norm.ppf(0.975))
    return int(over[0]) + 1 if len(over) else None


JUDGES: dict[str, Judge] = {"threshold": threshold, "mann_whitney": ranks, "peeking": peeking}


def _equal(rollouts: int) -> dict[str, float]:
    rng = np.random.default_rng(20)
    streams = [clustered(rng) for _ in range(rollouts)]
    found = {"false_rollback_rate_at_5pct": _share(ours, streams, "ct")}
    unit = [Looks(each.weight, each.total, each.bad, each.total, each.bad) for each in streams]
    found["false_rollback_rate_without_units"] = _share(ours, unit, "ct, users counted as often as they ask")
    # Each rival is given a gentler world, where requests are independent and nothing drifts: what remains is its own.
    plain = [steady(rng, 0.008, 0.008, looks=LOOKS, per_look=PER_LOOK) for _ in range(rollouts)]
    for name, other in JUDGES.items():
        found[f"false_rate_{name}"] = _share(other, streams, name)
        found[f"false_rate_{name}_independent"] = _share(other, plain, f"{name}, independent requests")
    found["false_rollback_rate_independent"] = _share(ours, plain, "ct, independent requests")
    return found


def _share(call: Judge, streams: Sequence[Looks], said: str) -> float:
    wrong = sum(call(stream, "errors") is not None for stream in streams)
    rate = wrong / len(streams)
    low, high = binomtest(wrong, len(streams)).proportion_ci()  # exact: none of 400 is no proof of 0
    print(
        f"A/A {said}: {wrong} of {len(streams)} rolled back ({rate:.1%}, 95 % interval {low:.1%} to {high:.1%})",
        flush=True,
    )
    return rate


def _honest(figures: dict[str, float], name: str) -> bool:
    """Did it keep 5 % in the very same streams?"""
    return figures[f"false_rate_{name}"] <= ALPHA


def _worse(tries: int) -> dict[str, float]:
    slow = float(norm.sf(norm.ppf(0.99) - np.log(1.2) / SIGMA))
    worlds = {
        "detect_error_0p1_to_1pct_requests": ("errors", 0.001, 0.01, 200, 400),
        "detect_p99_20pct_requests": ("slow", 0.01, slow, 200, 400),
    }
    found = {}
    for name, (kind, stable, canary, looks, per_look) in worlds.items():
        rng = np.random.default_rng(21)
        streams = [steady(rng, stable, canary, looks=looks, per_look=per_look) for _ in range(tries)]
        for who, call in {"": ours, **{f"_{other}": call for other, call in JUDGES.items()}}.items():
            at = [call(stream, kind) for stream in streams]
            seen = [look for look in at if look is not None]
            if len(seen) >= 0.9 * tries:  # one that mostly sees nothing has no mean
                found[name + who] = float(np.mean(seen) * per_look)
            told = f"{np.mean(seen) * per_look:,.0f} requests" if seen else "never"
            print(f"{name} {who[1:] or 'ct'}: {len(seen)} of {tries} found, after {told}", flush=True)
    return found


def _paired(tries: int) -> dict[str, float]:
    """Labelled rows until AUROC -0.02 is called: a shadow on the same rows, beside two arms of other rows peeked at by the same bounds."""
    rng = np.random.default_rng(22)
    looks = np.unique(np.geomspace(200, 40_000, 40).astype(int))
    counts: dict[str, list[int]] = {"shadow": [], "arms": []}
    wrong = 0
    for _ in range(tries):
        stable, canary, label = _scores(rng, looks[-1], 0.02)
        counts["shadow"].append(
            next((n for n in looks if compare(BINARY, stable[:n], canary[:n], label[:n], alpha=ALPHA).harmful), looks[-1])
        )
        other, _, labelled = _scores(rng, looks[-1], 0.0)
        counts["arms"].append(
            next((2 * n for n in looks if _two_arms(other[:n], labelled[:n], canary[:n], label[:n])), 2 * looks[-1])
        )
        equal = _scores(rng, looks[-1], 0.0)
        wrong += any(compare(BINARY, *(part[:n] for part in equal), alpha=ALPHA).harmful for n in looks)
    print(
        f"AUROC -0.02: shadow {np.mean(counts['shadow']):,.0f} labels, two arms {np.mean(counts['arms']):,.0f}; A/A {wrong} of {tries}",
        flush=True,
    )
    return {
        "detect_auc_002_labels": float(np.mean(counts["shadow"])),
        "detect_auc_002_labels_two_arms": float(np.mean(counts["arms"])),
        "false_rate_paired": wrong / tries,
    }


def _scores(rng: np.random.Generator, n: int, drop: float, alike: float = 0.95) -> tuple[NDArray[np.float64], ...]:
    label = (rng.random(n) < 0.3).astype(float)
    noise = rng.normal(size=n)
    other = alike * noise + np.sqrt(1 - alike**2) * rng.normal(size=n)
    apart = [np.sqrt(2) * norm.ppf(area) for area in (AUC, AUC - drop)]
    return noise + apart[0] * label, other + apart[1] * label, label


def _two_arms(
    stable: NDArray[np.float64], known: NDArray[np.float64], canary: NDArray[np.float64], label: NDArray[np.float64]
) -> bool:
    """The same bounds without pairs: each arm has its own rows, so the variances add."""
    area, pull = auroc_influence(canary, label)
    other, pulled = auroc_influence(stable, known)
    parts = np.hypot(pull, pulled) * len(label) * np.where(np.arange(len(label)) % 2, 1.0, -1.0)  # only their spread is used
    half = running_mean(parts, alpha=ALPHA)
    return area - other + (half.high - half.estimate) < 0


if __name__ == "__main__":
    main()
