"""The kinds of features, one file each. A kind is a frozen dataclass with the methods of `roles.Feature` and an `example`; it is found by itself."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from inspect import getmembers, isclass
from typing import Any


@cache
def kinds() -> Mapping[str, type[Any]]:
    """Every kind by its name in a spec, which is the class's name in lower case."""
    found: dict[str, type[Any]] = {}
    for item in pkgutil.iter_modules(__path__):
        module = import_module(f"{__name__}.{item.name}")
        found |= {
            name.lower(): value
            for name, value in getmembers(module, isclass)
            if value.__module__ == module.__name__ and hasattr(value, "compute")
        }
    return found
