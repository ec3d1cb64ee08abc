"""The deeds of a soak, done by a seeded plan to a served project under load; its history judged at the end. bench/soak.py tells the story."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from bench.parts import history
from bench.parts.asking import Clients
from bench.parts.served import ENDPOINT, Served

DEEDS = {
    "upgrade": 30,
    "step": 25,
    "promote": 12,
    "roll_back": 15,
    "undo": 6,
    "commit": 6,
    "kill_replica": 4,
    "kill_controller": 1,
    "kill_control": 1,
}
"""What happens, and how often beside the others."""
PAUSE_SECONDS, SAMPLE_SECONDS, WARM_SECONDS = 0.7, 2.0, 60.0


@dataclass
class Result:
    """What a soak met: contradictions in words, figures, and how often each deed was done."""

    broken: list[str]
    figures: dict[str, float]
    deeds: Counter[str]


@dataclass
class Plan:
    """The seeded hand that does to a served project what life does."""

    found: Served
    chance: random.Random
    made: int = 0
    deeds: Counter[str] = field(default_factory=Counter)

    def do(self) -> None:
        """One deed; what cannot be done now is not done."""
        name = self.chance.choices(list(DEEDS), list(DEEDS.values()))[0]
        self.deeds[name] += bool(getattr(self, f"_{name}")())

    def _upgrade(self) -> bool:
        if self.found.route.canary is not None:
            return False
        self.made += 1
        arm = self.found.version(f"s{self.made}", self.chance.uniform(-1, 1))
        with suppress(RuntimeError):
            self.found.do("stage", version=arm.version, manifest=arm.manifest)
        shadow = self.chance.random() < 0.3
        weight = 0 if shadow else self.chance.choice((500, 1_000, 3_000))
        self.found.switch(self.found.route.with_canary(arm, weight=weight, shadow=shadow), cause="soak: upgrade")
        return True

    def _step(self) -> bool:
        route = self.found.route
        if route.canary is None:
            return False
        weight = min(10_000, route.weight + self.chance.choice((1_000, 2_500, 5_000)))
        self.found.switch(route.with_canary(route.canary, weight=weight), cause="soak: step")
        return True

    def _promote(self) -> bool:
        route = self.found.route
        if route.canary is None:
            return False
        self.found.switch(route.promoted(), cause="soak: promote")
        return True

    def _roll_back(self) -> bool:
        route = self.found.route
        if route.canary is None:
            return False
        self.found.switch(route.without_canary(), cause="soak: roll back")
        return True

    def _undo(self) -> bool:
        """Back to any version that there was."""
        arm = self.found.arms[self.chance.choice(sorted(self.found.arms))]
        self.found.switch(replace(self.found.route.without_canary(), stable=arm), cause="soak: undo")
        return True

    def _commit(self) -> bool:
        from ct.data import predictions
        from ct.data.tables import Warehouse

        return predictions.commit(self.found.place, Warehouse(self.found.place)) > 0

    def _kill_replica(self) -> bool:
        """Never the last one that answers: all must be there. Nor the oldest, whose memory is measured over its whole life."""
        if len(self.found.processes("replica")) < self.found.replicas:
            return False
        try:
            if len(self.found.do("state")) < self.found.replicas:
                return False
        except RuntimeError:
            return False
        return self.found.kill("replica", self.chance.randrange(1, self.found.replicas)) > 0

    def _kill_controller(self) -> bool:
        return self.found.kill("controller") > 0

    def _kill_control(self) -> bool:
        return self.found.kill("control") > 0


def soak(found: Served, seconds: float, *, seed: int, rate: float = 40.0, at_least: Sequence[str] = ()) -> Result:
    """Live for `seconds`, then check. The deeds named in `at_least` are done in any case, in the middle."""
    plan, memory, over = Plan(found, random.Random(seed)), dict[int, list[tuple[float, int]]](), threading.Event()
    watching = threading.Thread(target=_watch, args=(found, memory, over), daemon=True)
    watching.start()
    first, begun = found.route.epoch, time.monotonic()
    with Clients(found.place.port, found.row, rate, seed=seed, labels=True) as clients:
        wanted = list(at_least)
        while (gone := time.monotonic() - begun) < seconds:
            if wanted and gone > seconds * (len(at_least) - len(wanted) + 1) / (len(at_least) + 2):
                plan.deeds[wanted[0]] += bool(getattr(plan, f"_{wanted.pop(0)}")())
            else:
                plan.do()
            if not plan.deeds.total() % 10 and gone > seconds / 10:
                print(f"{gone:.0f} s, epoch {found.route.epoch}, {len(clients.calls)} calls, {dict(plan.deeds)}", flush=True)
            if not found.processes("control") and plan.chance.random() < 0.3:
                with suppress(RuntimeError):
                    found.control()
            time.sleep(plan.chance.expovariate(1 / PAUSE_SECONDS))
    over.set()
    watching.join()
    found.whole()
    return _judged(found, clients, plan, memory, first)


def _watch(found: Served, memory: dict[int, list[tuple[float, int]]], over: threading.Event) -> None:
    while not over.wait(SAMPLE_SECONDS):
        for pid, size in found.resident().items():
            memory.setdefault(pid, []).append((time.monotonic(), size))


def _judged(
    found: Served, clients: Clients, plan: Plan, memory: Mapping[int, Sequence[tuple[float, int]]], first: int
) -> Result:
    import numpy as np

    from ct.data import predictions
    from ct.errors import CtError
    from ct.registry import routes

    known = {live.route.epoch: live.route for live in routes.history(found.journal, ENDPOINT)}
    mine = {call.key for call in clients.calls}
    log = [
        record
        for record in predictions.everything(found.place)
        if record["kind"] == "label" or (record["epoch"] >= first and str(record["key"]).startswith(f"{clients.seed}-"))
    ]
    broken = history.broken(clients.calls, log, known, found.expected)
    try:
        found.journal.verify()
    except CtError as error:
        broken.append(f"the journal: {error}")
    failed = sum(call.failed for call in clients.calls)
    slope, level = _slope(memory)
    late = [call.ended - call.due for call in clients.calls if not call.failed]
    figures = {
        "broken_invariants": len(broken),
        "calls": len(mine),
        "failed_requests": failed,
        "failed_fraction": round(failed / max(1, len(clients.calls)), 6),
        "retried_requests": sum(bool(call.faults) and not call.failed for call in clients.calls),
        "labels": sum(call.label is not None for call in clients.calls),
        "epochs": len(known) - first,
        "rss_slope_mib_per_h": round(slope * 3600 / 2**20, 2),
        "rss_growth_30m": round(1 + slope * 1800 / level, 4),
        "request_p50_ms": round(float(np.median(late)) * 1000, 2),
        "request_p99_ms": round(float(np.quantile(late, 0.99)) * 1000, 2),
    }
    return Result(broken, figures, plan.deeds)


def _slope(memory: Mapping[int, Sequence[tuple[float, int]]]) -> tuple[float, float]:
    """Bytes a second that replicas grow by, within each process and after its first minute, and their mean size. 0, 1 where none lived longer."""
    import numpy as np

    up, across, sizes = 0.0, 0.0, list[float]()
    for samples in memory.values():
        warm = np.array([sample for sample in samples if sample[0] > samples[0][0] + WARM_SECONDS], dtype=float)
        if len(warm) > 2:
            moved = warm - warm.mean(axis=0)
            up, across = up + float(moved[:, 0] @ moved[:, 1]), across + float(moved[:, 0] @ moved[:, 0])
            sizes.append(float(warm[:, 1].mean()))
    return (up / across, float(np.mean(sizes))) if sizes else (0.0, 1.0)
