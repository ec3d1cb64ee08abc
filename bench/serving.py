"""ct's endpoint with a 10 % canary and its log on, beside: the bare deployment and the router pattern on the same Serve, and four peers.

`ct` is asked through Serve's HAProxy, as bare and router are; `direct` is the same replicas on their own port (`direct_port`), as the peers are.
All score the same rows with the same ONNX model, two processes each; the scores are compared before anything is measured. Load comes from a
process of its own (parts/load.py): closed loop with 1, 8 and 64 connections, and open loop, where latency counts from the moment that was
meant. The sides take turns, several rounds, medians. Then: a shadow that hangs, three times the peak load, and the time back to normal.

The peers' environments are made once, in build/peers (git-ignored): for NAME in mlflow bentoml litserve fastapi
`python3.11 -m venv build/peers/NAME && build/peers/NAME/bin/pip install NAME 'uvicorn[standard]' onnxruntime orjson numpy`. One that is
missing is left out. `--quick` measures ct, bare and router only, shortly.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[0] = str(ROOT)  # not this folder, whose profile.py would stand for the one of Python
REPLICAS = 2
ROWS = 500
GOALS: dict[str, list[Any]] = {
    "throughput_vs_bare": [">=", 0.90],
    "p50_vs_bare": ["<=", 1.15],
    "p99_vs_bare": ["<=", 1.15],
    "throughput_vs_router": [">=", 3],
    **{f"throughput_vs_{name}": [">=", 1.0] for name in ("mlflow", "bentoml", "litserve", "fastapi")},
    "shadow_hang_p99": ["<=", 1.05],
    "goodput_at_3x": [">=", 0.8],
    "recovery_s": ["<=", 10],
}
SLOW = """
import time

import ct


@ct.feature("distance")
def distance(values):
    time.sleep(100_000)
    return values


