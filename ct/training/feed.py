"""From a training set to the shards of a step: which rows, in which order, with which weights. A pure function of (rows, seed, step), so
a run's only cursor is its global step.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch

from ct.objectives import Objective
from ct.training import data, determinism
from ct.training.data import TrainingSet
from ct.training.declare import Torch
from ct.training.determinism import Group
from ct.training.learner import Shard


class Feed:
    """The steps of a training on `rows`, whose digest is `digest`. `batch` rows a step, `steps` steps an epoch."""

    def __init__(self, rows: TrainingSet, digest: str, model: Torch, objective: Objective, group: Group) -> None:
        self.batch = data.batch_of(len(rows), model.batch)
        self.steps = len(rows) // self.batch
        self._group, self._count = group, model.shards
        weight = data.balanced(rows, objective) if model.balanced else rows.weight
        parts = (
            (rows.numeric, rows.category, rows.label) if weight is None else (rows.numeric, rows.category, rows.label, weight)
        )
        self._parts = [torch.from_numpy(values) for values in parts]
        # one epoch's order at a time
        self._order = lru_cache(maxsize=1)(lambda epoch: data.order(len(rows), digest, model.seed, epoch))

    def shards(self, step: int) -> Iterator[Shard]:
        """This worker's shards of a global step. Each is gathered into fresh memory of its own, so that its alignment, which some kernels'
        rounding depends on, does not depend on who owns it."""
        epoch, at = divmod(step, self.steps)
        taken = self._order(epoch)[at * self.batch : (at + 1) * self.batch]
        for place in determinism.owned(self._count, self._group.rank, self._group.world):
            index = torch.from_numpy(taken[len(taken) * place // self._count : len(taken) * (place + 1) // self._count])
            numeric, category, label, *weight = (part.index_select(0, index).to(self._group.device) for part in self._parts)
            yield Shard(place, numeric, category, label, weight[0] if weight else None)
