"""RealMLP: a perceptron with the improvements that its authors' tuning found (Holzmüller, Grinsztajn, Steinwart, NeurIPS 2024,
arXiv 2407.04491), as far as they live in the module."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as nf

from ct.models.inputs import Inputs, Places


class RealMLP(nn.Module):
    """Numbers clipped smoothly, periodic embeddings, a learned scale of each input, layers in NTK parametrization, learned activations.

    SELU is used for classes, Mish for numbers, as `objective` says. `groups()` gives each kind of parameter its own pace; with
    `Torch(lr=2e-3)` the weights learn at the published 0.04. What the paper does besides (schedules of dropout and decay, label
    smoothing, first weights fitted to the data, robust scaling) is not here. Gives raw outputs [n], or [n, k] for k `outputs`.
    """

    def __init__(
        self,
        numeric: int,
        cardinalities: list[int],
        outputs: int = 1,
        sequences: Places = (),
        objective: str = "binary",
        width: int = 256,
        depth: int = 3,
        dropout: float = 0.15,
    ) -> None:
        super().__init__()
        self.inputs = Inputs(numeric, cardinalities, sequences, "periodic", size=4, category=8)
        self.scale = nn.Parameter(torch.ones(self.inputs.width))
        before, layers = self.inputs.width, []
        for _ in range(depth):
            layers.append(Layer(before, width))
            before = width
        self.layers = nn.ModuleList(layers)
        self.activations = nn.ModuleList(Activation(width, objective in ("number", "quantiles")) for _ in layers)
        self.dropout = nn.Dropout(dropout)
        self.last = Layer(before, outputs)

    def forward(self, numeric: Tensor, category: Tensor) -> Tensor:
        """Raw outputs of numeric [n, F] and category [n, C]."""
        clipped = numeric / torch.sqrt(1 + (numeric / 3).square())
        state = self.inputs(clipped, category) * self.scale
        for layer, activation in zip(self.layers, self.activations, strict=True):
            state = self.dropout(activation(layer(state)))
        raw: Tensor = self.last(state)
        return raw.squeeze(1) if raw.shape[1] == 1 else raw

    def groups(self) -> list[dict[str, Any]]:
        """The parameters with the factors of their learning rate and weight decay. lr = 2e-3 gives the published rates."""
        pace = {"scale": 120.0, "weight": 20.0, "numbers": 2.0, "bias": 2.0, "share": 2.0}
        found: dict[str, list[nn.Parameter]] = {kind: [] for kind in pace}
        for name, parameter in self.named_parameters():
            found[_kind(name)].append(parameter)
        return [
            {"params": found[kind], "lr": factor, "weight_decay": 0.0 if kind == "bias" else 1.0}
            for kind, factor in pace.items()
            if found[kind]
        ]


def _kind(name: str) -> str:
    if name == "scale":
        return "scale"
    if name.startswith("inputs.numbers"):
        return "numbers"
    return {"bias": "bias", "share": "share"}.get(name.rpartition(".")[2], "weight")


class Layer(nn.Module):
    """A linear layer in NTK parametrization: weights of unit size, divided by the root of the number of inputs as they are used."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))
        self.bias = nn.Parameter(torch.randn(outputs))
        self._factor = 1 / math.sqrt(inputs)

    def forward(self, state: Tensor) -> Tensor:
        """[n, outputs] of [n, inputs]."""
        return nf.linear(state * self._factor, self.weight, self.bias)


class Activation(nn.Module):
    """SELU or Mish, of which each unit takes a learned share: x + share (f(x) - x)."""

    def __init__(self, width: int, mish: bool) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.ones(width))
        self._function = nf.mish if mish else nf.selu

    def forward(self, state: Tensor) -> Tensor:
        """[n, width] of [n, width]."""
        return state + self.share * (self._function(state) - state)
