"""Training on Ray Train: one warm process that trains by itself or leads a group of workers. What is trained is in worker.py."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ct.errors import CtError, TrainingFailed
from ct.training import checkpoint
from ct.training.declare import Torch, source_folder
from ct.training.determinism import ENVIRONMENT

Progress = Callable[[Mapping[str, Any]], None]
POLL_SECONDS = 0.5
MAX_FAILURES = 3


@dataclass(frozen=True)
class Trained:
    """A trained model: weights by name, their digest, the numeric contract they were made under, and one report an epoch."""

    weights: Mapping[str, NDArray[Any]]
    digest: str
    contract: Mapping[str, Any]
    history: tuple[dict[str, Any], ...]


def train(
    folder: Path,
    model: Torch,
    *,
    workers: int = 0,
    gpu: bool = False,
    run: str,
    storage: Path,
    checkpoints: bool = True,
    on_progress: Progress | None = None,
) -> Trained:
    """Train `model` on the set in `folder`. 0 workers train in one process; more form a Ray Train group of at most `model.shards`.

    `storage/<run>` keeps the checkpoints: the same run called again goes on from the newest one and ends in the same bytes.
    Raises TrainingFailed when the loss diverges, the module cannot be built, or workers keep dying.
    """
    if workers > model.shards:
        raise TrainingFailed(f"{workers} workers", f"at most {model.shards}, one for each logical shard", "use fewer workers")
    place = (storage / run).resolve()
    place.mkdir(parents=True, exist_ok=True)
    final = checkpoint.newest(place / "final") if checkpoints else None
    if final is None:
        _run(folder.resolve(), model, workers, gpu, place, checkpoints, on_progress)
        final = checkpoint.newest(place / "final")
        if final is None:
            raise TrainingFailed(
                "training ended without a result", f"weights in {place}", "look at the run's log and train again"
            )
    contract = json.loads((place / "contract.json").read_text())
    return Trained(final.tensors, checkpoint.digest(final.tensors), contract, final.history)


def _run(
    folder: Path, model: Torch, workers: int, gpu: bool, place: Path, checkpoints: bool, on_progress: Progress | None
) -> None:
    import ray

    progress = place / "progress.jsonl"
    progress.unlink(missing_ok=True)
    config = {"folder": str(folder), "model": model, "storage": str(place), "checkpoints": checkpoints}
    pending = warm(model).fit.remote(config, workers, gpu)
    shown = 0
    while True:
        done, _ = ray.wait([pending], timeout=POLL_SECONDS)
        if on_progress is not None and progress.exists():
            lines = progress.read_text().splitlines()
            for line in lines[shown:]:
                on_progress(json.loads(line))
            shown = len(lines)
        if done:
            break
    try:
        fault = ray.get(pending)
    except ray.exceptions.RayError as error:
        raise TrainingFailed(
            f"the training process died: {type(error).__name__}",
            "a finished run",
            "train again; it goes on from its checkpoint",
        ) from error
    if fault:
        raise TrainingFailed(*fault)


class TrainingHost:
    """The warm process. Its environment fixes the numeric contract before torch is imported; it stays up between runs."""

    def __init__(self, source: str) -> None:
        sys.path.insert(0, source)
        import torch

        torch.set_num_threads(1)

    def fit(self, config: dict[str, Any], workers: int, gpu: bool) -> tuple[str, str, str] | None:
        """Run one training to its end. Returns found, expected, remedy of a failure that is the user's to mend, else None."""
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        from ct.training.worker import loop

        place = Path(config["storage"])
        environment = {
            **ENVIRONMENT,
            "PYTHONPATH": os.pathsep.join(filter(None, [sys.path[0], os.environ.get("PYTHONPATH", "")])),
        }
        trainer = TorchTrainer(
            loop,
            train_loop_config=config,
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpu and workers > 0),
            torch_config=TorchConfig(backend="nccl" if gpu else "gloo", timeout_s=120),
            run_config=RunConfig(
                name=place.name,
                storage_path=str(place.parent / ".ray"),
                failure_config=FailureConfig(max_failures=MAX_FAILURES),
                worker_runtime_env={"env_vars": environment},
            ),
        )
        try:
            trainer.fit()
        except BaseException as error:
            if fault := _fault(error):
                return fault
            raise
        return None

    def export(self, *args: Any) -> bytes:
        """See export.onnx; torch and its exporter are warm here."""
        from ct.training.export import onnx

        return onnx(*args)

    def pid(self) -> int:
        """The process's id."""
        return os.getpid()


def _fault(error: BaseException) -> tuple[str, str, str] | None:
    """The error of `ct` inside Ray's wrappings, None when there is none."""
    seen: BaseException | None = error
    for _ in range(10):
        if isinstance(seen, CtError):
            return seen.found, seen.expected, seen.remedy
        failures = getattr(seen, "worker_failures", None)
        seen = next(iter(failures.values())) if failures else getattr(seen, "cause", None) or getattr(seen, "__cause__", None)
        if seen is None:
            return None
    return None


def warm(model: Torch) -> Any:
    """The warm process of this cluster for the folder the model comes from, started if need be."""
    import ray

    source = str(source_folder(model.model))
    # It claims no CPU, so that on a laptop it can train beside a replica; on a cluster the workers of a group claim theirs.
    options = {
        "name": f"ct-training-{abs(hash(source)) % 10**8}",
        "get_if_exists": True,
        "num_cpus": 0,
        "runtime_env": {"env_vars": {**ENVIRONMENT, "RAY_TRAIN_V2_ENABLED": "1"}},
    }
    return ray.remote(TrainingHost).options(**options).remote(source)
