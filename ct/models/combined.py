"""Trained modules as one: the mean of their scores, or a weighted sum of their raw outputs. It is served, and never trained."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ct.models.tabm import mean
from ct.objectives import Objective


class Combined(nn.Module):
    """Modules that give raw outputs [n] or [n, k] as one that does. `stacked` weighs them; else the mean of their scores is the score.

    Its state has the names `ensemble.<number>.<name of the member's>`, and `stack.weight` [m] and `stack.bias` [k] where it is stacked.
    """

    def __init__(self, members: Sequence[nn.Module], objective: Objective, stacked: bool) -> None:
        super().__init__()
        self.ensemble = nn.ModuleList(members)
        self.stack = Stack(len(members), objective.outputs) if stacked else None
        self._kind = objective.kind

    def forward(self, numeric: Tensor, category: Tensor) -> Tensor:
        """Raw outputs of numeric [n, F] and category [n, C]."""
        raw = torch.stack([member(numeric, category) for member in self.ensemble], dim=1)  # [n, m] or [n, m, k]
        wide = raw if raw.dim() == 3 else raw.unsqueeze(2)
        found: Tensor = self.stack(wide) if self.stack is not None else mean(self._kind, wide)
        return found if raw.dim() == 3 else found.squeeze(1)


class Stack(nn.Module):
    """`sum over members of weight * raw + bias`: [n, k] of [n, m, k]."""

    weight: Tensor
    bias: Tensor

    def __init__(self, members: int, outputs: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.full((members,), 1 / members))
        self.register_buffer("bias", torch.zeros(outputs))

    def forward(self, raw: Tensor) -> Tensor:
        """The weighted sum."""
        return (raw * self.weight.view(1, -1, 1)).sum(dim=1) + self.bias
