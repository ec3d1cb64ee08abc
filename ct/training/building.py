"""From a declaration to a module, and a trained module's raw outputs. The module itself is built in ct/models, which serving shares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ct.errors import TrainingFailed
from ct.features.encode import Shape
from ct.models import building
from ct.models.building import Part, Recipe, reported
from ct.objectives import BINARY, Objective
from ct.training import checkpoint, losses
from ct.training.data import TrainingSet
from ct.training.declare import Torch
from ct.training.ensemble import Ensemble

_CHUNK = 65_536


def construct(model: Torch | Ensemble, shape: Shape, objective: Objective = BINARY) -> nn.Module:
    """The declared module with its seeded first weights, see `models.building.construct`."""
    return building.construct(_recipe(model), shape, objective)


def loaded(model: Torch | Ensemble, shape: Shape, objective: Objective, weights: checkpoint.Tensors) -> nn.Module:
    """The module with trained weights, ready to predict."""
    return building.loaded(_recipe(model), shape, objective, weights)


def _recipe(model: Torch | Ensemble) -> Recipe:
    parts = tuple(Part(part.module_class, dict(part.options), part.seed) for part in model.members)
    return Recipe(parts, model.how if isinstance(model, Ensemble) else "")


def build(model: Torch, rows: TrainingSet, objective: Objective = BINARY) -> nn.Module:
    """`construct`, then a few rows to see whether the module can be called. Raises TrainingFailed when it cannot."""
    module = construct(model, rows.shape, objective)
    few = slice(0, min(8, len(rows)))
    numeric, category = torch.from_numpy(rows.numeric[few].copy()), torch.from_numpy(rows.category[few].copy())
    with reported(), torch.no_grad():
        shape = tuple(module.eval()(numeric, category).shape)
    expected = (len(numeric), objective.outputs) if objective.outputs > 1 else (len(numeric),)
    if shape != expected:
        raise TrainingFailed(
            f"forward() gave the shape {list(shape)} for {len(numeric)} rows",
            f"raw outputs of the shape {list(expected)}",
            "squeeze the output" if objective.outputs == 1 else "give one output for each class or quantile",
        )
    return module


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
