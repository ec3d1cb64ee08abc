"""Fitted state: vocabularies and scales, learned on the training window only, and the encoding they define. Training and serving share it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ct.ids import canonical
from ct.roles import Column, Columns

MISSING, UNKNOWN = 0, 1
CLIP = 8.0
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Scale:
    """A numeric column: standardized by mean and deviation, clipped at ±8; missing becomes 0, flagged when training had missing ones."""

    name: str
    mean: float
    deviation: float
    flagged: bool


@dataclass(frozen=True)
class Vocabulary:
    """A category column: id 0 missing, 1 unknown or rare, then `values` in order."""

    name: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Encoder:
    """Feature columns → float32 [n, F] and int64 [n, C]. Infinite numbers count as missing."""

    scales: tuple[Scale, ...]
    vocabularies: tuple[Vocabulary, ...]

    @staticmethod
    def fit(columns: Columns, outputs: Sequence[Column], *, min_count: int = 5) -> Encoder:
        """Learn from the training rows. Categories seen fewer than `min_count` times count as unknown."""
        scales, vocabularies = [], []
        for output in outputs:
            values = columns[output.name]
            if output.kind == "category":
                found = Counter(value for value in values.tolist() if value is not None)
                kept = sorted(value for value, count in found.items() if count >= min_count)
                vocabularies.append(Vocabulary(output.name, tuple(kept)))
            else:
                scales.append(_scale(output.name, values))
        return Encoder(tuple(scales), tuple(vocabularies))

    @cached_property
    def _ids(self) -> tuple[dict[str | None, int], ...]:
        return tuple({None: MISSING, **{value: at for at, value in enumerate(v.values, 2)}} for v in self.vocabularies)

    @cached_property
    def _plan(self) -> tuple[Floats, Floats, list[int], list[int], list[int]]:
        """Means [K, 1], deviations [K, 1]; where each of K scales stands in the output; which are flagged, and where their flags stand."""
        mean = np.array([[scale.mean] for scale in self.scales]).reshape(-1, 1)
        deviation = np.array([[scale.deviation] for scale in self.scales]).reshape(-1, 1)
        flagged = [at for at, scale in enumerate(self.scales) if scale.flagged]
        places = [at + sum(other < at for other in flagged) for at in range(len(self.scales))]
        return mean, deviation, places, flagged, [places[at] + 1 for at in flagged]

    @cached_property
    def numeric_names(self) -> tuple[str, ...]:
        """The F numeric inputs: each column, and `<column>?` where missing values are flagged."""
        return tuple(
            name for scale in self.scales for name in ((scale.name, f"{scale.name}?") if scale.flagged else (scale.name,))
        )

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """Ids of each of the C categories."""
        return tuple(len(vocabulary.values) + 2 for vocabulary in self.vocabularies)

    def numeric(self, columns: Columns) -> NDArray[np.float32]:
        """Standardized numbers, float32 [n, F]."""
        made = np.empty((_count(columns), len(self.numeric_names)), dtype=np.float32)
        if self.scales:
            mean, deviation, places, flagged, flags = self._plan
            values = np.array([columns[scale.name] for scale in self.scales])  # [K, n]: one operation for all columns
            absent = ~np.isfinite(values)
            values[absent] = 0.0
            scaled = np.minimum(np.maximum((values - mean) / deviation, -CLIP), CLIP)
            scaled[absent] = 0.0
            made[:, places] = scaled.T
            made[:, flags] = absent[flagged].T
        return made

    def category(self, columns: Columns) -> NDArray[np.int64]:
        """Ids, int64 [n, C]."""
        made = np.empty((_count(columns), len(self.vocabularies)), dtype=np.int64)
        for at, (vocabulary, ids) in enumerate(zip(self.vocabularies, self._ids, strict=True)):
            made[:, at] = [ids.get(value, UNKNOWN) for value in columns[vocabulary.name].tolist()]
        return made

    def to_json(self) -> bytes:
        """One spelling of the encoder."""
        scales = [[s.name, s.mean, s.deviation, s.flagged] for s in self.scales]
        return canonical({"scales": scales, "vocabularies": [[v.name, list(v.values)] for v in self.vocabularies]}).encode()

    @staticmethod
    def from_json(data: bytes) -> Encoder:
        """The encoder that `to_json` wrote."""
        found = json.loads(data)
        vocabularies = tuple(Vocabulary(name, tuple(values)) for name, values in found["vocabularies"])
        return Encoder(tuple(Scale(*scale) for scale in found["scales"]), vocabularies)


def _scale(name: str, values: NDArray[Any]) -> Scale:
    present = values[np.isfinite(values)]
    with np.errstate(over="ignore", invalid="ignore"):
        mean = float(present.mean()) if len(present) else 0.0
        deviation = float(present.std()) if len(present) else 0.0
    if not np.isfinite(mean) or not np.isfinite(deviation):  # sums beyond float64: the column says nothing that could be scaled
        mean, deviation = 0.0, float(np.abs(present).max())
    # A column of one value may show a deviation of rounding errors only; dividing by it would blow noise up.
    spread = deviation > 1e-12 * abs(mean)
    return Scale(name, mean, deviation if spread and deviation > 0 else 1.0, len(present) < len(values))


def _count(columns: Columns) -> int:
    return len(next(iter(columns.values())))
