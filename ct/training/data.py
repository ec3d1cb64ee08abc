"""Training rows as tensors on disk, mapped into every worker, and their order as a pure function of (rows, seed, epoch)."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ct.ids import canonical, sha256

_ARRAYS = ("numeric", "category", "label")


@dataclass(frozen=True)
class TrainingSet:
    """Encoded rows: numeric float32 [n, F], category int64 [n, C] with ids below `cardinalities`, label float32 [n] in {0, 1}."""

    numeric: NDArray[np.float32]
    category: NDArray[np.int64]
    label: NDArray[np.float32]
    cardinalities: tuple[int, ...]

    def __len__(self) -> int:
        """The number of rows n."""
        return len(self.label)

    def digest(self) -> str:
        """SHA-256 over every value and shape."""
        hashes = [sha256(np.asarray(getattr(self, name), order="C").tobytes()) for name in _ARRAYS]
        return sha256(canonical([hashes, [list(getattr(self, name).shape) for name in _ARRAYS], list(self.cardinalities)]))

    def save(self, folder: Path) -> Path:
        """Write the rows below `folder`; the small file set.json is written last and makes them a set."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "set.json").unlink(missing_ok=True)
        for name in _ARRAYS:
            part = folder / f".{name}.npy"
            with part.open("wb") as file:
                np.save(file, np.asarray(getattr(self, name), order="C"))
            os.replace(part, folder / f"{name}.npy")
        (folder / "set.json").write_text(json.dumps({"cardinalities": list(self.cardinalities), "digest": self.digest()}))
        return folder

    @staticmethod
    def open(folder: Path) -> tuple[TrainingSet, str]:
        """Map a saved set; nothing is read before it is used. Returns it with the digest that `save` wrote."""
        said = json.loads((folder / "set.json").read_text())
        numeric, category, label = (np.load(folder / f"{name}.npy", mmap_mode="c") for name in _ARRAYS)
        return TrainingSet(numeric, category, label, tuple(said["cardinalities"])), said["digest"]


def order(rows: int, digest: str, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of a set's `rows` rows in `epoch`: the same for the same arguments on any machine (Philox, counter-based)."""
    key = int(sha256(canonical([digest, seed, epoch]))[:32], 16)
    return np.random.Generator(np.random.Philox(key=key)).permutation(rows)


def batch_of(rows: int, batch: int) -> int:
    """The rows of a step: `batch`, or all where there are fewer.

    An epoch has rows // batch steps. A last, incomplete batch is dropped; its rows come elsewhere in the next epoch's order.
    """
    return min(rows, batch)
