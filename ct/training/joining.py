"""Trained members of an ensemble as one trained model. Arrays only, no torch: the module of their names is in training/combined.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ct.ids import canonical, sha256
from ct.training import checkpoint
from ct.training.ensemble import Ensemble
from ct.training.start import ENSEMBLE
from ct.training.trainer import Trained


def joined(model: Ensemble, members: Sequence[Trained], stack: tuple[NDArray[Any], NDArray[Any]] | None) -> Trained:
    """Trained members as one model: their weights by `ensemble.<number>.<name>`, with the stack's weights [m] and intercepts [k] if any."""
    weights = {f"{ENSEMBLE}{at}.{name}": value for at, one in enumerate(members) for name, value in sorted(one.weights.items())}
    if stack is not None:
        weights |= {"stack.weight": stack[0].astype(np.float32), "stack.bias": stack[1].astype(np.float32)}
    parts = [one.contract["id"] for one in members]
    return Trained(
        weights,
        checkpoint.digest(weights),
        {**members[0].contract, "ensemble": model.how, "members": parts, "id": sha256(canonical([model.how, *parts]))[:16]},
        tuple({"member": at, **entry} for at, one in enumerate(members) for entry in one.history),
        sum(one.resumed for one in members),
        notes=tuple(dict.fromkeys(note for one in members for note in one.notes)),
    )
