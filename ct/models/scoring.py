"""A module with its calibration as one that gives scores: what is exported, compiled and run."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ct.objectives import Calibration, Objective


def scorer(module: nn.Module, objective: Objective, calibration: Calibration) -> nn.Module:
    """The module giving scores, [n] or [n, k] as `objective` says, in eval mode: float32, and float64 for numbers and quantiles."""
    # As tensors: the exporter writes plain numbers as float32, and a large center would lose its digits.
    center, spread = (torch.tensor(value, dtype=torch.float64) for value in (calibration.center, calibration.spread))
    shift = torch.tensor(calibration.shift or (0.0,), dtype=torch.float32)
    x, y = np.array(calibration.knots), np.array(calibration.heights)
    slopes = np.diff(y) / np.diff(x)
    knots, first = torch.from_numpy(x), torch.from_numpy(y[:1])
    turns = torch.from_numpy(np.diff(np.concatenate([[0.0], slopes, [0.0]])))

    def calibrated(score: Tensor) -> Tensor:
        """The straight lines between the knots as a sum of ramps."""
        ramps = torch.relu(score.double().unsqueeze(1) - knots) * turns
        return (first + ramps.sum(dim=1)).float()

    class Scorer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, numeric: Tensor, category: Tensor) -> Tensor:
            raw: Tensor = self.module(numeric, category)
            if objective.kind == "binary":
                score = torch.sigmoid(raw / calibration.temperature + shift)
                return calibrated(score) if calibration.knots else score
            if objective.kind == "classes":
                return torch.softmax(raw / calibration.temperature + shift, dim=1)
            found = center + spread * raw.double()
            return torch.sort(found, dim=1).values if objective.kind == "quantiles" else found

    return Scorer().eval()
