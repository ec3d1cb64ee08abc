"""Half an hour of a served project's hard life, by a seeded plan: in-place upgrades, canary steps, promotions, rollbacks, labels, commits of the
prediction log, and SIGKILLs of replicas, of Serve's controller and of the control process, all under open load.

Every client's call is kept. At the end the history is checked against the log, the journal and the versions (bench/parts/history.py), the
failed requests against a budget of one in a thousand (retry policy: bench/parts/asking.py), and the replicas' memory for growth.
`--minutes N` (30), `--seed N` (7). Exit 1 when an invariant is broken or the budget is spent.
"""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[0] = str(ROOT)  # not this folder, whose profile.py would stand for the one of Python

BUDGET, REPLICAS = 0.001, 3
GOALS: dict[str, list[Any]] = {
    "broken_invariants": ["<=", 0],
    "failed_fraction": ["<=", BUDGET],
    "rss_growth_30m": ["<=", 1.1],
}


def main() -> None:
    """Soak and print; the last line is the result as JSON."""
    from bench.parts.served import served
    from bench.parts.soaking import soak

    minutes, seed = float(_option("--minutes", "30")), int(_option("--seed", "7"))
    with served(REPLICAS) as found:
        print(f"served; {minutes:g} minutes of soaking with seed {seed} begin", flush=True)
        result = soak(found, minutes * 60, seed=seed)
    for line in result.broken[:50]:
        print(f"BROKEN: {line}")
    goals = GOALS if minutes >= 10 else {name: goal for name, goal in GOALS.items() if name != "rss_growth_30m"}
    conditions = {
        "minutes": minutes,
        "seed": seed,
        "replicas": REPLICAS,
        "deeds": dict(result.deeds),
        "cores": os.cpu_count(),
        "versions": {"ray": version("ray")},
    }
    print(json.dumps({"bench": "soak", "figures": result.figures, "goals": goals, "conditions": conditions}))
    sys.exit(bool(result.broken) or result.figures["failed_fraction"] > BUDGET)


def _option(name: str, default: str) -> str:
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else default


if __name__ == "__main__":
    main()
