"""The training loop that every worker runs: epochs and steps, checkpoints, progress. It knows a group of workers, not who started them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ct.errors import TrainingFailed
from ct.ids import canonical, sha256
from ct.objectives import BINARY, Objective
from ct.training import checkpoint, data, determinism
from ct.training.building import build
from ct.training.data import TrainingSet
from ct.training.declare import unpickled
from ct.training.determinism import Group
from ct.training.learner import Learner, Shard


@dataclass(frozen=True)
class Job:
    """What a worker must know. `model` is a pickled ct.Torch, readable once `paths` are on sys.path; an empty folder or file means: none.

    `start` are weights to begin with, by name.
    """

    folder: str
    model: bytes
    paths: tuple[str, ...]
    identity: str
    objective: Objective = BINARY
    stop: str = ""
    start: Mapping[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    checkpoints: str = ""
    progress: str = ""


@dataclass(frozen=True)
class Outcome:
    """How the loop ended. `diverged_at` is the step whose loss or weights were no numbers, -1 for none."""

    weights: dict[str, np.ndarray[Any, Any]]
    history: tuple[dict[str, Any], ...]
    contract: dict[str, Any]
    resumed: int
    diverged_at: int = -1


def run(job: Job, group: Group) -> Outcome:
    """Train, beginning at the newest checkpoint of this very job. Every worker returns the same weights."""
    _pin(group)
    model = unpickled(job.model, job.paths)
    rows, digest = TrainingSet.open(Path(job.folder))
    contract = determinism.contract(model, _device_name(group))
    key = sha256(canonical([digest, job.identity, contract["id"]]))
    batch = data.batch_of(len(rows), model.batch)
    steps = len(rows) // batch
    module = build(model, rows, job.objective)
    with torch.no_grad():
        module.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in job.start.items()}, strict=False)
    learner = Learner(module, model, job.objective, group.device, steps * model.epochs)
    folder = Path(job.checkpoints) if job.checkpoints else None
    found = checkpoint.newest(folder, key) if folder else None
    if found:
        learner.restore(found.tensors, found.step)
    resumed = found.step if found else 0
    history = list(found.history) if found else []
    for epoch in range(resumed // steps, model.epochs):
        order, loss = data.order(len(rows), digest, model.seed, epoch), 0.0
        for at in range(steps):
            step = epoch * steps + at
            taken = order[at * batch : (at + 1) * batch]
            seen = learner.step(step, _shards(rows, taken, model.shards, group), batch, group)
            if not math.isfinite(seen):
                return Outcome({}, tuple(history), contract, resumed, diverged_at=step)
            loss += seen
        if not learner.finite():
            return Outcome({}, tuple(history), contract, resumed, diverged_at=(epoch + 1) * steps - 1)
        _agree(learner, group)
        history.append({"epoch": epoch, "loss": loss / steps, "steps": steps, "rows": batch * steps})
        if folder and group.rank == 0:
            checkpoint.save(folder, checkpoint.Checkpoint(key, (epoch + 1) * steps, learner.tensors(), tuple(history)))
        if job.progress and group.rank == 0:
            tell(Path(job.progress), {**history[-1], "epochs": model.epochs})
        group.report(history[-1])
    return Outcome(learner.weights(), tuple(history), contract, resumed)


def tell(progress: Path, line: dict[str, Any]) -> None:
    """Append a line for whoever follows the run."""
    progress.parent.mkdir(parents=True, exist_ok=True)
    with progress.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _shards(rows: TrainingSet, taken: np.ndarray[Any, Any], shards: int, group: Group) -> Iterator[Shard]:
    """This worker's shards. Each is gathered into fresh memory of its own, so that its alignment does not depend on who owns it."""
    arrays = [torch.from_numpy(values) for values in (rows.numeric, rows.category, rows.label)]
    weight = None if rows.weight is None else torch.from_numpy(rows.weight)
    for shard in determinism.owned(shards, group.rank, group.world):
        index = torch.from_numpy(taken[len(taken) * shard // shards : len(taken) * (shard + 1) // shards])
        numeric, category, label = (values.index_select(0, index).to(group.device) for values in arrays)
        yield Shard(shard, numeric, category, label, None if weight is None else weight.index_select(0, index).to(group.device))


def _pin(group: Group) -> None:
    torch.set_num_threads(1)
    if group.device != "cpu":
        torch.use_deterministic_algorithms(True)
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = False


def _device_name(group: Group) -> str:
    return "cpu" if group.device == "cpu" else torch.cuda.get_device_name()


def _agree(learner: Learner, group: Group) -> None:
    """Compare the weights of all workers: one on another kind of processor would drift away unnoticed."""
    if group.world == 1:
        return
    mine = torch.tensor([int(checkpoint.digest(learner.tensors())[:15], 16)], device=group.device)
    everybody = [torch.empty_like(mine) for _ in range(group.world)]
    torch.distributed.all_gather(everybody, mine)
    if len({int(value) for value in everybody}) > 1:
        raise TrainingFailed(
            "the workers' weights differ", "the same bytes everywhere", "train on one kind of processor, for example by labels"
        )
