"""The training loop that every worker runs: logical shards, one tree, one optimizer step. It knows a group of workers, not who started them."""

from __future__ import annotations

import json
import math
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ct.errors import TrainingFailed
from ct.features.encode import Shape
from ct.ids import canonical, sha256
from ct.objectives import BINARY, Objective
from ct.training import checkpoint, data, determinism, losses
from ct.training.data import TrainingSet
from ct.training.declare import Torch, unpickled

WARM_UP = 0.1
_CHUNK = 65_536
_ALIGNED = 16  # floats in 64 bytes: each parameter begins where MKL and the vector units like it


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
class Group:
    """This worker among `world` workers that run the same job."""

    rank: int = 0
    world: int = 1
    device: str = "cpu"
    report: Callable[[dict[str, Any]], None] = lambda seen: None


@dataclass(frozen=True)
class Outcome:
    """How the loop ended. `diverged_at` is the step whose loss or weights were no numbers, -1 for none."""

    weights: dict[str, np.ndarray[Any, Any]]
    history: tuple[dict[str, Any], ...]
    contract: dict[str, Any]
    resumed: int
    diverged_at: int = -1


@dataclass(frozen=True)
class Shard:
    """The rows of one logical shard in one step; `place` is its number."""

    place: int
    numeric: Tensor
    category: Tensor
    label: Tensor
    weight: Tensor | None


class Learner:
    """A module whose trained parameters are views of one vector, and its optimizer. All state that a checkpoint needs."""

    def __init__(self, module: nn.Module, model: Torch, objective: Objective, device: str, total: int) -> None:
        self.module = module.to(device).train()
        self._model, self._objective, self._total, self._device = model, objective, total, device
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        if not trained or any(parameter.dtype != torch.float32 for parameter in trained):
            raise TrainingFailed(
                "the model has no float32 parameter to train or others besides", "float32 parameters", "mend it"
            )
        self._places: list[tuple[nn.Parameter, int]] = []
        self._size = 0
        for parameter in trained:
            self._places.append((parameter, self._size))
            self._size += -(-parameter.numel() // _ALIGNED) * _ALIGNED
        vector = torch.zeros(self._size, device=device)
        for parameter, at in self._places:
            view = vector[at : at + parameter.numel()].view_as(parameter)
            view.copy_(parameter.detach())
            parameter.data = view
        self._averaged = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
        self._counted = [buffer for buffer in module.buffers() if not buffer.is_floating_point()]
        self._vector = nn.Parameter(vector)
        self._optimizer = torch.optim.AdamW(
            [self._vector], lr=float(model.lr), weight_decay=float(model.weight_decay), foreach=True
        )
        zeros = {"step": torch.tensor(0.0), "exp_avg": torch.zeros_like(vector), "exp_avg_sq": torch.zeros_like(vector)}
        self._optimizer.state[self._vector] = zeros

    def step(self, step: int, shards: Iterator[Shard], rows: int, group: Group) -> float:
        """One optimizer step over this worker's shards and, through the tree, everybody else's. Returns the mean loss over `rows` rows."""
        tree = determinism.Tree()
        before = [buffer.clone() for buffer in (*self._averaged, *self._counted)]
        for shard in shards:
            for buffer, value in zip((*self._averaged, *self._counted), before, strict=True):
                buffer.copy_(value)
            seed = determinism.shard_seed(self._model.seed, step, shard.place)
            tree.add((shard.place, 1), self._shard(seed, shard))
        determinism.exchange(tree, self._model.shards, group.rank, group.world)
        total = tree.root(self._model.shards)
        at = self._size + 1
        for buffer in self._averaged:
            buffer.copy_((total[at : at + buffer.numel()] * (1 / self._model.shards)).view_as(buffer))
            at += buffer.numel()
        self._vector.grad = total[: self._size].mul_(1 / rows)
        for settings in self._optimizer.param_groups:
            settings["lr"] = rate(step, self._total, float(self._model.lr))
        self._optimizer.step()
        return float(total[self._size]) / rows

    def _shard(self, seed: int, shard: Shard) -> Tensor:
        """A shard's part of the sum: gradients by place, then its loss, then the module's floating buffers."""
        part = torch.zeros(self._size + 1 + sum(buffer.numel() for buffer in self._averaged), device=self._device)
        for parameter, at in self._places:
            parameter.grad = part[at : at + parameter.numel()].view_as(parameter)
        (torch.default_generator if self._device == "cpu" else torch.cuda).manual_seed(seed)
        raw = self.module(shard.numeric, shard.category)
        loss = losses.loss(self._objective, raw, shard.label, shard.weight)
        loss.backward()  # type: ignore[no-untyped-call]
        part[self._size] = loss.detach()
        if self._averaged:
            part[self._size + 1 :] = torch.cat([buffer.reshape(-1) for buffer in self._averaged])
        return part

    def finite(self) -> bool:
        """Whether every parameter is a number."""
        return bool(torch.isfinite(self._vector).all())

    def tensors(self) -> dict[str, np.ndarray[Any, Any]]:
        """The state as arrays, for a checkpoint."""
        state = self._optimizer.state[self._vector]
        found = {"vector": self._vector, "exp_avg": state["exp_avg"], "exp_avg_sq": state["exp_avg_sq"]}
        found |= {f"buffer.{name}": buffer for name, buffer in self.module.named_buffers()}
        return {name: value.detach().cpu().numpy() for name, value in found.items()}

    def restore(self, tensors: checkpoint.Tensors, step: int) -> None:
        """Put a checkpoint's arrays back."""
        state = self._optimizer.state[self._vector]
        state["step"].fill_(float(step))
        targets = {"vector": self._vector.detach(), "exp_avg": state["exp_avg"], "exp_avg_sq": state["exp_avg_sq"]}
        targets |= {f"buffer.{name}": buffer for name, buffer in self.module.named_buffers()}
        for name, target in targets.items():
            target.copy_(torch.from_numpy(np.array(tensors[name])))

    def weights(self) -> dict[str, np.ndarray[Any, Any]]:
        """The module's state by name, each array with its own memory."""
        return {name: value.detach().cpu().numpy().copy() for name, value in self.module.state_dict().items()}


def rate(step: int, total: int, peak: float) -> float:
    """The learning rate of a step: up to `peak` over the first tenth of all steps, then down to 0 as half a cosine."""
    warm = max(1, round(total * WARM_UP))
    if step < warm:
        return peak * (step + 1) / warm
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


def construct(model: Torch, shape: Shape, objective: Objective = BINARY) -> nn.Module:
    """The module with its seeded first weights. Raises TrainingFailed with the user's own error when it cannot be built."""
    torch.manual_seed(model.seed)
    more: dict[str, Any] = {"outputs": objective.outputs} if objective.outputs > 1 else {}
    if shape.sequences:
        more["sequences"] = [[list(step) for step in steps] for steps in shape.sequences]
    with _reported():
        module: nn.Module = model.module_class(
            numeric=shape.numeric, cardinalities=list(shape.cardinalities), **more, **dict(model.options)
        )
    return module


def loaded(model: Torch, shape: Shape, objective: Objective, weights: checkpoint.Tensors) -> nn.Module:
    """The module with trained weights, ready to predict."""
    module = construct(model, shape, objective).eval()
    module.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in weights.items()})
    return module


