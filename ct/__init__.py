"""Continuous training on Ray: a pipeline is a value, decisions are data, the journal is the truth.

Every public name is loaded on first use, so that `import ct` loads neither ray nor torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ct.control.triggers import Drift, Every, NewData
    from ct.data.checks import NotNull, OneOf, Steady, Unique, Within
    from ct.errors import CtError
    from ct.evaluation.gate import Gate, auc, ece
    from ct.features.declare import category, cyclic, latest, numeric, window
    from ct.pipeline import Label, Pipeline, Table
    from ct.rollout.plans import BlueGreen, Canary, Shadow, error_rate, latency, quality
    from ct.training import models
    from ct.training.declare import Search, Torch

__all__ = [
    "BlueGreen",
    "Canary",
    "CtError",
    "Drift",
    "Every",
    "Gate",
    "Label",
    "NewData",
    "NotNull",
    "OneOf",
    "Pipeline",
    "Search",
    "Shadow",
    "Steady",
    "Table",
    "Torch",
    "Unique",
    "Within",
    "auc",
    "category",
    "cyclic",
    "ece",
    "error_rate",
    "latency",
    "latest",
    "models",
    "numeric",
    "quality",
    "window",
]

_HOMES = {
    "ct.control.triggers": ("Drift", "Every", "NewData"),
    "ct.data.checks": ("NotNull", "OneOf", "Steady", "Unique", "Within"),
    "ct.errors": ("CtError",),
    "ct.evaluation.gate": ("Gate", "auc", "ece"),
    "ct.features.declare": ("category", "cyclic", "latest", "numeric", "window"),
    "ct.pipeline": ("Label", "Pipeline", "Table"),
    "ct.rollout.plans": ("BlueGreen", "Canary", "Shadow", "error_rate", "latency", "quality"),
    "ct.training.declare": ("Search", "Torch"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "models":
        return import_module("ct.training.models")
    if name not in _HOME:
        raise AttributeError(f"module 'ct' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
