"""The loss of each objective, as a sum over rows. Raw outputs and labels in, one number out; nothing here knows of shards."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as nf

from ct.objectives import Objective


def loss(objective: Objective, raw: Tensor, label: Tensor, weight: Tensor | None) -> Tensor:
    """The sum over n rows of weight times the row's loss.

    `raw` is [n] or [n, k]; with m members, which each have a loss of their own, [n, m] or [n, m, k]: their mean counts.
    `label` float32 [n], `weight` float32 [n] or None for 1.
    """
    wide = objective.outputs > 1
    members = raw if raw.dim() == (3 if wide else 2) else raw.unsqueeze(1)
    each = _rows(objective, members, label)
    each = each.squeeze(1) if each.shape[1] == 1 else each.mean(dim=1)
    return each.sum() if weight is None else (each * weight).sum()


def _rows(objective: Objective, raw: Tensor, label: Tensor) -> Tensor:
    """Losses [n, m] of raw outputs [n, m] or [n, m, k]."""
    if objective.kind == "binary":
        return nf.binary_cross_entropy_with_logits(raw, label.unsqueeze(1).expand_as(raw), reduction="none")
    if objective.kind == "classes":
        places = label.long().unsqueeze(1).expand(raw.shape[:2])
        return nf.cross_entropy(raw.flatten(0, 1), places.flatten(), reduction="none").view(raw.shape[:2])
    if objective.kind == "number":
        return (raw - label.unsqueeze(1)).square()
    each = raw if raw.dim() == 3 else raw.unsqueeze(2)  # one quantile is one output
    gap = label.view(-1, 1, 1) - each
    share = torch.tensor(objective.quantiles, dtype=raw.dtype, device=raw.device)
    return torch.maximum(share * gap, (share - 1) * gap).mean(dim=2)
