"""A module in training: one optimizer step from the gradients of the logical shards, added along the fixed tree. It knows no epochs and no files."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ct.errors import TrainingFailed
from ct.objectives import Objective
from ct.training import checkpoint, determinism, losses
from ct.training.declare import Torch
from ct.training.determinism import Group

WARM_UP = 0.1
_ALIGNED = 16  # floats in 64 bytes: each parameter begins where MKL and the vector units like it


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

    def tensors(self) -> dict[str, NDArray[Any]]:
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

    def weights(self) -> dict[str, NDArray[Any]]:
        """The module's state by name, each array with its own memory."""
        return {name: value.detach().cpu().numpy().copy() for name, value in self.module.state_dict().items()}


def rate(step: int, total: int, peak: float) -> float:
    """The learning rate of a step: up to `peak` over the first tenth of all steps, then down to 0 as half a cosine."""
    warm = max(1, round(total * WARM_UP))
    if step < warm:
        return peak * (step + 1) / warm
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))