trips = ct.Table("trips", key="trip", time="leaves")
pipeline = ct.Pipeline(
    name="tiny", table=trips, label=ct.Label("late", above=15, known_at="arrives"), features=[distance],
    model=ct.Torch("MLP"), gate=ct.Gate(beats=ct.auc(by=0.0), floors=[ct.auc(0.5)]), rollout=ct.Shadow(),
)
"""


def main() -> None:
    """Measure and print; the last line is the result as JSON."""
    quick = "--quick" in sys.argv
    with tempfile.TemporaryDirectory(prefix="ctb", dir="/tmp", ignore_cleanup_errors=True) as folder, ExitStack() as running:
        bench = Bench(Path(folder), running, seconds=1.0 if quick else 4.0, rounds=1 if quick else 5, quick=quick)
        print(json.dumps(bench.measure()))


class Bench:
    """One run. `running` ends what it starts."""

    def __init__(self, folder: Path, running: ExitStack, *, seconds: float, rounds: int, quick: bool) -> None:
        from bench.parts import served
        from bench.parts.sides import Side, first

        self._folder, self._running, self._seconds, self._rounds, self._quick = folder, running, seconds, rounds, quick
        from ct.serving.local import free_port

        project, direct = folder / "project", free_port()
        project.mkdir()
        (project / "ct.toml").write_text(f"direct_port = {direct}\n")
        self._served = running.enter_context(served.served(REPLICAS, project))
        self._rows = [self._served.row(f"t{at}", at) for at in range(ROWS)]
        port = self._served.place.port
        self._ct = Side(port, "/predict", score=first)
        self._direct = Side(direct, "/predict", score=first)
        self._sides = {"ct": self._ct, "direct": self._direct, "bare": Side(port, "/bare"), "router": Side(port, "/router")}

    def measure(self) -> dict[str, Any]:
        """All figures."""
        self._begin()
        figures = self._closed()
        figures |= self._open(figures["ct_peak_per_s"])
        figures |= self._hang()
        figures |= self._overload(figures["ct_peak_per_s"])
        conditions = {
            "rows": ROWS,
            "cores": os.cpu_count(),
            "seconds": self._seconds,
            "rounds": self._rounds,
            "sides": list(self._sides),
            "versions": {name: installed(name) for name in ("ray", "onnxruntime", "uvicorn", "orjson")},
        }
        figures = {name: round(value, 4) for name, value in figures.items()}
        return {"bench": "serving", "figures": figures, "goals": {name: GOALS[name] for name in GOALS if name in figures}, "conditions": conditions}  # fmt: skip

    def _begin(self) -> None:
        """A 10 % canary of the same model; the other sides; the same scores everywhere."""
        served, model = self._served, self._folder / "model"
        model.mkdir()
        from bench.parts.served import _tiny
        from ct.registry import files

        made = _tiny().model_files("v1")
        (model / "model.onnx").write_bytes(made[files.ONNX])
        (model / "encoder.json").write_bytes(made[files.ENCODER])
        served.switch(served.route.with_canary(served.version("v2", 0.0), weight=1000), cause="bench")
        served.whole()
        command = [
            sys.executable,
            str(ROOT / "bench" / "parts" / "beside.py"),
            str(served.place.root),
            str(model),
            str(REPLICAS),
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=180)
        if not self._quick:
            self._peers(model)
        for row in self._rows[:30]:
            expected = served.expected("v1", row)
            for name, side in self._sides.items():
                found = side.ask(row)
                assert math.isclose(found, expected, rel_tol=1e-6), (name, found, expected)
        print(f"{', '.join(self._sides)} give the same scores", flush=True)

    def _peers(self, model: Path) -> None:
        from bench.parts.sides import NAMES, peer
        from ct.serving.local import free_port

        for name in NAMES:
            side = self._running.enter_context(peer(name, free_port(), model, self._folder))
            if side is not None:
                self._sides[name] = side

    def _closed(self) -> dict[str, float]:
        """Closed loop: throughput with 64 clients, and latencies with 1, 8 and 64, as medians of each round's ratio to ct."""
        figures: dict[str, float] = {}
        for connections in (1, 64) if self._quick else (1, 8, 64):
            found: dict[str, list[dict[str, Any]]] = {name: [] for name in self._sides}
            for number in range(self._rounds + 1):
                for name, side in self._sides.items():
                    got = side.load(self._rows, connections, self._seconds if number else 0.5).result()
                    assert set(got["codes"]) <= {"200"}, (name, got)
                    if number:  # the first is for warming up
                        found[name].append(got)
            told = {name: {key: _median(some, key) for key in ("per_s", "p50_ms", "p99_ms")} for name, some in found.items()}
            for name, some in told.items():
                print(
                    f"{connections} clients, {name}: {some['per_s']:.0f} requests/s, "
                    f"p50 {some['p50_ms']:.2f} ms, p99 {some['p99_ms']:.2f} ms",
                    flush=True,
                )
            for key in ("p50_ms", "p99_ms"):
                figures[f"{key[:3]}_vs_bare_{connections}"] = _ratio(found["ct"], found["bare"], key)
            if connections == 64:
                figures["ct_peak_per_s"] = told["ct"]["per_s"]
                for name in self._sides.keys() - {"ct", "direct"}:
                    figures[f"throughput_vs_{name}"] = _ratio(found["ct"], found[name], "per_s")
                    figures[f"direct_vs_{name}"] = _ratio(found["direct"], found[name], "per_s")
            else:
                figures[f"throughput_vs_bare_{connections}"] = _ratio(found["ct"], found["bare"], "per_s")
        return figures

    def _open(self, peak: float) -> dict[str, float]:
        """Open loop at half of what ct can do: ct with its log durable and fast, and bare, in turn: their latencies under the same load."""
        found: dict[str, list[dict[str, Any]]] = {"ct": [], "ct, fast log": [], "bare": []}
        for _ in range(self._rounds):
            for name, some in found.items():
                self._log("fast" if name.endswith("fast log") else "durable")
                some.append(self._sides[name.partition(",")[0]].load(self._rows, 128, self._seconds, peak / 2).result())
        self._log("durable")
        for name, some in found.items():
            print(
                f"open loop, {peak / 2:.0f}/s, {name}: p50 {_median(some, 'p50_ms'):.2f}, p99 {_median(some, 'p99_ms'):.2f} ms",
                flush=True,
            )
        keys = ("p50_ms", "p99_ms")
        figures = {f"{key[:3]}_vs_bare": _ratio(found["ct"], found["bare"], key) for key in keys}
        return figures | {f"fast_{key[:3]}_vs_bare": _ratio(found["ct, fast log"], found["bare"], key) for key in keys}

    def _log(self, how: str) -> None:
        """Set the flag that says when an answer's records must be on disk, and wait until replicas have polled it."""
        from ct.registry import flags

        if flags.current(self._served.journal, "tiny").log != how:
            flags.set_(self._served.journal, "tiny", "log", how)
            time.sleep(2.5)

    def _hang(self) -> dict[str, float]:
        """Stable alone, and with a shadow at 100 % that never answers, in turn: the p99 of what stable answers."""
        from ct.registry.routes import Share

        served, hanging = self._served, self._hanging()
        took: dict[str, list[dict[str, Any]]] = {"alone": [], "hanging": []}
        for _ in range(self._rounds):
            for name, some in took.items():
                shares = (Share(hanging, 0, shadow=True),) if name == "hanging" else ()
                served.switch(served.route.with_candidates(shares), cause=name)
                served.whole()
                self._ct.load(self._rows, 8, 1.0).result()
                some.append(self._ct.load(self._rows, 8, self._seconds).result())
        served.switch(served.route.without_canary(), cause="bench")
        assert "ct_shadow_dropped_total" in self._metrics()
        ratio = _ratio(took["hanging"], took["alone"], "p99_ms")
        print(
            f"8 clients, p99 with a shadow that hangs {_median(took['hanging'], 'p99_ms'):.2f} ms, "
            f"without one {_median(took['alone'], 'p99_ms'):.2f} ms",
            flush=True,
        )
        return {"shadow_hang_p99": ratio}

    def _metrics(self) -> str:
        import urllib.request

        with urllib.request.urlopen(f"http://127.0.0.1:{self._ct.port}/metrics", timeout=20) as answer:
            return str(answer.read().decode())

    def _hanging(self) -> Any:
        """A version whose own feature never comes back."""
        from dataclasses import replace

        from bench.parts.served import _tiny
        from ct.features.declare import to_spec
        from ct.pipeline import load
        from ct.registry import files
        from ct.registry.files import ModelSpec
        from ct.registry.routes import Arm
        from ct.training.code import code_of

        path = self._folder / "line.py"
        path.write_text(SLOW)
        made = _tiny().model_files("slow")
        spec = ModelSpec.from_bytes(made[files.SPEC])
        spec = replace(spec, features=(to_spec(load(str(path)).features[0]), *spec.features[1:]))
        made |= {files.SPEC: spec.to_bytes(), files.CODE: code_of(None, path).to_bytes()}
        arm = Arm("slow", files.store(self._served.artifacts, made))
        self._served.do("stage", version=arm.version, manifest=arm.manifest)
        return arm

    def _overload(self, peak: float) -> dict[str, float]:
        """Three times the peak for some seconds: answers with 200 within a second, over the peak; then how long until half the peak is served as before."""
        found = self._ct.load(self._rows, 1000, max(3.0, self._seconds), 3 * peak).result()
        ended = time.monotonic()
        recovered = math.inf
        while time.monotonic() < ended + 30:
            begun = time.monotonic()
            got = self._ct.load(self._rows, 64, 1.0, peak / 2).result()
            if set(got["codes"]) == {"200"} and got["p99_ms"] < 250:
                recovered = begun - ended
                break
        print(
            f"3 x {peak:.0f}/s: {found['good_per_s']:.0f} good answers/s, codes {found['codes']}; {recovered:.1f} s to recover",
            flush=True,
        )
        return {"goodput_at_3x": found["good_per_s"] / peak, "recovery_s": min(recovered, 999.0)}


def _median(some: list[dict[str, Any]], key: str) -> float:
    return statistics.median(float(one[key]) for one in some)


def _ratio(ours: list[dict[str, Any]], theirs: list[dict[str, Any]], key: str) -> float:
    """The median over the rounds of one side's figure by the other's of the same round."""
    return statistics.median(float(mine[key]) / float(other[key]) for mine, other in zip(ours, theirs, strict=True))


if __name__ == "__main__":
    main()
