"""Any torch optimizer for a module: its parameter groups, its learning rate by the share of steps done, and its state as arrays by name."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ct.errors import TrainingFailed
from ct.training.declare import Torch

WARM_UP = 0.1


def optimizer(module: nn.Module, model: Torch) -> torch.optim.Optimizer:
    """The declared optimizer over the module's groups, by its for-each path where it has one. Raises TrainingFailed when it cannot be used."""
    make = model.optimizer or torch.optim.AdamW
    lr, decay = float(model.lr), float(model.weight_decay)
    # an optimizer keeps what it does not know, so the factors are at hand when lr and weight_decay change
    groups = [
        {
            **group,
            "lr": lr * group.get("lr", 1.0),
            "weight_decay": decay * group.get("weight_decay", 1.0),
            "faster": group.get("lr", 1.0),
            "stronger": group.get("weight_decay", 1.0),
        }
        for group in parameter_groups(module)
    ]
    with reported("making the optimizer"):
        made: torch.optim.Optimizer = make(groups, lr=lr, weight_decay=decay)
    if not isinstance(made, torch.optim.Optimizer):
        raise TrainingFailed(f"optimizer gave a {type(made).__name__}", "a torch.optim.Optimizer", "mend the function")
    closure = inspect.signature(made.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise TrainingFailed(
            f"{type(made).__name__} wants to compute the loss several times a step",
            "an optimizer that steps from one gradient",
            "choose another one, such as torch.optim.AdamW",
        )
    for group in made.param_groups:
        if group.get("foreach", False) is None and not group.get("fused"):
            group["foreach"] = True
    return made


def parameter_groups(module: nn.Module) -> list[dict[str, Any]]:
    """What the module's own `groups()` says, else one group of all trained parameters. "lr" and "weight_decay" are factors.

    Raises TrainingFailed unless every trained parameter is in exactly one group and each factor is a number of at least 0.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not trained or any(parameter.dtype != torch.float32 for parameter in trained):
        raise TrainingFailed("the model has no float32 parameter to train or others besides", "float32 parameters", "mend it")
    own = getattr(module, "groups", None)
    if not callable(own):
        return [{"params": trained}]
    with reported("groups()"):
        groups = [{**group, "params": list(group["params"])} for group in own()]
    found = [id(parameter) for group in groups for parameter in group["params"]]
    if sorted(found) != sorted(id(parameter) for parameter in trained):
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        missing = [names[id(p)] for p in trained if found.count(id(p)) != 1]
        raise TrainingFailed(
            f"groups() does not name {missing or 'only trained parameters'} once",
            "each trained parameter once",
            "mend groups()",
        )
    for group in groups:
        for name in ("lr", "weight_decay"):
            factor = group.get(name, 1.0)
            if not isinstance(factor, (int, float)) or not 0 <= factor < math.inf:
                raise TrainingFailed(f"groups() gave {name}={factor!r}", "a factor of at least 0", "mend groups()")
    return groups


def rate(step: int, total: int, peak: float, schedule: Any = "cosine") -> float:
    """The learning rate of a step, of `total` steps.

    "cosine": up to `peak` over the first tenth, then down to 0 as half a cosine. "linear": from `peak` straight down to 0. "constant":
    `peak`. A function gives the factor for the share of steps done; TrainingFailed when that is no number of at least 0.
    """
    if schedule == "constant":
        return peak
    if schedule == "linear":
        return peak * (1 - step / total)
    if callable(schedule):
        with reported("the schedule"):
            factor = float(schedule(step / total))
        if not 0 <= factor < math.inf:
            raise TrainingFailed(f"the schedule gave {factor} at {step / total:.3f}", "a factor of at least 0", "mend it")
        return peak * factor
    warm = max(1, round(total * WARM_UP))
    if step < warm:
        return peak * (step + 1) / warm
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


def state(made: torch.optim.Optimizer, names: Mapping[int, str]) -> dict[str, NDArray[Any]]:
    """The optimizer's whole state: `optimizer.<key>.<parameter>` for tensors, `number.<key>.<parameter>` for plain numbers,
    `group.<key>.<place>` for the numbers of each parameter group.

    `names` gives a parameter's name by its id. Raises TrainingFailed for state that is neither a tensor nor a number.
    """
    found: dict[str, NDArray[Any]] = {}
    for group in made.param_groups:
        for parameter in group["params"]:
            for key, value in made.state.get(parameter, {}).items():
                kind = "number" if isinstance(value, (int, float)) else "optimizer"
                if value is not None:
                    found[f"{kind}.{key}.{names[id(parameter)]}"] = _array(made, key, value)
    for at, group in enumerate(made.param_groups):
        for key, value in group.items():
            if isinstance(value, (int, float)):
                found[f"group.{key}.{at}"] = np.array(value)
    return found


def _array(made: torch.optim.Optimizer, key: str, value: Any) -> NDArray[Any]:
    if isinstance(value, Tensor) and value.dtype != torch.bfloat16 and not value.is_sparse:
        return value.detach().cpu().numpy()
    if isinstance(value, (int, float)):
        return np.array(value)
    raise TrainingFailed(
        f"{type(made).__name__} keeps {key!r} as {type(value).__name__}, which no checkpoint can hold",
        "tensors and numbers",
        "choose another optimizer",
    )


def restore(made: torch.optim.Optimizer, names: Mapping[int, str], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Put back what `state` gave. torch's own loading puts each value on its parameter's device."""
    said = made.state_dict()
    order = [names[id(parameter)] for group in made.param_groups for parameter in group["params"]]
    kept: dict[int, dict[str, Any]] = {}
    for name, value in arrays.items():
        kind, _, rest = name.partition(".")
        if kind in ("optimizer", "number"):
            key, parameter = rest.split(".", 1)
            whole = torch.from_numpy(np.array(value)) if kind == "optimizer" else np.asarray(value).item()
            kept.setdefault(order.index(parameter), {})[key] = whole
        elif kind == "group":
            key, at = rest.rsplit(".", 1)
            said["param_groups"][int(at)][key] = np.asarray(value).item()
    made.load_state_dict({"state": kept, "param_groups": said["param_groups"]})


@contextmanager
def reported(what: str) -> Iterator[None]:
    """A user's or torch's error at `what` is reported, not traced."""
    try:
        yield
    except TrainingFailed:
        raise
    except Exception as error:
        raise TrainingFailed(
            f"{what} raised {type(error).__name__}: {error}", "optimizer(params, lr=…, weight_decay=…)", "mend it"
        ) from error
