"""Ready tabular models: MLP, RealMLP and TabM. Import this package only where a model is declared by its class: it loads torch."""

from ct.training.models.mlp import MLP
from ct.training.models.realmlp import RealMLP
from ct.training.models.tabm import TabM

__all__ = ["MLP", "RealMLP", "TabM"]
