"""A module with what makes determinism hard: batch norm, dropout, embeddings. In a folder of its own, so that workers can import it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Normed(nn.Module):
    """Embeddings of 8 for each category; two layers, each with batch norm and dropout."""

    def __init__(self, numeric: int, cardinalities: list[int]) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(size, 8) for size in cardinalities)
        wide = numeric + 8 * len(cardinalities)
        layers: list[nn.Module] = []
        for size, out in ((wide, 32), (32, 32)):
            layers += [nn.Linear(size, out), nn.BatchNorm1d(out), nn.ReLU(), nn.Dropout(0.2)]
        self.layers = nn.Sequential(*layers, nn.Linear(32, 1))

    def forward(self, numeric: Tensor, category: Tensor) -> Tensor:
        """Raw outputs [n]."""
        parts = [table(category[:, at]) for at, table in enumerate(self.tables)]
        found: Tensor = self.layers(torch.cat([numeric, *parts], dim=1)).squeeze(1)
        return found
