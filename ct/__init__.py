"""Continuous training on Ray: a pipeline is a value, decisions are data, the journal is the truth.

Every public name is loaded on first use, so that `import ct` loads neither ray nor torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ct import models
    from ct.control.hooking import Hook
    from ct.control.triggers import Drift, Every, NewData
    from ct.data.checks import quarantine, warn
    from ct.data.personal import dropped, keyed
    from ct.data.rules.compare import Compare
    from ct.data.rules.fresh import Fresh
    from ct.data.rules.keep_last import KeepLast
    from ct.data.rules.not_null import NotNull
    from ct.data.rules.one_of import OneOf
    from ct.data.rules.present import Present
    from ct.data.rules.row_count import RowCount
    from ct.data.rules.rule import Rule
    from ct.data.rules.steady import Steady
    from ct.data.rules.unique import Unique
    from ct.data.rules.usual import Usual
    from ct.data.rules.varied import Varied
    from ct.data.rules.within import Within
    from ct.data.slices import newest, only, tagged
    from ct.data.sources.delta import DeltaTable
    from ct.data.sources.folder import Folder
    from ct.data.sources.iceberg import IcebergTable
    from ct.data.sources.objects import ObjectStore
    from ct.errors import CtError
    from ct.evaluation.challengers import LightGBM
    from ct.evaluation.gate import Gate, at_least, at_most, auc, baseline, better, ece, fits, slices
    from ct.evaluation.weighing import drifted, hard, recent, unsure
    from ct.features.kinds.about import about
    from ct.features.kinds.category import category, cross
    from ct.features.kinds.cyclic import cyclic
    from ct.features.kinds.events import events
    from ct.features.kinds.latest import latest
    from ct.features.kinds.numeric import numeric
    from ct.features.kinds.own import feature
    from ct.features.kinds.ratio import ratio
    from ct.features.kinds.window import window
    from ct.pipeline import Label, Pipeline, SchemaPolicy, Table
    from ct.rollout.guards import business, error_rate, latency, quality, scores
    from ct.rollout.plans import AB, AllAtOnce, BlueGreen, Canary, Shadow, Step, Then
    from ct.training.declare import Search, Torch
    from ct.training.ensemble import Ensemble
    from ct.training.search import Asha, Bayes, Population, Random

__all__ = [
    "AB",
    "AllAtOnce",
    "Asha",
    "Bayes",
    "BlueGreen",
    "Canary",
    "Compare",
    "CtError",
    "DeltaTable",
    "Drift",
    "Ensemble",
    "Every",
    "Folder",
    "Fresh",
    "Gate",
    "Hook",
    "IcebergTable",
    "KeepLast",
    "Label",
    "LightGBM",
    "NewData",
    "NotNull",
    "ObjectStore",
    "OneOf",
    "Pipeline",
    "Population",
    "Present",
    "Random",
    "RowCount",
    "Rule",
    "SchemaPolicy",
    "Search",
    "Shadow",
    "Steady",
    "Step",
    "Table",
    "Then",
    "Torch",
    "Unique",
    "Usual",
    "Varied",
    "Within",
    "about",
    "at_least",
    "at_most",
    "auc",
    "baseline",
    "better",
    "business",
    "category",
    "cross",
    "cyclic",
    "drifted",
    "dropped",
    "ece",
    "error_rate",
    "events",
    "feature",
    "fits",
    "hard",
    "keyed",
    "latency",
    "latest",
    "models",
    "newest",
    "numeric",
    "only",
    "quality",
    "quarantine",
    "ratio",
    "recent",
    "scores",
    "slices",
    "tagged",
    "unsure",
    "warn",
    "window",
]

_HOMES = {
    "ct.control.hooking": ("Hook",),
    "ct.control.triggers": ("Drift", "Every", "NewData"),
    "ct.data.checks": ("quarantine", "warn"),
    "ct.data.personal": ("dropped", "keyed"),
    "ct.data.rules.compare": ("Compare",),
    "ct.data.rules.fresh": ("Fresh",),
    "ct.data.rules.keep_last": ("KeepLast",),
    "ct.data.rules.not_null": ("NotNull",),
    "ct.data.rules.one_of": ("OneOf",),
    "ct.data.rules.present": ("Present",),
    "ct.data.rules.row_count": ("RowCount",),
    "ct.data.rules.rule": ("Rule",),
    "ct.data.rules.steady": ("Steady",),
    "ct.data.rules.unique": ("Unique",),
    "ct.data.rules.usual": ("Usual",),
    "ct.data.rules.varied": ("Varied",),
    "ct.data.rules.within": ("Within",),
    "ct.data.slices": ("newest", "only", "tagged"),
    "ct.data.sources.delta": ("DeltaTable",),
    "ct.data.sources.folder": ("Folder",),
    "ct.data.sources.iceberg": ("IcebergTable",),
    "ct.data.sources.objects": ("ObjectStore",),
    "ct.errors": ("CtError",),
    "ct.evaluation.challengers": ("LightGBM",),
    "ct.evaluation.gate": ("Gate", "at_least", "at_most", "auc", "baseline", "better", "ece", "fits", "slices"),
    "ct.evaluation.weighing": ("drifted", "hard", "recent", "unsure"),
    "ct.features.kinds.about": ("about",),
    "ct.features.kinds.category": ("category", "cross"),
    "ct.features.kinds.cyclic": ("cyclic",),
    "ct.features.kinds.events": ("events",),
    "ct.features.kinds.latest": ("latest",),
    "ct.features.kinds.numeric": ("numeric",),
    "ct.features.kinds.own": ("feature",),
    "ct.features.kinds.ratio": ("ratio",),
    "ct.features.kinds.window": ("window",),
    "ct.pipeline": ("Label", "Pipeline", "SchemaPolicy", "Table"),
    "ct.rollout.guards": ("business", "error_rate", "latency", "quality", "scores"),
    "ct.rollout.plans": ("AB", "AllAtOnce", "BlueGreen", "Canary", "Shadow", "Step", "Then"),
    "ct.training.declare": ("Search", "Torch"),
    "ct.training.ensemble": ("Ensemble",),
    "ct.training.search": ("Asha", "Bayes", "Population", "Random"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "models":
        return import_module("ct.models")
    if name not in _HOME:
        raise AttributeError(f"module 'ct' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
