"""A plain multi-layer perceptron, to begin with and to compare with."""

from __future__ import annotations

from torch import Tensor, nn

from ct.models.inputs import Inputs, Places


class MLP(nn.Module):
    """All inputs through `depth` hidden layers of `width`.

    `embedding` of the numbers is "" for none, "periodic" or "piecewise". Gives raw outputs [n], or [n, k] for k `outputs`.
    """

    def __init__(
        self,
        numeric: int,
        cardinalities: list[int],
        outputs: int = 1,
        sequences: Places = (),
        width: int = 128,
        depth: int = 2,
        dropout: float = 0.1,
        embedding: str = "",
    ) -> None:
        super().__init__()
        self.inputs = Inputs(numeric, cardinalities, sequences, embedding)
        layers: list[nn.Module] = []
        before = self.inputs.width
        for _ in range(depth):
            layers += [nn.Linear(before, width), nn.ReLU(), nn.Dropout(dropout)]
            before = width
        self.layers = nn.Sequential(*layers, nn.Linear(before, outputs))

    def forward(self, numeric: Tensor, category: Tensor) -> Tensor:
        """Raw outputs of numeric [n, F] and category [n, C]."""
        raw: Tensor = self.layers(self.inputs(numeric, category))
        return raw.squeeze(1) if raw.shape[1] == 1 else raw
