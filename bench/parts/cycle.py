"""How long a retrain cycle takes on a warm controller, on the demo's flights: January to March are known, then April lands. Real actor, real Ray.

`trigger_to_first_step_s` is from the start of the run to the first optimizer step, `cycle_s` from the new files to the gate's verdict. The
other figures say where the time goes.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
GOALS = {"trigger_to_first_step_s": ["<=", 3], "trigger_to_first_step_two_workers_s": ["<=", 6], "cycle_s": ["<=", 20]}


def measure(quick: bool) -> tuple[dict[str, float], dict[str, list[Any]], dict[str, Any]]:
    """Figures, goals and conditions. `quick` measures one cycle with one worker; else there is a second one with two."""
    sys.path[:0] = [str(ROOT / "examples")]
    home = Path(tempfile.mkdtemp(prefix="ctc", dir="/tmp"))
    try:
        return _measured(home, quick)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _measured(home: Path, quick: bool) -> tuple[dict[str, float], dict[str, list[Any]], dict[str, Any]]:
    import ray

    import shards
    from ct import settings
    from ct.control.act import Actor
    from ct.pipeline import load
    from ct.training import warm

    months = shards.write(home / "shards")
    place = settings.load(home, environ={})
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=300_000_000,
        log_to_driver=False,
        namespace="ct",
        _temp_dir=str(home / "ray"),
    )
    act = Actor(load(str(ROOT / "examples" / "flights.py")), place, actor="bench")
    try:
        warm.start()
        for name in ("weather", "flights"):
            for month in (1, 2, 3):
                act.ingest(name, months[name][month])
        act.train(act.start_run("the first model"))
        figures = _cycle(act, months, 4, 0)
        if not quick:
            warm.start(2)
            time.sleep(20)  # a controller that is warm has started its group long ago
            two = _cycle(act, months, 5, 2)
            figures["trigger_to_first_step_two_workers_s"] = two["trigger_to_first_step_s"]
            figures["group_to_first_step_s"] = two["call_to_first_step_s"]
    finally:
        act.close()
        ray.shutdown()
    goals = {name: goal for name, goal in GOALS.items() if name in figures}
    return figures, goals, {"cycle": "flights, three months known, one lands; model as in examples/flights.py"}


def _cycle(act: Any, months: Any, month: int, workers: int) -> dict[str, float]:
    """One month lands and is trained on with `workers`."""
    marks: list[tuple[str, float]] = []
    begun = time.time()
    for name in ("weather", "flights"):
        act.ingest(name, months[name][month])
    triggered = time.time()
    run = act.start_run("a new month")
    version = act.train(run, workers=workers, on_step=lambda text: marks.append((text, time.time())))
    ended = time.time()
    lines = [json.loads(line) for line in _progress(act, run).read_text().splitlines()]
    first = next(line["began"] for line in lines if "began" in line)
    at = {text.split(",")[0]: when for text, when in reversed(marks)}
    print(f"{version.name}, verdict {version.verdict}: " + ", ".join(f"{text} at {when - begun:.1f} s" for text, when in marks))
    return {
        "trigger_to_first_step_s": first - triggered,
        "cycle_s": ended - begun,
        "ingest_s": triggered - begun,
        "features_s": at["training"] - triggered,
        "call_to_first_step_s": first - at["training"],
        "steps_s": at["export"] - first,
        "export_s": at["evaluation"] - at["export"],
        "evaluation_s": ended - at["evaluation"],
    }


def _progress(act: Any, run: Any) -> Path:
    return Path(act.settings.home, "training", str(run.id), "progress.jsonl")


if __name__ == "__main__":
    print(json.dumps(measure("--quick" in sys.argv), indent=1))
