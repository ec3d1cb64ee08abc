"""A version's module as machine code for this machine, by AOTInductor: compiled in a process of its own, loaded from the package it wrote.

Which files may be compiled, and where packages are kept, is serving/compiled.py's matter.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ct.features.encode import CLIP, Encoder
from ct.ids import sha256, sha256_file
from ct.models.restoring import Eager, one_thread, restored
from ct.objectives import Calibration, Objective
from ct.registry import files
from ct.registry.files import ModelSpec

TOLERANCE = 1e-6
_ROWS = 37
_MOST = 1 << 24


def machine() -> dict[str, str]:
    """What machine code depends on besides the version: torch, the processor and its instructions, and how ct builds modules."""
    here = Path(__file__).parent
    return {
        "torch": torch.__version__,
        "machine": platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "instructions": sha256(_instructions()),
        "code": sha256("".join(sha256_file(file) for file in sorted(here.glob("*.py")))),
    }


def _instructions() -> str:
    """The compiler is told to use all that this processor has, which the capability's name says in part."""
    try:
        with open("/proc/cpuinfo") as file:
            return next((line for line in file if line.startswith(("flags", "Features"))), "")
    except OSError:
        return platform.processor()


@dataclass(frozen=True)
class Compiled:
    """A loaded package."""

    model: Any
    name: str = "aot"

    @staticmethod
    def load(package: Path) -> Compiled:
        """The package that `compile_` wrote. Its code is run: it must be this machine's own. Raises RuntimeError when it is none."""
        return Compiled(torch._inductor.aoti_load_package(str(package)))

    def run(self, numeric: NDArray[np.float32], category: NDArray[np.int64]) -> NDArray[Any]:
        """Scores [n] or [n, k] of numeric [n, F] and category [n, C]."""
        with torch.inference_mode(), one_thread():
            scores: NDArray[Any] = self.model(torch.from_numpy(numeric), torch.from_numpy(category)).numpy()
        return scores


def compile_(made: Mapping[str, bytes], package: Path) -> None:
    """Compile the module of these verified files into `package`. Raises RuntimeError when torch cannot, or the scores are others than torch's."""
    import torch._inductor

    module, encoder = restored(made), Encoder.from_json(made[files.ENCODER])
    numeric, category = _drawn(encoder)
    example = (torch.from_numpy(numeric[:2].copy()), torch.from_numpy(category[:2].copy()))
    rows = torch.export.Dim("rows", min=1, max=_MOST)
    with torch.no_grad():
        program = torch.export.export(module, example, dynamic_shapes=({0: rows}, {0: rows}))
        # One thread in the code itself: a replica has one, and nobody knows here how many the caller's process has.
        torch._inductor.aoti_compile_and_package(
            program, package_path=str(package), inductor_configs={"cpp.threads": 1, "compile_threads": 1}
        )
    spec = ModelSpec.from_bytes(made[files.SPEC])
    objective, calibration = Objective.from_json(spec.objective), Calibration.from_json(spec.calibration)
    here, there = Eager(module), Compiled.load(package)
    for taken in (slice(None), slice(0, 1)):
        expected, found = (by.run(numeric[taken], category[taken]).astype(np.float64) for by in (here, there))
        gap = calibration.gap(objective, found, expected)
        if not gap <= TOLERANCE:
            raise RuntimeError(f"compiled scores differ from torch's by {gap:.1e}, more than {TOLERANCE:.0e}")


def _drawn(encoder: Encoder) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Rows that an encoder might give."""
    chance, sizes = np.random.default_rng(7), encoder.shape.cardinalities
    numeric = np.clip(chance.normal(size=(_ROWS, encoder.shape.numeric)), -CLIP, CLIP).astype(np.float32)
    return numeric, chance.integers(0, np.array(sizes, dtype=np.int64), size=(_ROWS, len(sizes)))


def main() -> None:
    """The process that compiles: reads the files in the folder of its first argument and writes the package of its second's name there."""
    folder, package = Path(sys.argv[1]), sys.argv[2]
    os.nice(10)  # replicas answer meanwhile
    made = {name: (folder / name).read_bytes() for name in sorted(files.REQUIRED)}
    try:
        compile_(made, folder / package)
    except Exception as error:  # torch raises many kinds; the last line is what the other process tells
        lines = [line.strip() for line in f"{type(error).__name__}: {error}".splitlines() if line.strip()]
        sys.exit(lines[0][:300])


if __name__ == "__main__":
    main()
