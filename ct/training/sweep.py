"""A sweep on Ray Tune: a list of trials that follows from the seed alone, each a training without checkpoints, judged by log loss."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ct.errors import TrainingFailed
from ct.ids import canonical, sha256
from ct.objectives import BINARY, Objective
from ct.training import warm
from ct.training.declare import Search, Torch, pickled, unpickled

WORST = 1e9


@dataclass(frozen=True)
class Trial:
    """One setting tried. `metric` is the mean loss on the judging rows (1e9 when the trial failed); `state` "finished" or "failed"."""

    params: Mapping[str, Any]
    metric: float
    state: str = "finished"


def settings(searches: Mapping[str, Search], trials: int, seed: int) -> tuple[dict[str, Any], ...]:
    """The settings to try: the first is every search's middle, the others are drawn. The same seed gives the same list, a longer
    list begins with the shorter one, and no setting comes twice."""
    random = np.random.Generator(np.random.Philox(key=[seed, 1]))
    found = {_key(middle): middle for middle in [{name: search.middle() for name, search in searches.items()}]}
    for _ in range(20 * trials):
        if len(found) >= trials:
            break
        drawn = {name: search.at(float(random.random())) for name, search in sorted(searches.items())}
        found.setdefault(_key(drawn), drawn)
    return tuple(found.values())[:trials]


def sweep(
    train: Path,
    judge: Path,
    model: Torch,
    *,
    objective: Objective = BINARY,
    trials: int,
    seed: int,
    parallel: int,
    on_trial: Callable[[Trial], None],
    done: Mapping[str, float],
) -> tuple[Trial, ...]:
    """Try settings, `parallel` at a time on one CPU each, and return the trials in their fixed order.

    `done` maps the hash of settings that an earlier, killed sweep finished to their metric; they are not run again. `on_trial` is
    told of each new trial as soon as it ends. Raises TrainingFailed when no trial finished, Unavailable without Ray.
    """
    wanted = settings(model.searches(), trials, seed)
    metrics = dict(done)
    with tempfile.TemporaryDirectory(prefix="ct-sweep-") as folder:
        progress = Path(folder) / "trials.jsonl"

        def note(line: Mapping[str, Any]) -> None:
            if (key := _key(line["params"])) not in metrics:
                metrics[key] = line["metric"]
                on_trial(_trial(line["params"], line["metric"]))

        if missing := [params for params in wanted if _key(params) not in metrics]:
            args = (*pickled(model), objective, str(train.resolve()), str(judge.resolve()), missing, parallel, folder)
            for params in warm.call(_tune, *args, progress=progress, on_progress=note):
                note({"params": params, "metric": WORST})
    made = tuple(_trial(params, metrics[_key(params)]) for params in wanted)
    if all(trial.state == "failed" for trial in made):
        raise TrainingFailed("every trial of the sweep failed", "at least one that ends", "train once by hand to see the fault")
    return made


def _key(params: Mapping[str, Any]) -> str:
    return sha256(canonical(dict(params)))


def _trial(params: Mapping[str, Any], metric: float) -> Trial:
    return Trial(params, metric, "finished" if metric < WORST else "failed")


def _tune(
    model: bytes,
    paths: tuple[str, ...],
    objective: Objective,
    train: str,
    judge: str,
    wanted: Sequence[dict[str, Any]],
    parallel: int,
    folder: str,
) -> list[dict[str, Any]]:
    """Runs in the warm process, whose environment the trials inherit. Returns the settings whose trial failed."""
    from ray import tune

    from ct.training.loop import tell

    class Told(tune.Callback):
        def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
            metric = result["log_loss"]
            line = {"params": json.loads(result["config"]["params"]), "metric": metric if math.isfinite(metric) else WORST}
            tell(Path(folder) / "trials.jsonl", line)

    space = {
        "params": tune.grid_search([canonical(params) for params in wanted]),
        "model": model,
        "paths": paths,
        "objective": objective,
        "train": train,
        "judge": judge,
    }
    tuner = tune.Tuner(
        tune.with_resources(_trainable(), {"cpu": 1}),
        param_space=space,
        # One process tries several settings: importing torch anew for each would cost more than a short training.
        tune_config=tune.TuneConfig(max_concurrent_trials=parallel, reuse_actors=True),
        run_config=tune.RunConfig(storage_path=folder, verbose=0, callbacks=[Told()]),
    )
    results = tuner.fit()
    failed = [results[at] for at in range(len(results)) if results[at].error is not None]
    return [json.loads(result.config["params"]) for result in failed if result.config]


def _trainable() -> type[Any]:
    from ray import tune

    class Attempt(tune.Trainable):
        def setup(self, config: dict[str, Any]) -> None:
            self.now = config

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.now = new_config
            return True

        def step(self) -> dict[str, Any]:
            return {"log_loss": attempt(self.now), "done": True}

        def save_checkpoint(self, folder: str) -> None:
            """Nothing: a trial is short, and starts anew."""

    return Attempt


def attempt(config: Mapping[str, Any]) -> float:
    """One trial in this process: train, and give the mean loss on the judging rows; infinite when it diverged."""
    from ct.training import building, determinism, loop

    declared = unpickled(config["model"], config["paths"]).resolved(json.loads(config["params"]))
    bytes_, paths = pickled(declared)
    objective = config["objective"]
    outcome = loop.run(loop.Job(config["train"], bytes_, paths, identity="", objective=objective), determinism.Group())
    if outcome.diverged_at >= 0:
        return math.inf
    return building.mean_loss(declared, objective, outcome.weights, Path(config["judge"]))