def build(model: Torch, rows: TrainingSet, objective: Objective = BINARY) -> nn.Module:
    """`construct`, then a few rows to see whether the module can be called. Raises TrainingFailed when it cannot."""
    module = construct(model, rows.shape, objective)
    few = slice(0, min(8, len(rows)))
    numeric, category = torch.from_numpy(rows.numeric[few].copy()), torch.from_numpy(rows.category[few].copy())
    with _reported(), torch.no_grad():
        shape = tuple(module.eval()(numeric, category).shape)
    expected = (len(numeric), objective.outputs) if objective.outputs > 1 else (len(numeric),)
    if shape != expected:
        raise TrainingFailed(
            f"forward() gave the shape {list(shape)} for {len(numeric)} rows",
            f"raw outputs of the shape {list(expected)}",
            "squeeze the output" if objective.outputs == 1 else "give one output for each class or quantile",
        )
    return module


@contextmanager
def _reported() -> Iterator[None]:
    """A user's module may raise anything; it is reported with its line, not traced."""
    try:
        yield
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        raise TrainingFailed(
            f"the model raised {type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})",
            "model(numeric=F, cardinalities=[...], **options) and forward(numeric [n, F], category [n, C]) -> logits [n]",
            "mend the model's module",
        ) from error


def raw(model: Torch, objective: Objective, weights: checkpoint.Tensors, folder: Path) -> np.ndarray[Any, Any]:
    """A trained model's raw outputs for the rows saved in `folder`, float64 [n] or [n, k]."""
    rows, _ = TrainingSet.open(folder)
    module = loaded(model, rows.shape, objective, weights)
    with torch.no_grad():
        parts = [
            module(
                torch.from_numpy(np.array(rows.numeric[at : at + _CHUNK])),
                torch.from_numpy(np.array(rows.category[at : at + _CHUNK])),
            )
            for at in range(0, len(rows), _CHUNK)
        ]
    return torch.cat(parts).double().numpy()


def mean_loss(model: Torch, objective: Objective, weights: checkpoint.Tensors, folder: Path) -> float:
    """The mean loss of a trained model on the rows saved in `folder`."""
    rows, _ = TrainingSet.open(folder)
    found = torch.from_numpy(raw(model, objective, weights, folder))
    return float(losses.loss(objective, found, torch.from_numpy(np.array(rows.label)).double(), None)) / len(rows)


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
