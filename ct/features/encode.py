"""Fitted state: scales, vocabularies and bins, learned on the training window only, and the encoding they define. Training and serving share it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ct.data.hashing import text_hash
from ct.errors import Corrupt
from ct.ids import canonical
from ct.roles import Column, Columns

MISSING, UNKNOWN, RARE = 0, 1, 2
CLIP = 8.0
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Shape:
    """What a model must know of its inputs: F numbers, the number of ids of each of C categories, and which of the numbers are sequences.

    A sequence is a tuple of steps, newest first, each a tuple of places among the numbers; all steps of one have the same length. The
    number at a step's last place is 1 where the step is missing, else 0.
    """

    numeric: int
    cardinalities: tuple[int, ...]
    sequences: tuple[tuple[tuple[int, ...], ...], ...] = ()


@dataclass(frozen=True)
class Scale:
    """A numeric column: standardized by mean and deviation, clipped at ±`clip` (0 for never); missing becomes 0, flagged when training had
    missing ones."""

    name: str
    mean: float
    deviation: float
    flagged: bool
    clip: float = CLIP


@dataclass(frozen=True)
class Vocabulary:
    """A category column: id 0 missing, 1 unknown, 2 rare, then `values` in order.

    A value seen once in training counts as unknown, so that the model learns what an unknown value is like.
    """

    name: str
    values: tuple[str, ...]
    rare: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """How many ids there are."""
        return len(self.values) + 3

    @cached_property
    def _ids(self) -> dict[str | None, int]:
        ids: dict[str | None, int] = {None: MISSING}
        ids |= dict.fromkeys(self.rare, RARE)
        ids |= {value: at for at, value in enumerate(self.values, RARE + 1)}
        return ids

    def ids(self, values: NDArray[Any]) -> NDArray[np.int64]:
        """The id of each value, shape [n]."""
        ids = self._ids
        return np.array([ids.get(value, UNKNOWN) for value in values.tolist()], dtype=np.int64)


@dataclass(frozen=True)
class Hashed:
    """A category column without a vocabulary: id 0 missing, then one of `buckets` by the hash of the text."""

    name: str
    buckets: int

    @property
    def size(self) -> int:
        """How many ids there are."""
        return self.buckets + 1

    def ids(self, values: NDArray[Any]) -> NDArray[np.int64]:
        """The id of each value, shape [n]."""
        texts = pa.array(values, pa.string(), from_pandas=True)
        found = 1 + (text_hash(texts) % np.uint64(self.buckets)).astype(np.int64)
        return np.where(texts.is_null().to_numpy(zero_copy_only=False), MISSING, found)


@dataclass(frozen=True)
class Bins:
    """A numeric column as a category: id 0 missing, then the bin between inner `edges`; a value equal to an edge belongs to the bin below it."""

    name: str
    edges: tuple[float, ...]

    @property
    def size(self) -> int:
        """How many ids there are."""
        return len(self.edges) + 2

    def ids(self, values: NDArray[Any]) -> NDArray[np.int64]:
        """The id of each value, shape [n]."""
        found = 1 + np.searchsorted(np.array(self.edges), values)
        return np.where(np.isfinite(values), found, MISSING).astype(np.int64)


Ids: TypeAlias = Vocabulary | Hashed | Bins


@dataclass(frozen=True)
class Encoder:
    """Feature columns → float32 [n, F] and int64 [n, C]. Infinite numbers count as missing.

    `sequences` names the columns of each sequence's steps, newest first. A column has one scale in all steps, and is always flagged.
    """

    scales: tuple[Scale, ...]
    categories: tuple[Ids, ...]
    sequences: tuple[tuple[tuple[str, ...], ...], ...] = ()

    @staticmethod
    def fit(columns: Columns, outputs: Sequence[Column]) -> Encoder:
        """Learn from the training rows."""
        scales: list[Scale] = []
        categories: list[Ids] = []
        sequences = _sequences(outputs)
        shared = _shared(columns, sequences)
        for output in outputs:
            values = columns[output.name]
            if output.hashed:
                categories.append(Hashed(output.name, output.hashed))
            elif output.kind == "category":
                categories.append(_vocabulary(output, values))
            elif output.bins:
                categories.append(_bins(output, values))
            elif output.name in shared:
                scales.append(replace(shared[output.name], name=output.name))
            else:
                scales.append(_scale(output, values))
        return Encoder(tuple(scales), tuple(categories), sequences)

    @cached_property
    def _plan(self) -> tuple[Floats, Floats, Floats, list[int], list[int], list[int]]:
        """Means, deviations and clips [K, 1]; where each of K scales stands in the output; which are flagged, and where their flags stand."""
        mean = np.array([[scale.mean] for scale in self.scales]).reshape(-1, 1)
        deviation = np.array([[scale.deviation] for scale in self.scales]).reshape(-1, 1)
        clip = np.array([[scale.clip or np.inf] for scale in self.scales]).reshape(-1, 1)
        flagged = [at for at, scale in enumerate(self.scales) if scale.flagged]
        places = [at + sum(other < at for other in flagged) for at in range(len(self.scales))]
        return mean, deviation, clip, places, flagged, [places[at] + 1 for at in flagged]

    @cached_property
    def numeric_names(self) -> tuple[str, ...]:
        """The F numeric inputs: each column, and `<column>?` where missing values are flagged."""
        return tuple(
            name for scale in self.scales for name in ((scale.name, f"{scale.name}?") if scale.flagged else (scale.name,))
        )

    @property
    def texts(self) -> tuple[str, ...]:
        """The columns that hold text; all others hold numbers."""
        return tuple(part.name for part in self.categories if not isinstance(part, Bins))

    @property
    def names(self) -> tuple[str, ...]:
        """All columns that it reads."""
        return (*(scale.name for scale in self.scales), *(part.name for part in self.categories))

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """Ids of each of the C categories."""
        return tuple(part.size for part in self.categories)

    @property
    def shape(self) -> Shape:
        """What a model must know of F and C."""
        place = {name: at for at, name in enumerate(self.numeric_names)}
        sequences = tuple(
            tuple(tuple(place[part] for name in step for part in (name, f"{name}?")) for step in steps)
            for steps in self.sequences
        )
        return Shape(len(self.numeric_names), self.cardinalities, sequences)

    def numeric(self, columns: Columns) -> NDArray[np.float32]:
        """Standardized numbers, float32 [n, F]."""
        made = np.empty((_count(columns), len(self.numeric_names)), dtype=np.float32)
        if self.scales:
            mean, deviation, clip, places, flagged, flags = self._plan
            values = np.array([columns[scale.name] for scale in self.scales])  # [K, n]: one operation for all columns
            present = np.isfinite(values)
            if present.all():
                made[:, places] = np.minimum(np.maximum((values - mean) / deviation, -clip), clip).T
                made[:, flags] = 0.0
            else:
                absent = ~present
                values[absent] = 0.0
                scaled = np.minimum(np.maximum((values - mean) / deviation, -clip), clip)
                scaled[absent] = 0.0
                made[:, places] = scaled.T
                made[:, flags] = absent[flagged].T
        return made

    def category(self, columns: Columns) -> NDArray[np.int64]:
        """Ids, int64 [n, C]."""
        made = np.empty((_count(columns), len(self.categories)), dtype=np.int64)
        for at, part in enumerate(self.categories):
            made[:, at] = part.ids(columns[part.name])
        return made

    def to_json(self) -> bytes:
        """One spelling of the encoder."""
        categories = [{"kind": type(part).__name__, **asdict(part)} for part in self.categories]
        found: dict[str, Any] = {"scales": [asdict(scale) for scale in self.scales], "categories": categories}
        return canonical(found | ({"sequences": self.sequences} if self.sequences else {})).encode()

    @staticmethod
    def from_json(data: bytes) -> Encoder:
        """The encoder that `to_json` wrote. Raises Corrupt for what this ct does not know."""
        found = json.loads(data)
        try:
            categories = tuple(_part(**fields) for fields in found["categories"])
            sequences = tuple(tuple(tuple(step) for step in steps) for steps in found.get("sequences", ()))
            return Encoder(tuple(Scale(**scale) for scale in found["scales"]), categories, sequences)
        except (KeyError, TypeError) as error:
            raise Corrupt(f"an encoder of another form: {error}", "the form of this ct", "upgrade ct, or retrain") from None


def _part(kind: str, **fields: Any) -> Ids:
    made: dict[str, type[Any]] = {"Vocabulary": Vocabulary, "Hashed": Hashed, "Bins": Bins}
    part: Ids = made[kind](**{key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()})
    return part


def _vocabulary(output: Column, values: NDArray[Any]) -> Vocabulary:
    found = Counter(value for value in values.tolist() if value is not None)
    kept = sorted(value for value, count in found.items() if count >= output.rare)
    rare = sorted(value for value, count in found.items() if 2 <= count < output.rare)
    return Vocabulary(output.name, tuple(kept), tuple(rare))


def _bins(output: Column, values: NDArray[Any]) -> Bins:
    present = values[np.isfinite(values)]
    if not len(present):
        return Bins(output.name, ())
    edges = np.unique(np.quantile(present, np.arange(1, output.bins) / output.bins, method="inverted_cdf"))
    return Bins(output.name, tuple(edges.tolist()))


def _sequences(outputs: Sequence[Column]) -> tuple[tuple[tuple[str, ...], ...], ...]:
    """The columns of each sequence's steps."""
    found: dict[str, dict[int, list[str]]] = {}
    for output in outputs:
        if output.sequence:
            found.setdefault(output.sequence, {}).setdefault(output.step, []).append(output.name)
    return tuple(tuple(tuple(steps[step]) for step in sorted(steps)) for steps in found.values())


