"""From a declaration to a module, and a trained module's raw outputs."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ct.errors import TrainingFailed
from ct.features.encode import Shape
from ct.objectives import BINARY, Objective
from ct.training import checkpoint, losses
from ct.training.combined import Combined
from ct.training.data import TrainingSet
from ct.training.declare import Torch
from ct.training.ensemble import Ensemble

_CHUNK = 65_536


def construct(model: Torch | Ensemble, shape: Shape, objective: Objective = BINARY) -> nn.Module:
    """The module with its seeded first weights. Raises TrainingFailed with the user's own error when it cannot be built.

    `sequences` and `objective`, the objective's kind, are given to a class that names them; for others sequences are flat numbers.
    """
    if isinstance(model, Ensemble):
        members = [construct(part, shape, objective) for part in model.members]
        return Combined(members, objective, model.how == "stacked")
    torch.manual_seed(model.seed)
    more: dict[str, Any] = {"outputs": objective.outputs} if objective.outputs > 1 else {}
    named = inspect.signature(model.module_class).parameters
    if shape.sequences and "sequences" in named:
        more["sequences"] = [[list(step) for step in steps] for steps in shape.sequences]
    if "objective" in named and "objective" not in model.options:
        more["objective"] = objective.kind
    with _reported():
        module: nn.Module = model.module_class(
            numeric=shape.numeric, cardinalities=list(shape.cardinalities), **more, **dict(model.options)
        )
    return module


def loaded(model: Torch | Ensemble, shape: Shape, objective: Objective, weights: checkpoint.Tensors) -> nn.Module:
    """The module with trained weights, ready to predict."""
    module = construct(model, shape, objective).eval()
    module.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in weights.items()})
    return module


def build(model: Torch, rows: TrainingSet, objective: Objective = BINARY) -> nn.Module:
    """`construct`, then a few rows to see whether the module can be called. Raises TrainingFailed when it cannot."""
    module = construct(model, rows.shape, objective)
    few = slice(0, min(8, len(rows)))
    numeric, category = torch.from_numpy(rows.numeric[few].copy()), torch.from_numpy(rows.category[few].copy())
    with _reported(), torch.no_grad():
        shape = tuple(module.eval()(numeric, category).shape)
    expected = (len(numeric), objective.outputs) if objective.outputs > 1 else (len(numeric),)
    if shape != expected:
        raise TrainingFailed(
            f"forward() gave the shape {list(shape)} for {len(numeric)} rows",
            f"raw outputs of the shape {list(expected)}",
            "squeeze the output" if objective.outputs == 1 else "give one output for each class or quantile",
        )
    return module


@contextmanager
def _reported() -> Iterator[None]:
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


def raw(model: Torch | Ensemble, objective: Objective, weights: checkpoint.Tensors, folder: Path) -> NDArray[Any]:
    """A trained model's raw outputs for the rows saved in `folder`, float64 [n] or [n, k]."""
    rows, _ = TrainingSet.open(folder)
    module = loaded(model, rows.shape, objective, weights)
    with torch.no_grad():
        parts = [
            module(
                torch.from_numpy(np.array(rows.numeric[at : at + _CHUNK])),
                torch.from_numpy(np.array(rows.category[at : at + _CHUNK])),
            )
            for at in range(0, len(rows), _CHUNK)
        ]
    return torch.cat(parts).double().numpy()


def mean_loss(model: Torch, objective: Objective, weights: checkpoint.Tensors, folder: Path) -> float:
    """The mean loss of a trained model on the rows saved in `folder`."""
    rows, _ = TrainingSet.open(folder)
    found = torch.from_numpy(raw(model, objective, weights, folder))
    return float(losses.loss(objective, found, torch.from_numpy(np.array(rows.label)).double(), None)) / len(rows)
