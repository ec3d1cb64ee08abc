"""The training loop that every worker runs: logical shards, one tree, one optimizer step. It knows a group of workers, not who started them."""

from __future__ import annotations

import json
import math
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from ct.errors import TrainingFailed
from ct.ids import canonical, sha256
from ct.training import checkpoint, data, determinism
from ct.training.data import TrainingSet
from ct.training.declare import Torch, unpickled

WARM_UP = 0.1
_ALIGNED = 16  # floats in 64 bytes: each parameter begins where MKL and the vector units like it


@dataclass(frozen=True)
class Job:
    """What a worker must know. `model` is a pickled ct.Torch, readable once `paths` are on sys.path; an empty folder or file means: write none."""

    folder: str
    model: bytes
    paths: tuple[str, ...]
    identity: str
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


class Learner:
    """A module whose trained parameters are views of one vector, and its optimizer. All state that a checkpoint needs."""

    def __init__(self, module: nn.Module, model: Torch, device: str, total: int) -> None:
        self.module = module.to(device).train()
        self._model, self._total, self._device = model, total, device
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

    def step(self, step: int, shards: Iterator[tuple[int, Tensor, Tensor, Tensor]], rows: int, group: Group) -> float:
        """One optimizer step over this worker's shards and, through the tree, everybody else's. Returns the mean loss over `rows` rows."""
        tree = determinism.Tree()
        before = [buffer.clone() for buffer in (*self._averaged, *self._counted)]
        for shard, numeric, category, label in shards:
            for buffer, value in zip((*self._averaged, *self._counted), before, strict=True):
                buffer.copy_(value)
            tree.add((shard, 1), self._shard(determinism.shard_seed(self._model.seed, step, shard), numeric, category, label))
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

    def _shard(self, seed: int, numeric: Tensor, category: Tensor, label: Tensor) -> Tensor:
        """A shard's part of the sum: gradients by place, then its loss, then the module's floating buffers."""
        part = torch.zeros(self._size + 1 + sum(buffer.numel() for buffer in self._averaged), device=self._device)
        for parameter, at in self._places:
            parameter.grad = part[at : at + parameter.numel()].view_as(parameter)
        (torch.default_generator if self._device == "cpu" else torch.cuda).manual_seed(seed)
        loss = binary_cross_entropy_with_logits(self.module(numeric, category), label, reduction="sum")
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


def construct(model: Torch, numeric: int, cardinalities: Sequence[int]) -> nn.Module:
    """The user's module with its seeded first weights. Raises TrainingFailed with the user's own error when it cannot be built."""
    torch.manual_seed(model.seed)
    with _reported():
        module: nn.Module = model.model(numeric=numeric, cardinalities=list(cardinalities), **dict(model.options))
    return module


def build(model: Torch, rows: TrainingSet) -> nn.Module:
    """`construct`, then a few rows to see whether the module can be called. Raises TrainingFailed when it cannot."""
    module = construct(model, rows.numeric.shape[1], rows.cardinalities)
    few = slice(0, min(8, len(rows)))
    numeric, category = torch.from_numpy(rows.numeric[few].copy()), torch.from_numpy(rows.category[few].copy())
    with _reported(), torch.no_grad():
        shape = tuple(module.eval()(numeric, category).shape)
    if shape != (len(numeric),):
        raise TrainingFailed(
            f"forward() gave the shape {list(shape)} for {len(numeric)} rows", "logits [n]", "squeeze the output"
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


def log_loss(model: Torch, weights: checkpoint.Tensors, folder: Path) -> float:
    """The mean log loss of a trained model on the set saved in `folder`."""
    rows, _ = TrainingSet.open(folder)
    module = construct(model, rows.numeric.shape[1], rows.cardinalities).eval()
    module.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in weights.items()})
    numeric, category, label = (torch.from_numpy(np.array(values)) for values in (rows.numeric, rows.category, rows.label))
    with torch.no_grad():
        return float(binary_cross_entropy_with_logits(module(numeric, category), label))


def run(job: Job, group: Group) -> Outcome:
    """Train, beginning at the newest checkpoint of this very job. Every worker returns the same weights."""
    _pin(group)
    model = unpickled(job.model, job.paths)
    rows, digest = TrainingSet.open(Path(job.folder))
    contract = determinism.contract(model, _device_name(group))
    key = sha256(canonical([digest, job.identity, contract["id"]]))
    batch = data.batch_of(len(rows), model.batch)
    steps = len(rows) // batch
    learner = Learner(build(model, rows), model, group.device, steps * model.epochs)
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


def _shards(
    rows: TrainingSet, taken: np.ndarray[Any, Any], shards: int, group: Group
) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """This worker's shards. Each is gathered into fresh memory of its own, so that its alignment does not depend on who owns it."""
    arrays = [torch.from_numpy(values) for values in (rows.numeric, rows.category, rows.label)]
    for shard in determinism.owned(shards, group.rank, group.world):
        index = torch.from_numpy(taken[len(taken) * shard // shards : len(taken) * (shard + 1) // shards])
        numeric, category, label = (values.index_select(0, index).to(group.device) for values in arrays)
        yield shard, numeric, category, label


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
