"""How often a rollout's judge is wrong about an equal canary, and how many requests or labels it needs for a bad one; beside three others.

A/A: whole rollouts of 30 looks whose weights change, whose base rate drifts over the day, whose requests come from users who stay on one arm
and differ in how often they ask and fail, and in how long their answers take. A/B: errors from 0.1 to 1 %, latencies 20 % longer, AUROC lower
by 0.02. The judge is the product's own (`ct.rollout.verdict.judge`, `ct.rollout.paired.compare`), over the counts that its tally makes of the
same streams; the others are in parts/judges.py and parts/shadows.py. Needs no Ray. `--quick` takes fewer rollouts.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, norm

ROOT = Path(__file__).parents[1]
sys.path[0] = str(ROOT)  # not this folder, whose profile.py would stand for the one of Python
import ct  # noqa: E402
from bench.parts import judges, shadows  # noqa: E402
from bench.parts.judges import ALPHA, NEVER, Judge, Streams  # noqa: E402

LOOKS, PER_LOOK, USERS = 30, 400, 3000
WEIGHTS = np.repeat([0.1, 0.5, 0.25], LOOKS // 3)
PLAN = ct.Canary(10, 25, 50, guards=[ct.error_rate(max=0.05), ct.latency("p99")], min_requests=10**9)
QUANTILES = {"p50": 0.50, "p90": 0.90, "p99": 0.99}
SLOW_PLAN = ct.Canary(10, 25, 50, guards=[ct.error_rate(max=0.05), ct.latency(*QUANTILES)], min_requests=10**9)
SIGMA, BETWEEN_USERS = 0.3, 0.5
DROP = 0.02


def main() -> None:
    """Measure and print; the last line is the result as JSON."""
    quick, begun = "--quick" in sys.argv, time.monotonic()
    rollouts, tries = (400, 60) if quick else (2000, 300)
    figures = _equal(rollouts) | _equal_latency(rollouts) | _worse(tries) | _paired(20 if quick else 200)
    goals = {
        "false_rollback_rate_at_5pct": ["<=", ALPHA],
        "false_rollback_rate_latency": ["<=", ALPHA],
        "false_rate_paired": ["<=", ALPHA],
    }
    asked = {"detect_error_0p1_to_1pct_requests": "false_rate", "detect_p99_20pct_requests": "false_rate_latency"}
    for name, told in {**asked, "detect_auc_002_labels": "false_rate_auc"}.items():
        # Only judges that kept 5 % in the very same streams are rivals.
        rivals = [figures.get(f"{name}_{who}") for who in judges.OTHERS if figures[f"{told}_{who}"] <= ALPHA]
        if known := [rival for rival in rivals if rival is not None]:
            goals[name] = ["<=", min(known)]
    conditions = {
        "rollouts": rollouts,
        "looks": LOOKS,
        "users": USERS,
        "tries": tries,
        "cores": os.cpu_count(),
        "seconds": round(time.monotonic() - begun, 1),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in ("numpy", "scipy")}},
    }
    print(json.dumps({"bench": "verdict", "figures": figures, "goals": goals, "conditions": conditions}))


# -- streams


def clustered(rng: np.random.Generator, rollouts: int, *, slow: bool = False) -> Streams:
    """A/A rollouts of users: a few ask much, some fail often, or wait long, on either version; the base swells and falls over the looks."""
    shape = (rollouts, LOOKS, 2)
    names = tuple(QUANTILES) if slow else ("errors",)
    total, units, new = (np.zeros(shape, np.int64) for _ in range(3))
    bad, first = ({name: np.zeros(shape, np.int64) for name in names} for _ in range(2))
    for at in range(rollouts):
        active = rng.pareto(1.5, USERS) + 0.2
        users = rng.choice(USERS, (LOOKS, PER_LOOK), p=active / active.sum())
        went = _waits(rng, users) if slow else {"errors": _fails(rng, users)}
        canary = rng.random(USERS)[users] < WEIGHTS[:, None]
        for weight in np.unique(WEIGHTS):
            begun = np.flatnonzero(weight == WEIGHTS)
            _, one = np.unique(users[begun], return_index=True)
            np.add.at(new[at], (begun[one // PER_LOOK], canary[begun].ravel()[one].astype(np.int64)), 1)
        for look in range(LOOKS):
            arm = canary[look].astype(np.int64)
            _, one = np.unique(
                users[look], return_index=True
            )  # a look is a window of the tally: each unit's first request speaks for it
            total[at, look], units[at, look] = np.bincount(arm, minlength=2), np.bincount(arm[one], minlength=2)
            for name, hit in went.items():
                bad[name][at, look] = np.bincount(arm[hit[look]], minlength=2)
                first[name][at, look] = np.bincount(arm[one][hit[look][one]], minlength=2)
    return Streams(WEIGHTS, total, bad, units, first, new)


def _fails(rng: np.random.Generator, users: NDArray[np.int64]) -> NDArray[np.bool_]:
    prone = np.where(rng.random(USERS) < 0.01, 0.3, 0.004)
    swell = 1 + 0.8 * np.sin(np.arange(LOOKS) / 3)[:, None]
    return rng.random(users.shape) < prone[users] * swell


def _waits(rng: np.random.Generator, users: NDArray[np.int64]) -> dict[str, NDArray[np.bool_]]:
    """Which requests are above the limits, which are learned from 2,000 earlier ones of stable."""
    usual = rng.normal(0, BETWEEN_USERS, USERS)
    earlier = usual[rng.choice(users.ravel(), 2000)] + rng.normal(0, SIGMA, 2000)
    waits = usual[users] + rng.normal(0, SIGMA, users.shape) + 0.1 * np.sin(np.arange(LOOKS) / 3)[:, None]
    return {name: waits > np.quantile(earlier, share) for name, share in QUANTILES.items()}


def steady(
    rng: np.random.Generator,
    rollouts: int,
    kind: str,
    stable: float,
    canary: float,
    *,
    looks: int,
    per_look: int,
    weight: float = 0.1,
) -> Streams:
    """Rollouts whose requests are independent."""
    arm = rng.binomial(per_look, weight, (rollouts, looks))
    total = np.stack([per_look - arm, arm], axis=2)
    bad = {kind: np.stack([rng.binomial(total[:, :, 0], stable), rng.binomial(total[:, :, 1], canary)], axis=2)}
    return Streams(np.full(looks, weight), total, bad, total, bad, total)


# -- what is measured


def _equal(rollouts: int) -> dict[str, float]:
    rng = np.random.default_rng(20)
    streams, call = clustered(rng, rollouts), judges.ours(PLAN)
    found = {"false_rollback_rate_at_5pct": _share(call, streams, "ct")}
    found["false_hold_rate"] = _share(judges.ours(PLAN, "hold"), streams, "ct, held for its split")
    found["false_rollback_rate_without_units"] = _share(call, streams.by_request(), "ct, users counted as often as they ask")
    # Each rival is given a gentler world too, where requests are independent and nothing drifts: what remains is its own.
    plain = steady(rng, rollouts, "errors", 0.008, 0.008, looks=LOOKS, per_look=PER_LOOK)
    for name, other in judges.OTHERS.items():
        found[f"false_rate_{name}"] = _share(other, streams, name)
        found[f"false_rate_{name}_independent"] = _share(other, plain, f"{name}, independent requests")
    found["false_rollback_rate_independent"] = _share(call, plain, "ct, independent requests")
    return found


def _equal_latency(rollouts: int) -> dict[str, float]:
    streams = clustered(np.random.default_rng(23), rollouts, slow=True)
    said = "ct, latency p50, p90 and p99"
    found = {"false_rollback_rate_latency": _share(judges.ours(SLOW_PLAN), streams, said, "p99")}
    for name, other in judges.OTHERS.items():
        found[f"false_rate_latency_{name}"] = _share(other, streams, f"{name}, latency p99", "p99")
    return found


def _share(call: Judge, streams: Streams, said: str, kind: str = "errors") -> float:
    count = len(streams.total)
    wrong = int((call(streams, kind) != NEVER).sum())
    return _told(f"A/A {said}", wrong, count)


def _told(said: str, wrong: int, count: int) -> float:
    low, high = binomtest(wrong, count).proportion_ci()  # exact: none of 400 is no proof of 0
    print(f"{said}: {wrong} of {count} wrong ({wrong / count:.1%}, 95 % interval {low:.1%} to {high:.1%})", flush=True)
    return wrong / count


def _worse(tries: int) -> dict[str, float]:
    slow = float(norm.sf(norm.ppf(0.99) - np.log(1.2) / SIGMA))
    worlds = {
        "detect_error_0p1_to_1pct_requests": ("errors", 0.001, 0.01),
        "detect_p99_20pct_requests": ("p99", 0.01, slow),
    }
    found: dict[str, float] = {}
    for name, (kind, stable, canary) in worlds.items():
        streams = steady(np.random.default_rng(21), tries, kind, stable, canary, looks=200, per_look=PER_LOOK)
        for who, call in {"": judges.ours(PLAN), **{f"_{other}": call for other, call in judges.OTHERS.items()}}.items():
            found |= _needed(name, who, call(streams, kind) * PER_LOOK, "requests")
    return found


def _needed(name: str, who: str, after: NDArray[np.int64], what: str) -> dict[str, float]:
    seen = after[after != NEVER]
    told = f"{seen.mean():,.0f} {what}" if len(seen) else "never"
    print(f"{name} {who[1:] or 'ct'}: {len(seen)} of {len(after)} found, after {told}", flush=True)
    return {name + who: float(seen.mean())} if len(seen) >= 0.9 * len(after) else {}  # one that mostly sees nothing has no mean


def _paired(tries: int) -> dict[str, float]:
    """Labelled rows until AUROC -0.02 is called: the judges of shadows on the same rows, and two arms of other rows by the product's bounds."""
    rng, looks = np.random.default_rng(22), range(shadows.PER_LOOK, 8001, shadows.PER_LOOK)
    worse, equal = ([shadows.pairs(rng, looks[-1], drop) for _ in range(tries)] for drop in (DROP, 0.0))
    found: dict[str, float] = {}
    for who, call in {"": shadows.ours, **{f"_{other}": call for other, call in shadows.OTHERS.items()}}.items():
        found |= _needed("detect_auc_002_labels", who, np.array([call(rows, looks) for rows in worse]), "labels")
        wrong = sum(call(rows, looks) != NEVER for rows in equal)
        key = f"false_rate_auc{who}" if who else "false_rate_paired"
        found[key] = _told(f"A/A AUROC {who[1:] or 'ct, shadow'}", wrong, tries)
    far = np.unique(np.geomspace(2000, 40_000, 20).astype(int)).tolist()
    arms = [
        shadows.two_arms(shadows.pairs(rng, far[-1], DROP), shadows.pairs(rng, far[-1], 0.0), far)
        for _ in range(max(20, tries // 4))
    ]
    return found | _needed("detect_auc_002_labels", "_two_arms", np.array(arms), "labels")


if __name__ == "__main__":
    main()
