"""Early stopping: the loss on rows kept aside, the same number on any group of workers, and the epoch that is the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from ct.objectives import Objective
from ct.training import determinism, losses
from ct.training.data import TrainingSet
from ct.training.declare import Torch
from ct.training.determinism import Group

_CHUNK = 16_384


@dataclass
class Stopping:
    """What the epochs so far have shown: the best one, its loss and weights, and how many since were no better. `patience` 0: never stop."""

    patience: int
    best: int = -1
    loss: float = 0.0
    waited: int = 0
    weights: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    @property
    def over(self) -> bool:
        """Whether there were `patience` epochs without a better loss."""
        return 0 < self.patience <= self.waited

    def saw(self, epoch: int, loss: float) -> bool:
        """Take note of an epoch; True when it is the best so far, whose weights are to be kept. Of two equal ones the earlier is."""
        if self.best < 0 or loss < self.loss:
            self.best, self.loss, self.waited = epoch, loss, 0
            return True
        self.waited += 1
        return False

    def numbers(self) -> dict[str, Any]:
        """All but the weights, for a checkpoint."""
        return {"best": self.best, "loss": self.loss, "waited": self.waited}


class Aside:
    """The rows of a saved set that are never trained on. Their loss is added along the same tree as the gradients."""

    def __init__(self, folder: Path, model: Torch, objective: Objective, group: Group) -> None:
        self._rows, self.digest = TrainingSet.open(folder)
        self._model, self._objective, self._group = model, objective, group

    def loss(self, module: nn.Module) -> float:
        """The mean loss, by the rows' weights, of a module in eval mode. Every worker must call it, and gets the same number."""
        shards, tree = self._model.shards, determinism.Tree()
        for shard in determinism.owned(shards, self._group.rank, self._group.world):
            count = len(self._rows)
            tree.add((shard, 1), self._part(module, count * shard // shards, count * (shard + 1) // shards))
        determinism.exchange(tree, shards, self._group.rank, self._group.world)
        total = tree.root(shards)
        return float(total[0] / total[1])

    def _part(self, module: nn.Module, start: int, stop: int) -> torch.Tensor:
        """The sums of loss and of weight over some rows, in pieces that do not depend on the worker, each in fresh memory of torch's own."""
        total = torch.zeros(2, dtype=torch.float64)
        for at in range(start, stop, _CHUNK):
            piece = slice(at, min(at + _CHUNK, stop))
            numeric, category, label = (
                torch.tensor(values[piece], device=self._group.device)
                for values in (self._rows.numeric, self._rows.category, self._rows.label)
            )
            held = self._rows.weight
            weight = torch.ones_like(label) if held is None else torch.tensor(held[piece], device=label.device)
            with torch.no_grad():
                raw = module(numeric, category).double()
                found = losses.loss(self._objective, raw, label.double(), weight.double())
            total += torch.stack([found, weight.double().sum()]).cpu()
        return total.to(self._group.device)
