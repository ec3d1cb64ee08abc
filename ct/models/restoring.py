"""A version's verified files as the module that was trained, with its calibration, and its scores on one thread.

Weights are read from safetensors; nothing is unpickled. A module of the user's comes from the version's own archive of code, which is run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load
from torch import nn

from ct import models
from ct.errors import Corrupt, TrainingFailed
from ct.features.encode import Encoder
from ct.models.building import Part, Recipe, loaded
from ct.models.scoring import scorer
from ct.objectives import Calibration, Objective
from ct.registry import code, files
from ct.registry.files import ModelSpec


def restored(made: Mapping[str, bytes]) -> nn.Module:
    """The module that gives the scores of the version with these verified files, in eval mode. Its spec must have a recipe.

    Raises Corrupt when it cannot be built.
    """
    spec = ModelSpec.from_bytes(made[files.SPEC])
    shape, objective = Encoder.from_json(made[files.ENCODER]).shape, Objective.from_json(spec.objective)
    parts = tuple(_part(told, made[files.CODE]) for told in spec.model["parts"])
    try:
        with torch.random.fork_rng(devices=[]):  # first weights are drawn and then replaced: nobody else's numbers change
            module = loaded(Recipe(parts, spec.model["how"]), shape, objective, load(made[files.WEIGHTS]))
    except (TrainingFailed, SafetensorError, RuntimeError) as error:
        said = error.found if isinstance(error, TrainingFailed) else str(error).strip().splitlines()[0]
        raise Corrupt(f"the module cannot be built: {said[:300]}", "the module that was trained", "train again") from None
    return scorer(module, objective, Calibration.from_json(spec.calibration))


def _part(told: Mapping[str, Any], archive: bytes) -> Part:
    if ready := told.get("ready"):
        if ready not in models.__all__:
            raise Corrupt(f"a ready model called {ready!r}", f"one of {models.__all__}", "upgrade ct")
        return Part(getattr(models, ready), told["options"], told["seed"])
    return Part(code.named(archive, told["module"], told["name"]), told["options"], told["seed"])


@dataclass(frozen=True)
class Eager:
    """A module as torch runs it, operation by operation."""

    module: nn.Module
    name: str = "torch"

    def run(self, numeric: NDArray[np.float32], category: NDArray[np.int64]) -> NDArray[Any]:
        """Scores [n] or [n, k] of numeric [n, F] and category [n, C]."""
        with torch.inference_mode(), one_thread():
            scores: NDArray[Any] = self.module(torch.from_numpy(numeric), torch.from_numpy(category)).numpy()
        return scores


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch counts its threads for each thread of the process: whoever scores has one, and is given back what it had."""
    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
