"""TabM: many networks in one, which share nearly all their weights (Gorishniy, Kotelnikov, Babenko, ICLR 2025, arXiv 2410.24210)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as nf

from ct.models.inputs import Inputs, Places


class TabM(nn.Module):
    """`members` perceptrons of `depth` hidden layers of `width`, trained side by side, each with a loss of its own.

    The members share the weights of each layer and differ in what scales its inputs and outputs, in biases, and in their last layers
    (BatchEnsemble: Wen, Tran, Ba, ICLR 2020). While it trains it gives [n, m], or [n, m, k] for k `outputs`; afterwards the raw
    output whose score is the members' mean score: `objective` is the kind of `ct.objectives`, which says what a score is.
    `embedding` of the numbers is "" for none, "periodic" or "piecewise", of `size` numbers each. The paper has members=32, width=512;
    the defaults are what pays on one core.
    """

    def __init__(
        self,
        numeric: int,
        cardinalities: list[int],
        outputs: int = 1,
        sequences: Places = (),
        objective: str = "binary",
        members: int = 8,
        width: int = 64,
        depth: int = 2,
        dropout: float = 0.1,
        embedding: str = "periodic",
        size: int = 4,
    ) -> None:
        super().__init__()
        self.members = members
        self._objective = objective
        self.inputs = Inputs(numeric, cardinalities, sequences, embedding, size)
        layers = [Shared(self.inputs.width, width, members)] + [Shared(width, width, members) for _ in range(depth - 1)]
        layers[0].part(self.inputs.chunks, normal=bool(embedding))
        self.layers = nn.ModuleList(layers)
        self.dropout = nn.Dropout(dropout)
        bound = 1 / math.sqrt(width)
        self.weight = nn.Parameter((torch.rand(members, width, outputs) * 2 - 1) * bound)
        self.bias = nn.Parameter((torch.rand(members, 1, outputs) * 2 - 1) * bound)

    def forward(self, numeric: Tensor, category: Tensor) -> Tensor:
        """Raw outputs of numeric [n, F] and category [n, C]."""
        state = self.inputs(numeric, category)
        for layer in self.layers:
            state = self.dropout(torch.relu(layer(state)))
        raw = torch.baddbmm(self.bias, state, self.weight).transpose(0, 1)  # [n, m, k]
        if not self.training:
            raw = mean(self._objective, raw)
            return raw.squeeze(1) if raw.shape[1] == 1 else raw
        return raw.squeeze(2) if raw.shape[2] == 1 else raw


class Shared(nn.Module):
    """A linear layer of which each of m members scales inputs and outputs in its own way: [m, n, outputs] of [n, inputs], which all
    members share, or of [m, n, inputs].

    The scales are multiplied into the weights, which are fewer numbers than a shard's states; a served graph has it done beforehand.
    """

    def __init__(self, inputs: int, outputs: int, members: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs)
        self.before = nn.Parameter(torch.ones(members, inputs))
        self.weight = nn.Parameter((torch.rand(outputs, inputs) * 2 - 1) * bound)
        self.after = nn.Parameter(torch.ones(members, outputs))
        self.bias = nn.Parameter(((torch.rand(outputs) * 2 - 1) * bound).repeat(members, 1))

    def part(self, chunks: Sequence[int], normal: bool) -> None:
        """Make the members differ from the beginning on, by one random factor for each input and member: normal, or a sign."""
        shape = (len(self.before), len(chunks))
        factors = torch.randn(shape) if normal else torch.randint(0, 2, shape) * 2.0 - 1.0
        with torch.no_grad():
            self.before.copy_(torch.repeat_interleave(factors, torch.tensor(chunks), dim=1))

    def forward(self, state: Tensor) -> Tensor:
        """The members' outputs."""
        weight = self.weight * self.before.unsqueeze(1)  # [m, outputs, inputs]
        if state.dim() == 2:
            made = torch.unflatten(nf.linear(state, weight.flatten(0, 1)), 1, self.bias.shape)
            return torch.addcmul(self.bias, made, self.after).transpose(0, 1)
        weight = weight * self.after.unsqueeze(2)
        return torch.baddbmm(self.bias.unsqueeze(1), state, weight.transpose(1, 2))


def mean(objective: str, raw: Tensor) -> Tensor:
    """Raw outputs [n, k] whose scores are the mean of the members' scores; raw outputs of the members are [n, m, k].

    Probabilities are averaged by their logarithms, so that none becomes 0 or 1: nothing overflows, however sure the members are.
    """
    if objective == "binary":
        return torch.logsumexp(nf.logsigmoid(raw), dim=1) - torch.logsumexp(nf.logsigmoid(-raw), dim=1)
    if objective == "classes":
        return torch.logsumexp(torch.log_softmax(raw, dim=2), dim=1) - math.log(raw.shape[1])
    return raw.mean(dim=1)
