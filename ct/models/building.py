"""From a recipe to a module, with its first weights or with trained ones. Where recipes come from is not known here."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ct.errors import TrainingFailed
from ct.features.encode import Shape
from ct.models.combined import Combined
from ct.objectives import BINARY, Objective


@dataclass(frozen=True)
class Part:
    """What one module is made by: its class, that class's options, and the seed of its first weights."""

    make: Any
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True)
class Recipe:
    """One part; or an ensemble's, which are combined as `how` says: "average" or "stacked"."""

    parts: tuple[Part, ...]
    how: str = ""


def construct(recipe: Recipe, shape: Shape, objective: Objective = BINARY) -> nn.Module:
    """The module with its seeded first weights. Raises TrainingFailed with the user's own error when it cannot be built.

    `sequences` and `objective`, the objective's kind, are given to a class that names them; for others sequences are flat numbers.
    """
    made = [_part(part, shape, objective) for part in recipe.parts]
    return Combined(made, objective, recipe.how == "stacked") if recipe.how else made[0]


def _part(part: Part, shape: Shape, objective: Objective) -> nn.Module:
    torch.manual_seed(part.seed)
    more: dict[str, Any] = {"outputs": objective.outputs} if objective.outputs > 1 else {}
    with reported():
        named = inspect.signature(part.make).parameters
        if shape.sequences and "sequences" in named:
            more["sequences"] = [[list(step) for step in steps] for steps in shape.sequences]
        if "objective" in named and "objective" not in part.options:
            more["objective"] = objective.kind
        module: nn.Module = part.make(
            numeric=shape.numeric, cardinalities=list(shape.cardinalities), **more, **dict(part.options)
        )
    return module


def loaded(recipe: Recipe, shape: Shape, objective: Objective, weights: Mapping[str, NDArray[Any]]) -> nn.Module:
    """The module with trained weights, ready to predict. Raises TrainingFailed when it cannot be built, RuntimeError for another's weights."""
    module = construct(recipe, shape, objective).eval()
    module.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in weights.items()})
    return module


@contextmanager
def reported() -> Iterator[None]:
    """A user's module may raise anything; it is reported with its line, not traced."""
    try:
        yield
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        raise TrainingFailed(
            f"the model raised {type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})",
            "model(numeric=F, cardinalities=[...], **options) and forward(numeric [n, F], category [n, C]) -> logits [n]",
            "mend the model's module",
        ) from error
