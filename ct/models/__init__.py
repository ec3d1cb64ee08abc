"""Ready tabular models: MLP, RealMLP and TabM. Import this package only where a model is declared by its class: it loads torch."""

from ct.models.mlp import MLP
from ct.models.realmlp import RealMLP
from ct.models.tabm import TabM

__all__ = ["MLP", "RealMLP", "TabM"]
