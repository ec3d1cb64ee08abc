"""A declared model as data that a version's spec carries: with it serving builds the module again, without the declaration. Imports no torch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ct.ids import canonical
from ct.training.declare import READY, Torch
from ct.training.ensemble import Ensemble


def recipe(model: Torch | Ensemble) -> dict[str, Any]:
    """`{"parts": [{"ready": NAME} or {"module": …, "name": …}, each with options and seed], "how": …}`.

    {} for a model that has no such form: a class within a function, an option that is no plain data. Only its graph can be served.
    """
    parts = [_part(part) for part in model.members]
    if not all(parts):
        return {}
    return {"parts": parts, "how": model.how if isinstance(model, Ensemble) else ""}


def _part(part: Torch) -> dict[str, Any]:
    home = part.model
    if isinstance(home, str):
        place = {"ready": home}
    elif str(getattr(home, "__module__", "")).startswith("ct.models.") and home.__name__ in READY:
        place = {"ready": home.__name__}
    else:
        place = _place(home)
    try:
        canonical(dict(part.options))
    except (TypeError, ValueError):
        return {}
    return {**place, "options": dict(part.options), "seed": part.seed} if place else {}


def _place(home: Any) -> dict[str, str]:
    """Where a user's class or function can be found by name, {} where it cannot."""
    module, name = str(getattr(home, "__module__", "")), str(getattr(home, "__qualname__", ""))
    if module == "__main__":  # a script's archive knows it by its file's name
        module = Path(getattr(sys.modules["__main__"], "__file__", None) or "").stem
    return {"module": module, "name": name} if module and name and "<" not in name else {}
