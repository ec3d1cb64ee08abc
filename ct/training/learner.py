"""A module in training: one optimizer step from the gradients of the logical shards, added along the fixed tree. It knows no epochs' order and
no files. Whatever follows the sum (clipping, schedule, optimizer, average of weights) is the same arithmetic on every worker.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors

from ct.errors import TrainingFailed
from ct.objectives import Objective
from ct.training import checkpoint, determinism, lookups, losses, optimizing, stability
from ct.training.declare import Torch
from ct.training.determinism import Group
from ct.training.optimizing import rate
from ct.training.stability import Level, Seen, fault

__all__ = ["Learner", "Level", "Seen", "Shard", "fault", "rate"]


@dataclass(frozen=True)
class Shard:
    """The rows of one logical shard in one step; `place` is its number."""

    place: int
    numeric: Tensor
    category: Tensor
    label: Tensor
    weight: Tensor | None


class Learner:
    """A module, its optimizer and the average of its weights. `tensors()` is all state between two steps, the level of the loss with it.

    The loss of a step is the sum of its rows' losses by weight, divided by the sum of the weights (the number of rows where there are
    none), both added by the tree; it is 0 where all weights are.
    """

    def __init__(self, module: nn.Module, model: Torch, objective: Objective, device: str, total: int) -> None:
        self.module = module.to(device).train()
        self.level = Level()
        self._model, self._objective, self._total, self._device = model, objective, total, device
        self._optimizer = optimizing.optimizer(module, model)
        self._names = {id(parameter): name for name, parameter in module.named_parameters()}
        self._trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._average = [parameter.detach().clone() for parameter in self._trained] if model.average else []
        # by owner and name, because a module may put another tensor in its buffer's place; walking the modules takes long
        self._owned: list[tuple[dict[str, Any], str]] = [
            (part._buffers, name) for part in module.modules() for name, value in part._buffers.items() if value is not None
        ]
        self._tables: list[lookups.Table] | None = None
        self._dense = self._trained

    def step(self, step: int, shards: Iterable[Shard], rows: int, group: Group) -> Seen:
        """One optimizer step over this worker's shards and, through the tree, everybody else's. `rows` are the step's rows on all workers."""
        tree, looked_up = determinism.Tree(), list[lookups.Noted]()
        before = [buffer.clone() for buffer in self._buffers()]
        weighed = False
        for shard in shards:
            if self._tables is None:
                self._choose(shard)
            self._put(before)
            self._random(determinism.shard_seed(self._model.seed, step, shard.place))
            part, noted = self._shard(shard, rows)
            tree.add((shard.place, 1), part)
            looked_up.append(noted)
            weighed = shard.weight is not None
        count = self._model.shards
        determinism.exchange(tree, count, group.rank, group.world)
        total = tree.root(count)
        tables = self._tables or []
        sparse = lookups.add(tables, looked_up, rows, count, group) if tables else []
        size, wide = sum(parameter.numel() for parameter in self._dense), len(self._dense)
        numbers = total[size : size + wide + 1 + weighed].tolist()
        loss, divisor = numbers[wide], (numbers[wide + 1] or 1.0) if weighed else rows
        self._settle(total[size + len(numbers) :])
        gradients = [total[:size].mul_(1 / divisor), *(gradient.mul_(1 / divisor) for gradient in sparse)]
        return self._move(step, loss / divisor, gradients, numbers[:wide])

    def _shard(self, shard: Shard, rows: int) -> tuple[Tensor, lookups.Noted]:
        """A shard's part of the sum: the gradients outside of tables, which of these there are, its loss, its weight, the module's floating
        buffers. And its look-ups."""
        tables = self._tables or []
        lookups.begin(tables)
        with self._precision():
            raw = self.module(shard.numeric, shard.category)
        calls = lookups.end(tables)
        loss = losses.loss(self._objective, raw.float(), shard.label, shard.weight)
        outputs = [out for made in calls for _, out in made]
        asked = [*self._dense, *(table.embedding.weight for table in tables), *outputs]
        found = torch.autograd.grad(loss, asked, allow_unused=True)
        wide, apart = len(self._dense), len(self._dense) + len(tables)
        if any(gradient is not None for gradient in found[wide:apart]):
            raise TrainingFailed(
                "the model uses an embedding's weight outside of the embedding for some rows only",
                "the same use for all rows",
                "use it always, or give the embedding a padding_idx, which takes it off the sparse path",
            )
        parts = [
            torch.zeros_like(parameter) if gradient is None else gradient
            for parameter, gradient in zip(self._dense, found[:wide], strict=True)
        ]
        there = self._all
        if any(gradient is None for gradient in found[:wide]):
            there = loss.new_tensor([float(gradient is not None) for gradient in found[:wide]])
        weight = [] if shard.weight is None else [shard.weight.sum()]
        floats = [buffer for buffer in self._buffers() if buffer.is_floating_point()]
        part = _flatten_dense_tensors([*parts, there, loss.detach(), *weight, *floats])  # type: ignore[no-untyped-call]
        return part, lookups.noted(tables, calls, found[apart:], len(shard.label))

    def _choose(self, shard: Shard) -> None:
        """Which embeddings take the sparse path: decided by made-up rows, so that every worker decides alike, in a resumed run too."""
        tables = lookups.candidates(self.module, self._model.batch // self._model.shards)
        if tables:
            before = [buffer.clone() for buffer in self._buffers()]
            self._random(0)
            numeric, category = (values.new_zeros(3, values.shape[1]) for values in (shard.numeric, shard.category))
            with self._precision():
                tables = lookups.kept(tables, self.module, numeric, category)
            self._put(before)
        self._tables = tables
        sparse = {id(table.embedding.weight) for table in tables}
        self._dense = [parameter for parameter in self._trained if id(parameter) not in sparse]
        self._all = torch.ones(len(self._dense), device=self._device)

    def _move(self, step: int, loss: float, gradients: list[Tensor], there: list[float]) -> Seen:
        """Clip, set rates, step, average. The first of `gradients` holds all dense parameters', then each table's. `there` counts the shards
        that used a dense parameter: as in a plain loop, one that none used has no gradient and is left alone."""
        norm = float(torch.nn.utils.get_total_norm(gradients, foreach=True))
        lr, decay, clip = self._settings(step)
        if clip and norm > clip:
            for gradient in gradients:
                gradient.mul_(clip / norm)
        at = 0
        for parameter, used in zip(self._dense, there, strict=True):
            parameter.grad = gradients[0][at : at + parameter.numel()].view_as(parameter) if used else None
            at += parameter.numel()
        for table, gradient in zip(self._tables or [], gradients[1:], strict=True):
            table.embedding.weight.grad = gradient
        now = rate(step, self._total, lr, self._model.schedule)
        for group in self._optimizer.param_groups:
            group["lr"], group["weight_decay"] = now * group.get("faster", 1.0), decay * group.get("stronger", 1.0)
        with optimizing.reported("the optimizer's step"):
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        if self._average:
            kept = min(float(self._model.average), (1 + step) / (10 + step))
            torch._foreach_lerp_(self._average, [parameter.detach() for parameter in self._trained], 1 - kept)
        seen = Seen(loss, norm, now)
        self._before, self.level = self.level, self.level.after(seen)
        return seen

    def _settings(self, step: int) -> tuple[float, float, float]:
        """lr, weight_decay and clip in the epoch of `step`, by the model's course."""
        epoch = step * self._model.epochs // self._total
        values = {name: float(getattr(self._model, name)) for name in ("lr", "weight_decay", "clip")}
        for begins, changed in self._model.course:
            values |= {name: float(value) for name, value in changed.items()} if begins <= epoch else {}
        return values["lr"], values["weight_decay"], values["clip"]

    def fault(self, seen: Seen) -> str:
        """Why the run is diverged after the step that showed `seen`, "" while it is not."""
        return stability.fault(seen, self._before)

    def _precision(self) -> Any:
        device = self._device.split(":")[0]
        return torch.autocast(device, torch.bfloat16) if self._model.precision == "bfloat16" else nullcontext()

    def _random(self, seed: int) -> None:
        """Seed torch's generator of this device. torch.manual_seed seeds every device there is, and takes a hundred times as long."""
        (torch.default_generator if self._device == "cpu" else torch.cuda).manual_seed(seed)

    def _buffers(self) -> list[Tensor]:
        return [owner[name] for owner, name in self._owned]

    def _put(self, before: list[Tensor]) -> None:
        """Every shard begins with the buffers that the step began with."""
        for buffer, value in zip(self._buffers(), before, strict=True):
            buffer.copy_(value)

    def _settle(self, total: Tensor) -> None:
        """Floating buffers become their mean over the shards; others are as after one shard. Unchanged ones keep their bits: V is a power of two."""
        at = 0
        for buffer in self._buffers():
            if buffer.is_floating_point():
                buffer.copy_((total[at : at + buffer.numel()] * (1 / self._model.shards)).view_as(buffer))
                at += buffer.numel()

    def finite(self) -> bool:
        """Whether every parameter is a number."""
        return all(bool(torch.isfinite(parameter).all()) for parameter in self._trained)

    def tensors(self) -> dict[str, NDArray[Any]]:
        """The whole state by name: `module.…` for parameters and buffers, `optimizer.…`, `number.…` and `group.…` for the optimizer, `average.…` for
        averaged weights, `level` for the running level of the loss. The arrays may share memory with the state: save before the next step.
        """
        found = {f"module.{name}": value.detach().cpu().numpy() for name, value in self._state().items()}
        found |= optimizing.state(self._optimizer, self._names)
        for parameter, value in zip(self._trained, self._average, strict=bool(self._average)):
            found[f"average.{self._names[id(parameter)]}"] = value.cpu().numpy()
        return found | {"level": np.array(self.level.numbers())}

    def _state(self) -> dict[str, Tensor]:
        """Parameters and buffers, those outside of state_dict too."""
        return {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}

    def restore(self, tensors: checkpoint.Tensors, step: int) -> None:
        """Put back what `tensors()` gave after `step` steps."""
        with torch.no_grad():
            for name, value in self._state().items():
                value.copy_(torch.from_numpy(np.array(tensors[f"module.{name}"])))
            for parameter, value in zip(self._trained, self._average, strict=bool(self._average)):
                value.copy_(torch.from_numpy(np.array(tensors[f"average.{self._names[id(parameter)]}"])))
        optimizing.restore(self._optimizer, self._names, tensors)
        self._before = self.level = Level.of(np.asarray(tensors["level"]).tolist())

    def weights(self) -> dict[str, NDArray[Any]]:
        """The model's state_dict as arrays with memory of their own: averaged parameters where they are averaged, the newest buffers."""
        with self.judged() as module:
            return {name: value.detach().cpu().numpy().copy() for name, value in module.state_dict().items()}

    @contextmanager
    def judged(self) -> Iterator[nn.Module]:
        """The module as it would be the model now: averaged weights, eval mode. Afterwards it trains on as before."""
        newest = [parameter.detach().clone() for parameter in self._trained] if self._average else []
        if newest:
            with torch.no_grad():
                torch._foreach_copy_([parameter.detach() for parameter in self._trained], self._average)
        self.module.eval()
        try:
            yield self.module
        finally:
            self.module.train()
            if newest:
                with torch.no_grad():
                    torch._foreach_copy_([parameter.detach() for parameter in self._trained], newest)
