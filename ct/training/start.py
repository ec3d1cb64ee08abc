"""The weights a training begins with, taken from an earlier model: by name where shapes fit, rows of embeddings by value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load

from ct.features.encode import Shape
from ct.objectives import Objective
from ct.training import warm
from ct.training.declare import Torch, pickled, unpickled

Weights = Mapping[str, NDArray[Any]]
ENSEMBLE = "ensemble."
"""What the names of an ensemble's members' tensors begin with, before the member's number (training/combined.py)."""


@dataclass(frozen=True)
class Carried:
    """Weights to begin with, by name, and the names of those that begin as the module says."""

    weights: Weights
    fresh: tuple[str, ...]


def read(data: bytes, member: int = 0) -> dict[str, NDArray[Any]]:
    """The weights in a version's safetensors file; of an ensemble, those of one member (the last one where it has fewer)."""
    found: dict[str, NDArray[Any]] = load(data)
    numbers = {int(name.split(".")[1]) for name in found if name.startswith(ENSEMBLE)}
    if not numbers:
        return found
    prefix = f"{ENSEMBLE}{min(member, max(numbers))}."
    return {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}


def shapes(model: Torch, shape: Shape, objective: Objective) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of the declared module's state, in its order, found in the warm process."""
    found: dict[str, tuple[int, ...]] = warm.call(_shapes, *pickled(model), shape, objective)
    return found


def _shapes(model: bytes, paths: tuple[str, ...], shape: Shape, objective: Objective) -> dict[str, tuple[int, ...]]:
    from ct.training.building import construct

    module = construct(unpickled(model, paths), shape, objective)
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def carried(
    weights: Weights,
    wanted: Mapping[str, tuple[int, ...]],
    before: Sequence[int],
    sources: Sequence[NDArray[np.int64]],
) -> Carried:
    """Of the tensors `wanted` (name → shape), those that `weights` has.

    A tensor of the same shape is taken as it is: the ids of a category mean the same before and now. One that is longer only along its
    first axis is the table of a category that has grown: `before` holds how many ids each category had, `sources` (encoder.continuing)
    which row each id begins with. Anything else begins as the module says.
    """
    open_ = [at for at, rows in enumerate(sources) if len(rows) != before[at]]
    made: dict[str, NDArray[Any]] = {}
    for name, shape in wanted.items():
        value = weights.get(name)
        if value is None or value.ndim != len(shape):
            continue
        if value.shape == shape:
            made[name] = value
        elif value.shape[1:] == shape[1:]:
            grown = [at for at in open_ if (before[at], len(sources[at])) == (value.shape[0], shape[0])]
            if grown:
                open_.remove(grown[0])
                made[name] = value[sources[grown[0]]]
    return Carried(made, tuple(name for name in wanted if name not in made))
