"""Training rows as tensors on disk, mapped into every worker, and their order as a pure function of (rows, seed, epoch)."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ct.errors import TrainingFailed
from ct.features.encode import Shape
from ct.ids import canonical, sha256
from ct.objectives import Objective

LEAST_ROWS, DEAD_SHARE = 100, 0.5
_ARRAYS = ("numeric", "category", "label")


@dataclass(frozen=True)
class TrainingSet:
    """Encoded rows: numeric float32 [n, F], category int64 [n, C], label float32 [n], and how much each row counts (float32 [n], None: alike)."""

    numeric: NDArray[np.float32]
    category: NDArray[np.int64]
    label: NDArray[np.float32]
    shape: Shape
    weight: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        """The number of rows n."""
        return len(self.label)

    def digest(self) -> str:
        """SHA-256 over every value and shape."""
        arrays = self._arrays()
        hashes = [sha256(np.asarray(values, order="C").tobytes()) for values in arrays.values()]
        return sha256(canonical([hashes, [list(values.shape) for values in arrays.values()], asdict(self.shape)]))

    def save(self, folder: Path) -> Path:
        """Write the rows below `folder`; the small file set.json is written last and makes them a set."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "set.json").unlink(missing_ok=True)
        for name, values in self._arrays().items():
            part = folder / f".{name}.npy"
            with part.open("wb") as file:
                np.save(file, np.asarray(values, order="C"))
            os.replace(part, folder / f"{name}.npy")
        said = {"shape": asdict(self.shape), "digest": self.digest(), "weighed": self.weight is not None}
        (folder / "set.json").write_text(json.dumps(said))
        return folder

    def _arrays(self) -> dict[str, NDArray[Any]]:
        found: dict[str, NDArray[Any]] = {name: getattr(self, name) for name in _ARRAYS}
        return found if self.weight is None else found | {"weight": self.weight}

    @staticmethod
    def open(folder: Path) -> tuple[TrainingSet, str]:
        """Map a saved set; nothing is read before it is used. Returns it with the digest that `save` wrote."""
        said = json.loads((folder / "set.json").read_text())
        names = (*_ARRAYS, "weight") if said["weighed"] else _ARRAYS
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="c") for name in names}
        shape = said["shape"]
        sequences = tuple(tuple(tuple(step) for step in steps) for steps in shape["sequences"])
        return TrainingSet(**arrays, shape=Shape(shape["numeric"], tuple(shape["cardinalities"]), sequences)), said["digest"]


def order(rows: int, digest: str, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of a set's `rows` rows in `epoch`: the same for the same arguments on any machine (Philox, counter-based)."""
    key = int(sha256(canonical([digest, seed, epoch]))[:32], 16)
    return np.random.Generator(np.random.Philox(key=key)).permutation(rows)


def batch_of(rows: int, batch: int) -> int:
    """The rows of a step: `batch`, or all where there are fewer.

    An epoch has rows // batch steps. A last, incomplete batch is dropped; its rows come elsewhere in the next epoch's order.
    """
    return min(rows, batch)


def balanced(rows: TrainingSet, objective: Objective) -> NDArray[np.float32]:
    """Weights by which every class present counts alike in the whole set, times the rows' own; float32 [n] with the mean 1 for a set without weights.

    Raises TrainingFailed where labels are no classes.
    """
    if objective.kind not in ("binary", "classes"):
        raise TrainingFailed(f"balanced=True for an objective of kind {objective.kind!r}", "classes", "leave balanced out")
    own = np.ones(len(rows)) if rows.weight is None else np.asarray(rows.weight, dtype=np.float64)
    classes = np.asarray(rows.label).astype(np.int64)
    sums = np.bincount(classes, own)
    present = sums > 0
    factors = np.divide(own.sum(), sums * int(present.sum()), out=np.zeros(len(sums)), where=present)
    weight: NDArray[np.float32] = (own * factors[classes]).astype(np.float32)
    return weight


def faults(rows: TrainingSet, objective: Objective) -> list[str]:
    """Why a model should not be trained on these rows, none for good ones.

    Fewer than 100 rows; numbers or weights that are not finite, weights below 0 or all 0; labels all alike or no class; more than half
    of the numeric columns constant.
    """
    if len(rows) < LEAST_ROWS:
        return [f"{len(rows)} rows to train on, at least {LEAST_ROWS} are needed"]
    found = []
    label, numeric = np.asarray(rows.label), np.asarray(rows.numeric)
    if not np.isfinite(label).all():
        return [f"{int((~np.isfinite(label)).sum())} labels are no numbers"]
    if objective.kind in ("binary", "classes") and not np.isin(label, np.arange(max(2, objective.outputs))).all():
        return [f"labels from {label.min():g} to {label.max():g}, where classes are 0 to {max(2, objective.outputs) - 1}"]
    if label.min() == label.max():
        found.append(f"every label is {label[0]:g}: there is nothing to learn")
    if not np.isfinite(numeric).all():
        found.append(f"{int((~np.isfinite(numeric)).any(axis=0).sum())} numeric columns hold values that are no numbers")
    if rows.weight is not None and not (np.isfinite(rows.weight).all() and rows.weight.min() >= 0 and rows.weight.max() > 0):
        found.append("weights below 0, all 0, or no numbers")
    constant = int((numeric == numeric[:1]).all(axis=0).sum())
    if numeric.shape[1] and constant > DEAD_SHARE * numeric.shape[1]:
        found.append(f"{constant} of {numeric.shape[1]} numeric columns have one value only")
    return found
