"""Trains a declared model on Ray Train: in this driver's warm process, or on a group of CPU or GPU workers, with the same bytes as result."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ct.errors import TrainingFailed
from ct.ids import describe, fingerprint
from ct.objectives import BINARY, Objective
from ct.settings import Workers
from ct.training import checkpoint, data, warm
from ct.training.declare import Torch, pickled, unpickled
from ct.training.watchdog import Watch

Progress = Callable[[Mapping[str, Any]], None]
CHECKPOINT_S = 30.0
HANG_S = 30.0


@dataclass(frozen=True)
class Trained:
    """A trained model: its state by name, SHA-256 over it, the numeric contract, one entry an epoch, and the step it resumed from.

    `best` is the epoch that early stopping chose, -1 where it did not choose. `notes` say what happened besides: a checkpoint passed
    over, a worker that hung.
    """

    weights: Mapping[str, NDArray[Any]]
    digest: str
    contract: Mapping[str, Any]
    history: tuple[Mapping[str, Any], ...]
    resumed: int = 0
    best: int = -1
    notes: tuple[str, ...] = ()


def train(
    folder: Path,
    model: Torch,
    *,
    objective: Objective = BINARY,
    stop: Path | None = None,
    start: Mapping[str, NDArray[Any]] | None = None,
    workers: Workers = 0,
    gpu: bool = False,
    run: str,
    storage: Path,
    checkpoints: bool = True,
    every_s: float = CHECKPOINT_S,
    every_steps: int = 0,
    hang_s: float = HANG_S,
    on_progress: Progress | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Trained:
    """Train `model` (without searches) on the set saved in `folder`. `workers` 0 trains in the warm local process.

    A number of workers is a group that is kept warm for the next run and reserves no CPU; (min, max) is an elastic group for this run,
    which reserves one CPU a worker and takes as many as the cluster has. With `gpu` each worker takes one GPU, at least one worker.
    `stop` holds the set on which `patience` looks. `start` are weights to begin with, by name; those it lacks begin as the module says.

    `run` names the run below `storage`; a run that was killed and is called again goes on from its newest checkpoint and ends with the
    same bytes. Both folders must be reachable from every worker. A checkpoint is written after each epoch, after `every_s` seconds and,
    if set, every `every_steps` steps. A worker that gives no sign of life for `hang_s` seconds is killed, and training goes on.
    `on_progress` gets {"epoch", "loss", "steps", "rows", "epochs"} after each epoch, with "stop_loss" where there is `stop`; `on_note`
    what is to be told besides. None of these changes a byte of the result.

    Raises TrainingFailed with the state "invalid" for rows that nothing can be learned from, with "diverged" when the loss is no
    number or explodes, else "failed"; Unavailable without Ray.
    """
    lowest, highest = checked(model, workers, gpu)
    if faults := data.faults(data.TrainingSet.open(folder)[0], objective):
        raise TrainingFailed("; ".join(faults), "rows to learn from", "look at the data, or at its contract", state="invalid")
    told = _Told.begun(storage.resolve() / run, on_progress, on_note)
    if model.patience and stop is None:
        told.note("patience has no rows to look at: all epochs are trained")
    job = replace(
        job_of(folder, model, objective, stop=stop, start=start),
        checkpoints=str(told.home / "checkpoints") if checkpoints else "",
        progress=str(told.progress),
        every_s=every_s,
        every_steps=every_steps,
        beats=str(told.beats),
    )
    count: Workers = highest if lowest == highest and not isinstance(workers, tuple) else (lowest, highest)
    watch = Watch(told.beats, hang_s, told.note)
    outcome = warm.call(_fit, job, count, gpu, progress=told.progress, on_progress=told.line, watch=watch.look)
    return _trained(outcome, told.notes)


@dataclass(frozen=True)
class _Told:
    """What is told of a run while it goes on, and the files in its folder by which it is."""

    home: Path
    on_progress: Progress | None
    on_note: Callable[[str], None] | None
    notes: list[str] = field(default_factory=list)

    @staticmethod
    def begun(home: Path, on_progress: Progress | None, on_note: Callable[[str], None] | None) -> _Told:
        """Nothing yet: what an earlier attempt told is gone."""
        told = _Told(home, on_progress, on_note)
        home.mkdir(parents=True, exist_ok=True)
        told.progress.unlink(missing_ok=True)
        shutil.rmtree(told.beats, ignore_errors=True)
        return told

    @property
    def progress(self) -> Path:
        return self.home / "progress.jsonl"

    @property
    def beats(self) -> Path:
        return self.home / "beats"

    def note(self, text: str) -> None:
        self.notes.append(text)
        (self.on_note or logging.getLogger("ct.training").warning)(text)

    def line(self, said: Mapping[str, Any]) -> None:
        if "note" in said:
            (self.on_note or logging.getLogger("ct.training").info)(str(said["note"]))
        elif "epoch" in said and self.on_progress:
            self.on_progress(said)


def _trained(outcome: Any, notes: list[str]) -> Trained:
    """The outcome of a loop for who asked. Raises TrainingFailed for a run that diverged."""
    if outcome.fault:
        raise TrainingFailed(
            f"the run diverged at step {outcome.diverged_at}: {outcome.fault}",
            "a finite loss that does not explode",
            "lower lr, set clip, or look for odd values",
            state="diverged",
        )
    digest = checkpoint.digest(outcome.weights)
    told = (*notes, *outcome.notes)
    return Trained(outcome.weights, digest, outcome.contract, outcome.history, outcome.resumed, outcome.best, told)


def checked(model: Torch, workers: Workers, gpu: bool) -> tuple[int, int]:
    """The least and the most workers. Raises TrainingFailed for numbers or a model that cannot be trained with."""
    if model.searches():
        raise TrainingFailed(f"the model still searches {sorted(model.searches())}", "values", "call resolved() first")
    lowest, highest = workers if isinstance(workers, tuple) else (workers, workers)
    if gpu:
        lowest, highest = max(lowest, 1), max(highest, 1)
    if lowest < isinstance(workers, tuple) or lowest > highest:
        raise TrainingFailed(f"{workers} workers", "a number of at least 0, or (min, max) with 1 <= min <= max", "mend it")
    if highest > model.shards:
        raise TrainingFailed(
            f"{highest} workers for {model.shards} logical shards",
            f"at most {model.shards} workers",
            "use fewer, or more shards",
        )
    return lowest, highest


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


def _fit(job: Any, workers: Workers, gpu: bool) -> Any:
    """Runs in the warm process."""
    from ct.training import building, groups
    from ct.training.data import TrainingSet

    if workers:  # a model that cannot be built is found here, before workers are started for it
        building.build(unpickled(job.model, job.paths), TrainingSet.open(Path(job.folder))[0], job.objective)
        return groups.do(job, workers, gpu)
    try:
        return groups.alone(job)
    except Exception as error:
        raise groups.told(groups.cause(error)) from error
