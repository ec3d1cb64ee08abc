"""What the ready models begin with: numbers, categories and sequences of past events as one vector a row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import torch
from torch import Tensor, nn

from ct.errors import InvalidPipeline

Places = Sequence[Sequence[Sequence[int]]]
"""The sequences of `features.encode.Shape`: of each its steps, of each step its places among the numbers, the last 1 where it is missing."""
EMBEDDINGS = ("", "periodic", "piecewise")
WIDTH, HEADS = 16, 4


class Inputs(nn.Module):
    """Numbers [n, F] and ids [n, C] as one vector [n, width]: the numbers or what is made of each, an embedding of each category, and a
    summary of each sequence.

    `numbers` says what is made of a number: "" itself, "periodic" or "piecewise" an embedding of `size` numbers. `chunks` tells how
    many places of the vector belong to each input.
    """

    def __init__(
        self,
        numeric: int,
        cardinalities: Sequence[int],
        sequences: Places = (),
        numbers: str = "",
        size: int = 8,
        category: int = 16,
    ) -> None:
        super().__init__()
        if numbers not in EMBEDDINGS:
            raise InvalidPipeline(f"embedding {numbers!r}", f"one of {list(EMBEDDINGS)}", "choose one")
        made = {"periodic": Periodic, "piecewise": Piecewise}.get(numbers)
        self.numbers = made(numeric, size) if made and numeric else None
        sizes = [min(category, (count + 3) // 4) for count in cardinalities]
        self.categories = nn.ModuleList(nn.Embedding(count, width) for count, width in zip(cardinalities, sizes, strict=True))
        self.sequences = nn.ModuleList(Events(steps) for steps in sequences)
        self.chunks: list[int] = [size if self.numbers else 1] * numeric + sizes + [WIDTH] * len(sequences)
        self.width = sum(self.chunks)

    def forward(self, numeric: Tensor, category: Tensor) -> Tensor:
        """One vector a row, [n, width]."""
        parts = [self.numbers(numeric).flatten(1) if self.numbers else numeric]
        parts += [embed(category[:, at]) for at, embed in enumerate(self.categories)]
        parts += [events(numeric) for events in self.sequences]
        return torch.cat(parts, dim=1)


class Periodic(nn.Module):
    """Each number as `size` numbers: itself, and a linear map of `waves` cosines of it, with frequencies and phases of its own.

    The PBLD embedding of RealMLP (Holzmüller, Grinsztajn, Steinwart, "Better by Default", NeurIPS 2024), after the periodic
    embeddings of Gorishniy, Rubachev, Babenko (NeurIPS 2022).
    """

    def __init__(self, numeric: int, size: int, waves: int = 16, spread: float = 0.1) -> None:
        super().__init__()
        self.frequency = nn.Parameter(torch.randn(numeric, waves) * spread)
        self.phase = nn.Parameter((torch.rand(numeric, waves) * 2 - 1) * math.pi)
        bound = 1 / math.sqrt(waves)
        self.weight = nn.Parameter((torch.rand(numeric, waves, size - 1) * 2 - 1) * bound)
        self.bias = nn.Parameter((torch.rand(numeric, size - 1) * 2 - 1) * bound)

    def forward(self, numeric: Tensor) -> Tensor:
        """[n, F, size] of [n, F]."""
        waves = torch.cos(2 * math.pi * self.frequency * numeric.unsqueeze(2) + self.phase)
        made = torch.bmm(waves.transpose(0, 1), self.weight).transpose(0, 1) + self.bias
        return torch.cat([numeric.unsqueeze(2), made], dim=2)


class Piecewise(nn.Module):
    """Each number as `size` numbers: linear maps of how far it has come through each of `bins` bins.

    The piecewise linear embedding of Gorishniy, Rubachev, Babenko (NeurIPS 2022). The bins' edges are quantiles of a normal
    distribution, as the encoder's numbers are standardized; they are the same for every number.
    """

    edges: Tensor

    def __init__(self, numeric: int, size: int, bins: int = 16) -> None:
        super().__init__()
        normal = NormalDist()
        inner = [normal.inv_cdf(at / bins) for at in range(1, bins)]
        edges = torch.tensor([inner[0] - 1.0, *inner, inner[-1] + 1.0])
        self.register_buffer("edges", edges, persistent=False)
        bound = 1 / math.sqrt(bins)
        self.weight = nn.Parameter((torch.rand(numeric, bins, size) * 2 - 1) * bound)
        self.bias = nn.Parameter((torch.rand(numeric, size) * 2 - 1) * bound)

    def forward(self, numeric: Tensor) -> Tensor:
        """[n, F, size] of [n, F]. The outer bins go on beyond their ends, so that no number is like another."""
        share = (numeric.unsqueeze(2) - self.edges[:-1]) / (self.edges[1:] - self.edges[:-1])
        first, last = share[:, :, :1].clamp(max=1.0), share[:, :, -1:].clamp(min=0.0)
        made = torch.cat([first, share[:, :, 1:-1].clamp(0.0, 1.0), last], dim=2)
        return torch.bmm(made.transpose(0, 1), self.weight).transpose(0, 1) + self.bias


class Events(nn.Module):
    """A sequence of past events as one vector [n, WIDTH]: the events weighed by attention, missing ones left out; all zero for none.

    Every head asks one learned question of the events' values and of their order.
    """

    places: Tensor

    def __init__(self, steps: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.register_buffer("places", torch.tensor([place for step in steps for place in step]), persistent=False)
        self._steps = len(steps)
        self.read = nn.Linear(len(steps[0]), WIDTH)
        self.order = nn.Parameter(torch.randn(len(steps), WIDTH) * 0.1)
        self.ask = nn.Linear(WIDTH, HEADS)

    def forward(self, numeric: Tensor) -> Tensor:
        """[n, WIDTH] of all numbers [n, F]."""
        steps = torch.unflatten(numeric.index_select(1, self.places), 1, (self._steps, -1))
        there = 1.0 - steps[:, :, -1:]
        read = torch.relu(self.read(steps) + self.order)
        asked = self.ask(read) - 1e4 * (1.0 - there)
        weights = torch.softmax(asked, dim=1) * there
        weighed = torch.unflatten(read, 2, (HEADS, -1)) * weights.unsqueeze(3)
        return weighed.sum(dim=1).flatten(1)