def _shared(columns: Columns, sequences: Sequence[Sequence[Sequence[str]]]) -> dict[str, Scale]:
    """The scale of each column in sequences: one for all steps, so that a model may read every step with the same weights."""
    found: dict[str, Scale] = {}
    for steps in sequences:
        for names in zip(*steps, strict=True):
            values = np.concatenate([columns[name] for name in names])
            scale = replace(_scale(Column(names[0], "numeric"), values), flagged=True)
            found |= dict.fromkeys(names, scale)
    return found


def _scale(output: Column, values: NDArray[Any]) -> Scale:
    present = values[np.isfinite(values)]
    flagged = len(present) < len(values)
    if not output.scaled:
        return Scale(output.name, 0.0, 1.0, flagged, 0.0)
    with np.errstate(over="ignore", invalid="ignore"):
        mean = float(present.mean()) if len(present) else 0.0
        deviation = float(present.std()) if len(present) else 0.0
    if not np.isfinite(mean) or not np.isfinite(deviation):  # sums beyond float64: the column says nothing that could be scaled
        mean, deviation = 0.0, float(np.abs(present).max())
    # A column of one value may show a deviation of rounding errors only; dividing by it would blow noise up.
    spread = deviation > 1e-12 * abs(mean)
    return Scale(output.name, mean, deviation if spread and deviation > 0 else 1.0, flagged)


def _count(columns: Columns) -> int:
    return len(next(iter(columns.values())))
