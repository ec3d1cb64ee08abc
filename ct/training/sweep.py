"""A sweep on Ray Tune: a list of trials that follows from the seed alone, each a short training judged by log loss."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ct.errors import TrainingFailed
from ct.ids import canonical, sha256
from ct.training.data import TrainingSet
from ct.training.declare import Search, Torch, source_folder
from ct.training.determinism import ENVIRONMENT


@dataclass(frozen=True)
class Trial:
    """One setting tried. `metric` is the log loss on the judging rows (infinite when the trial failed); `state` "finished" or "failed"."""

    params: Mapping[str, Any]
    metric: float
    state: str = field(default="finished")


def settings(searches: Mapping[str, Search], trials: int, seed: int) -> tuple[dict[str, Any], ...]:
    """The settings to try: the first is every search's middle, the others are drawn. The same seed gives the same list."""
    drawn = [{name: search.middle() for name, search in searches.items()}]
    random = np.random.Generator(np.random.Philox(key=[seed, 1]))
    while len(drawn) < trials:
        drawn.append({name: _draw(search, random) for name, search in sorted(searches.items())})
    return tuple(drawn[:trials])


def _draw(search: Search, random: np.random.Generator) -> Any:
    if search.choices:
        return search.choices[int(random.integers(len(search.choices)))]
    if search.log:
        return float(math.exp(random.uniform(math.log(search.low), math.log(search.high))))
    return float(random.uniform(search.low, search.high))


def sweep(
    train: Path,
    judge: Path,
    model: Torch,
    *,
    trials: int,
    seed: int,
    parallel: int,
    on_trial: Callable[[Trial], None],
    done: Mapping[str, float],
) -> tuple[Trial, ...]:
    """Try settings and return the trials in their fixed order. `done` maps the hash of settings that an earlier, killed sweep
    finished to their metric; they are not run again. `on_trial` is told of every new trial, in fixed order, once all have ended.
    """
    wanted = settings(model.searches(), trials, seed)
    open_ = [params for params in wanted if sha256(canonical(params)) not in done]
    found = _tune(train.resolve(), judge.resolve(), model, open_, parallel) if open_ else {}
    made = []
    for params in wanted:
        key = sha256(canonical(params))
        if key in done:
            made.append(Trial(params, done[key]))
        else:
            trial = found.get(key, Trial(params, math.inf, "failed"))
            on_trial(trial)
            made.append(trial)
    if not any(trial.state == "finished" for trial in made):
        raise TrainingFailed("every trial of the sweep failed", "at least one that ends", "train once by hand to see the fault")
    return tuple(made)


def _tune(train: Path, judge: Path, model: Torch, wanted: list[dict[str, Any]], parallel: int) -> dict[str, Trial]:
    import os

    from ray import tune

    environment = {
        **ENVIRONMENT,
        "PYTHONPATH": os.pathsep.join([str(source_folder(model.model)), os.environ.get("PYTHONPATH", "")]),
    }
    with tempfile.TemporaryDirectory(prefix="ct-sweep-") as folder:
        tuner = tune.Tuner(
            tune.with_resources(try_one, {"cpu": 1}),
            param_space={"params": tune.grid_search(wanted), "train": str(train), "judge": str(judge), "model": model},
            tune_config=tune.TuneConfig(max_concurrent_trials=parallel),
            run_config=tune.RunConfig(storage_path=folder, verbose=0, worker_runtime_env={"env_vars": environment})
            if "worker_runtime_env" in tune.RunConfig.__dataclass_fields__
            else tune.RunConfig(storage_path=folder, verbose=0),
        )
        results = tuner.fit()
        trials = {}
        for result in results:
            if result.error is None and result.metrics and math.isfinite(result.metrics["log_loss"]):
                params = result.metrics["config"]["params"]
                trials[sha256(canonical(params))] = Trial(params, float(result.metrics["log_loss"]))
    return trials


def try_one(config: dict[str, Any]) -> None:
    """One trial: train in this process and report the log loss on the judging rows."""
    import torch
    from ray import tune

    from ct.training.worker import _State

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    model: Torch = config["model"].resolved(config["params"])
    state = _State(model, TrainingSet.open(Path(config["train"])), 0, 1)
    while state.epoch < model.epochs:
        state.run_epoch()
    rows = TrainingSet.open(Path(config["judge"]))
    state.module.eval()
    with torch.no_grad():
        logits = state.module(torch.from_numpy(np.array(rows.numeric)), torch.from_numpy(np.array(rows.category)))
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.from_numpy(np.array(rows.label)))
    tune.report({"log_loss": float(loss)})
