"""Trains a declared model on Ray Train: in this driver's warm process, or on a group of CPU or GPU workers, with the same bytes as result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ct.errors import CtError, TrainingFailed
from ct.ids import describe, fingerprint
from ct.objectives import BINARY, Objective
from ct.training import checkpoint, warm
from ct.training.declare import Torch, pickled, unpickled
from ct.training.determinism import ENVIRONMENT

Progress = Callable[[Mapping[str, Any]], None]
MAX_FAILURES = 3
COLLECTIVE_TIMEOUT_S = 300


@dataclass(frozen=True)
class Trained:
    """A trained model: its state by name, SHA-256 over it, the numeric contract, one entry an epoch, and the step it resumed from."""

    weights: Mapping[str, NDArray[Any]]
    digest: str
    contract: Mapping[str, Any]
    history: tuple[Mapping[str, Any], ...]
    resumed: int = 0


def train(
    folder: Path,
    model: Torch,
    *,
    objective: Objective = BINARY,
    stop: Path | None = None,
    start: Mapping[str, NDArray[Any]] | None = None,
    workers: int = 0,
    gpu: bool = False,
    run: str,
    storage: Path,
    checkpoints: bool = True,
    on_progress: Progress | None = None,
) -> Trained:
    """Train `model` (without searches) on the set saved in `folder`. `workers` 0 trains in the warm local process.

    `stop` holds the set on which `patience` looks. `start` are weights to begin with, by name; those it lacks begin as the module says.

    `run` names the run below `storage`; a run that was killed and is called again goes on from its newest checkpoint and ends with the
    same bytes. Both folders must be reachable from every worker. With `gpu` each worker takes one GPU, at least one worker.
    `on_progress` gets {"epoch", "loss", "steps", "rows", "epochs"} after each epoch.
    Raises TrainingFailed when the loss is no number or the model cannot be built, Unavailable without Ray.
    """
    if model.searches():
        raise TrainingFailed(f"the model still searches {sorted(model.searches())}", "values", "call resolved() first")
    count = max(workers, 1) if gpu else workers
    if count > model.shards:
        raise TrainingFailed(
            f"{count} workers for {model.shards} logical shards", f"at most {model.shards} workers", "use fewer, or more shards"
        )
    home = storage.resolve() / run
    home.mkdir(parents=True, exist_ok=True)
    progress = home / "progress.jsonl"
    progress.unlink(missing_ok=True)
    args = (job_of(folder, model, objective, stop=stop, start=start), count, gpu, run, str(storage.resolve()), checkpoints)
    outcome = warm.call(_fit, *args, progress=progress, on_progress=on_progress)
    if outcome.diverged_at >= 0:
        raise TrainingFailed(
            f"the run diverged at step {outcome.diverged_at}: its loss is no number",
            "a finite loss",
            "lower lr or look for odd values",
        )
    return Trained(outcome.weights, checkpoint.digest(outcome.weights), outcome.contract, outcome.history, outcome.resumed)


def job_of(
    folder: Path,
    model: Torch,
    objective: Objective = BINARY,
    *,
    stop: Path | None = None,
    start: Mapping[str, NDArray[Any]] | None = None,
) -> Any:
    """The job for workers: reading it needs nothing but `ct` and the folder of the user's module."""
    from ct.training.loop import Job

    code, paths = pickled(model)
    return Job(
        folder=str(folder.resolve()),
        model=code,
        paths=paths,
        identity=fingerprint([describe(model), describe(objective), checkpoint.digest(start or {})]),
        objective=objective,
        stop=str(stop.resolve()) if stop else "",
        start=dict(start or {}),
    )


def raw(folder: Path, model: Torch, objective: Objective, weights: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
    """A trained model's raw outputs, [n] or [n, k], for the rows saved in `folder`, computed in the warm process."""
    found: NDArray[np.float64] = warm.call(_raw, *pickled(model), objective, dict(weights), str(folder.resolve()))
    return found


def _raw(model: bytes, paths: tuple[str, ...], objective: Objective, weights: dict[str, Any], folder: str) -> Any:
    from ct.training import building

    return building.raw(unpickled(model, paths), objective, weights, Path(folder))


def _fit(job: Any, workers: int, gpu: bool, run: str, storage: str, checkpoints: bool) -> Any:
    """Runs in the warm process."""
    import dataclasses

    from ray import train as ray_train
    from ray.train import torch as ray_torch

    from ct.training import building
    from ct.training.data import TrainingSet

    home = Path(storage) / run
    folder = str(home / "checkpoints") if checkpoints else ""
    job = dataclasses.replace(job, checkpoints=folder, progress=str(home / "progress.jsonl"))
    if workers:  # a model that cannot be built is found here, before workers are started for it
        building.build(unpickled(job.model, job.paths), TrainingSet.open(Path(job.folder))[0], job.objective)
    # Ray's annotations are still those of Train v1; what runs is v2.
    v2: Any = ray_train
    torch_v2: Any = ray_torch
    trainer = torch_v2.TorchTrainer(
        _worker,
        train_loop_config={"job": job, "gpu": gpu},
        scaling_config=v2.ScalingConfig(num_workers=workers, use_gpu=gpu),
        torch_config=torch_v2.TorchConfig(backend="nccl" if gpu else "gloo", timeout_s=COLLECTIVE_TIMEOUT_S),
        run_config=v2.RunConfig(
            name=run,
            storage_path=storage,
            failure_config=v2.FailureConfig(max_failures=MAX_FAILURES),
            worker_runtime_env={"env_vars": dict(ENVIRONMENT)},
        ),
    )
    try:
        return trainer.fit().return_value
    except Exception as error:
        raise _failed(error) from error


def _failed(error: BaseException) -> CtError:
    """What stopped a run, from inside Ray's wrappings: an error of `ct` as it is, anything else as a failed training."""
    seen = error
    for _ in range(10):
        failures = getattr(seen, "worker_failures", None)
        inner = next(iter(failures.values())) if failures else getattr(seen, "cause", None) or seen.__cause__
        if isinstance(seen, CtError) or inner is None:
            break
        seen = inner
    if isinstance(seen, CtError):
        return seen
    return TrainingFailed(
        f"training stopped with {type(seen).__name__}: {seen}",
        "a run to its end",
        "mend the cause and call it again; it goes on",
    )


def _worker(config: dict[str, Any]) -> Any:
    """Runs in each worker, and in the warm process in local mode. Our own checkpoints are in place before a report says so."""
    import ray.train

    from ct.training import determinism, loop

    context = ray.train.get_context()
    device = "cuda" if config["gpu"] else "cpu"
    group = determinism.Group(context.get_world_rank(), context.get_world_size(), device, ray.train.report)
    return loop.run(config["job"], group)
