"""Ready tabular models. Import this module only where a model is declared: it loads torch."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MLP(nn.Module):
    """Embeddings of the categories beside the numbers, through `depth` hidden layers of `width`."""

    def __init__(self, numeric: int, cardinalities: list[int], width: int = 128, depth: int = 2, dropout: float = 0.1) -> None:
        super().__init__()
        sizes = [min(32, (count + 3) // 4) for count in cardinalities]
        self.embeddings = nn.ModuleList(nn.Embedding(count, size) for count, size in zip(cardinalities, sizes, strict=True))
        layers: list[nn.Module] = []
        before = numeric + sum(sizes)
        for _ in range(depth):
            layers += [nn.Linear(before, width), nn.ReLU(), nn.Dropout(dropout)]
            before = width
        self.layers = nn.Sequential(*layers, nn.Linear(before, 1))

    def forward(self, numeric: Tensor, category: Tensor) -> Tensor:
        """Logits [n] of numeric [n, F] and category [n, C]."""
        parts = [embed(category[:, at]) for at, embed in enumerate(self.embeddings)]
        logits: Tensor = self.layers(torch.cat([numeric, *parts], dim=1))
        return logits.squeeze(1)
