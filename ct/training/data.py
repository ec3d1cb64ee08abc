"""Training rows as tensors on disk, mapped into every worker, and their order as a pure function of (rows, seed, epoch)."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ct.features.encode import Shape
from ct.ids import canonical, sha256

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
