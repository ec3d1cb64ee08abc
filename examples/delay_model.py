"""The user's model: any torch module with forward(numeric [n, F], category [n, C]) -> logits [n]."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DelayNet(nn.Module):
    """Embeddings of the categories beside the numbers, through two hidden layers."""

    def __init__(self, numeric: int, cardinalities: list[int], width: int = 128, dropout: float = 0.1) -> None:
        super().__init__()
        sizes = [min(16, (count + 3) // 4) for count in cardinalities]
        self.embeddings = nn.ModuleList(nn.Embedding(count, size) for count, size in zip(cardinalities, sizes, strict=True))
        self.layers = nn.Sequential(
            nn.Linear(numeric + sum(sizes), width),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(width, width // 2),
            nn.ReLU(),
            nn.Linear(width // 2, 1),
        )

    def forward(self, numeric: Tensor, category: Tensor) -> Tensor:
        parts = [embed(category[:, at]) for at, embed in enumerate(self.embeddings)]
        logits: Tensor = self.layers(torch.cat([numeric, *parts], dim=1))
        return logits.squeeze(1)
