"""How long does a version still answer after it was decided that it shall not? And does any request fail over promotions, rollbacks and kills?

Four replicas on real Serve over HTTP, clients under open load (their retry policy: bench/parts/asking.py). Each cycle stages a version in place,
gives it 10 %, then 50 %, and takes it back; every second one is promoted first and then undone. `decision_to_last_p99_s` is from the moment
before the decision is written to the journal until a client received the last answer of that version. Then one replica, Serve's controller,
and the control process are killed, with decisions after each; those without a control process reach the replicas by their polling and have
a figure of their own. The slowest are told part by part: the journal, the broadcast, which replica answered last. At the end the whole history
is checked (bench/parts/history.py). `--quick` does fewer cycles.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[0] = str(ROOT)  # not this folder, whose profile.py would stand for the one of Python

GOALS = {"decision_to_last_p99_s": ["<=", 1.0], "failed_requests": ["<=", 0], "broken_invariants": ["<=", 0]}
REPLICAS = 4


@dataclass(frozen=True)
class Decision:
    """One against `version`, first not in force in `epoch`: when it was taken (monotonic s), journaled and broadcast, and how many heard it."""

    version: str
    epoch: int
    decided: float
    journaled: float
    told: float
    heard: int


def main() -> None:
    """Measure and print; the last line is the result as JSON."""
    from bench.parts.asking import Clients
    from bench.parts.served import served

    cycles, rate, after = (8, 40.0, 1) if "--quick" in sys.argv else (100, 100.0, 5)
    begun = time.monotonic()
    with served(REPLICAS) as found:
        print(f"{REPLICAS} replicas answer after {time.monotonic() - begun:.1f} s", flush=True)
        with Clients(found.place.port, found.row, rate) as clients:
            told = _decisions(found, cycles)
            for kind in ("replica", "controller", "control"):
                print(f"killed {kind} {found.kill(kind)}", flush=True)
                alone = _decisions(found, after, name=f"after-{kind}")
                told += alone if kind != "control" else []
                found.whole()
                print(f"{kind}: whole again after {time.monotonic() - begun:.1f} s", flush=True)
        figures = _figures(found, clients.calls, told, alone)
    conditions = {
        "replicas": REPLICAS, "requests": len(clients.calls), "rate": rate, "decisions": len(told), "cores": os.cpu_count(),
        "retries": "5, on a broken connection, 502, 503 and 504", "versions": {name: version(name) for name in ("ray", "onnxruntime")},
    }  # fmt: skip
    print(json.dumps({"bench": "rollout", "figures": figures, "goals": GOALS, "conditions": conditions}))


def _decisions(found: Any, cycles: int, name: str = "v") -> list[Decision]:
    """Do cycles. Returns the decisions that took a version's traffic back."""
    made = []
    for number in range(cycles):
        before = found.route
        arm = found.version(f"{name}-{number}", 0.1 * (number + 1))
        with suppress(RuntimeError):  # replicas stage what the route names; a dead control process only delays that
            found.do("stage", version=arm.version, manifest=arm.manifest)
        for weight in (1_000, 5_000):
            route = found.switch(found.route.with_canary(arm, weight=weight), cause="step")
            time.sleep(0.3)
        if number % 2:
            route = found.switch(route.promoted(), cause="promoted")
            time.sleep(0.3)
        _await(found, route.epoch)
        made.append(_decide(found, arm.version, _back(route, before)))
        time.sleep(1.5 if name.endswith("control") else 0.3)
    return made


def _decide(found: Any, version: str, route: Any) -> Decision:
    """Do as the control plane does (`Actor.change`): stage what the route in force does not name, journal the route, tell the replicas of it."""
    heard: list[int] = []
    decided = time.monotonic()
    with suppress(RuntimeError):
        for arm in set(route.arms) - set(found.route.arms):
            found.do("stage", version=arm.version, manifest=arm.manifest)
    found.put(route, cause="rolled back")
    journaled = time.monotonic()
    with suppress(RuntimeError):
        heard = found.do("activate", route=route.to_json())
    return Decision(version, route.epoch, decided, journaled, time.monotonic(), len(heard))


def _back(route: Any, before: Any) -> Any:
    return replace(route.without_canary(), stable=before.stable)


def _await(found: Any, epoch: int) -> None:
    """Without a control process: until polling has brought the route, so that there is something to take back."""
    if not found.processes("control"):
        time.sleep(3.0)


def _figures(found: Any, calls: list[Any], told: list[Any], alone: list[Any]) -> dict[str, float]:
    import numpy as np

    from bench.parts import history
    from ct.data import predictions
    from ct.registry import routes

    known = {live.route.epoch: live.route for live in routes.history(found.journal, "tiny")}
    found.journal.verify()
    wrong = history.broken(calls, predictions.everything(found.place), known, found.expected)
    for line in wrong[:20]:
        print(f"BROKEN: {line}")
    took = [history.last_by(calls, item.version, item.epoch, item.decided) for item in told]
    without = [history.last_by(calls, item.version, item.epoch, item.decided) for item in alone]
    _tell(calls, sorted(zip(took, told, strict=True), key=lambda pair: -pair[0])[:5])
    late = [call.ended - call.due for call in calls if not call.failed]
    for call in [call for call in calls if call.failed][:5]:
        print(f"FAILED: {call}")
    return {
        "decision_to_last_p99_s": round(float(np.quantile(took, 0.99)), 4),
        "decision_to_last_p50_s": round(float(np.median(took)), 4),
        "decision_to_journal_p99_s": round(float(np.quantile([item.journaled - item.decided for item in told], 0.99)), 4),
        "decision_to_told_p99_s": round(float(np.quantile([item.told - item.decided for item in told], 0.99)), 4),
        "decision_to_last_without_control_max_s": round(max(without), 4),
        "failed_requests": sum(call.failed for call in calls),
        "retried_requests": sum(bool(call.faults) and not call.failed for call in calls),
        "broken_invariants": len(wrong),
        "request_p50_ms": round(float(np.median(late)) * 1000, 2),
        "request_p99_ms": round(float(np.quantile(late, 0.99)) * 1000, 2),
    }


def _tell(calls: Any, slowest: Any) -> None:
    """Where the time of the slowest decisions went."""
    for seconds, item in slowest:
        late = [
            call for call in calls if call.version == item.version and call.epoch < item.epoch and call.ended > item.decided
        ]
        last = max(late, key=lambda call: call.ended, default=None)
        by = f"by {_replica(last)}, asked {last.begun - item.decided:+.3f} s" if last else "by nobody"
        print(
            f"{item.version}: {seconds:.3f} s; journaled after {item.journaled - item.decided:.3f}, told after "
            f"{item.told - item.decided:.3f} to {item.heard}; last answered {by}, {Counter(map(_replica, late))}"
        )


def _replica(call: Any) -> str:
    from bench.parts.served import replica_of

    return replica_of(call.id)


if __name__ == "__main__":
    main()
