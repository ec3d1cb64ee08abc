"""What a user declares about training: the torch module and its settings, and the space a sweep searches. Imports no torch."""

from __future__ import annotations

import dataclasses
import inspect
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ct.errors import InvalidPipeline
from ct.ids import canonical, sha256, sha256_file


@dataclass(frozen=True)
class Search:
    """A setting to be searched: a number in [low, high], evenly or by its logarithm, or one of `choices`.

    Two whole bounds mean whole numbers: Search(64, 256) never gives 100.5.
    """

    low: float = 0
    high: float = 0
    log: bool = False
    choices: Sequence[Any] = ()

    def __post_init__(self) -> None:
        if not self.choices and not (self.low < self.high and (self.low > 0 or not self.log)):
            raise InvalidPipeline(
                f"Search({self.low}, {self.high}, log={self.log})", "low < high, above 0 with log, or choices", "mend the range"
            )

    def middle(self) -> Any:
        """The value used when nothing is searched: the (geometric) middle, or the first choice."""
        return self.choices[0] if self.choices else self.at(0.5)

    def at(self, share: float) -> Any:
        """The value at `share` in [0, 1) of the way from low to high, or of the choices."""
        if self.choices:
            return self.choices[int(share * len(self.choices))]
        value = self.low * (self.high / self.low) ** share if self.log else self.low + (self.high - self.low) * share
        return round(value) if isinstance(self.low, int) and isinstance(self.high, int) else value


SCHEDULES = ("cosine", "constant", "linear")
CALIBRATIONS = ("", "temperature", "isotonic")
READY = ("MLP", "RealMLP", "TabM")


@dataclass(frozen=True)
class Torch:
    """A torch module and how it is trained. Numbers and options may be a ct.Search.

    `model` is a module class, or the name of a ready one: "TabM", "RealMLP" or "MLP". `model(numeric=F, cardinalities=[…], **options)`
    builds a module whose forward(numeric float32 [n, F], category int64 [n, C]) gives raw outputs [n], or [n, k] for k outputs: then
    it is built with `outputs=k` too, and with `sequences=[…]` where features are sequences. A module with an attribute `members` (m)
    gives [n, m] or [n, m, k] while it trains, each member with a loss of its own, and their mean afterwards.

    A step takes `batch` rows in `shards` logical shards; both belong to the model's definition, whatever the number of workers.
    `optimizer` is AdamW when None, else called as optimizer(params, lr=…, weight_decay=…), such as functools.partial(torch.optim.SGD,
    momentum=0.9). `schedule`: "cosine" (a tenth of warm-up, then half a cosine), "constant", "linear", or a function from the share
    of steps done, in [0, 1), to a factor of lr. Gradients are clipped to the norm `clip` (0: never). `average` is the decay of an
    exponential moving average of the weights, which is then the model (0: none). With `patience`, training stops after so many epochs
    without a better loss on rows kept aside, and the best epoch is the model. `precision` "bfloat16" trains under autocast.

    The share `held` of the training rows is never trained on: on it `calibrate` ("temperature", "isotonic" or "") is fitted and the
    threshold is chosen. `patience` keeps as many rows again aside. `balanced` weighs every class alike. `start` "champion" begins
    with the champion's weights where they fit.
    """

    model: Any = "TabM"
    epochs: int = 3
    lr: Any = 1e-3
    weight_decay: Any = 1e-4
    batch: int = 1024
    shards: int = 8
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    optimizer: Any = None
    schedule: Any = "cosine"
    clip: float = 0.0
    average: float = 0.0
    patience: int = 0
    precision: str = "float32"
    held: float = 0.1
    calibrate: str = "temperature"
    balanced: bool = False
    start: str = "scratch"

    def validate(self) -> list[str]:
        """Faults of the declaration, none for a good one."""
        faults = []
        if not callable(self.model) and self.model not in READY:
            faults.append(f"model is {self.model!r}, expected a torch.nn.Module class or one of {list(READY)}")
        if not isinstance(self.epochs, int) or self.epochs < 1:
            faults.append(f"epochs is {self.epochs!r}, expected at least 1")
        if not isinstance(self.shards, int) or self.shards < 1 or self.shards & (self.shards - 1):
            faults.append(f"shards is {self.shards!r}, expected a power of two")
        elif not isinstance(self.batch, int) or self.batch < self.shards or self.batch % self.shards:
            faults.append(f"batch is {self.batch!r}, expected a multiple of shards ({self.shards})")
        for name in ("lr", "weight_decay", "clip"):
            value = getattr(self, name)
            if not isinstance(value, Search) and not (isinstance(value, (int, float)) and 0 <= value < math.inf):
                faults.append(f"{name} is {value!r}, expected a number of at least 0 or a ct.Search")
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**32:
            faults.append(f"seed is {self.seed!r}, expected a whole number from 0 to 2^32 - 1")
        if self.optimizer is not None and not callable(self.optimizer):
            faults.append(f"optimizer is {self.optimizer!r}, expected a torch optimizer class or a function that makes one")
        if self.schedule not in SCHEDULES and not callable(self.schedule):
            faults.append(f"schedule is {self.schedule!r}, expected one of {list(SCHEDULES)} or a function")
        for name, limit in (("average", 1.0), ("held", 0.5)):
            value = getattr(self, name)
            if not (isinstance(value, (int, float)) and 0 <= value < limit):
                faults.append(f"{name} is {value!r}, expected a number from 0 to below {limit:g}")
        if not isinstance(self.patience, int) or self.patience < 0:
            faults.append(f"patience is {self.patience!r}, expected a number of epochs, or 0")
        for name, allowed in (
            ("precision", ("float32", "bfloat16")),
            ("calibrate", CALIBRATIONS),
            ("start", ("scratch", "champion")),
        ):
            if getattr(self, name) not in allowed:
                faults.append(f"{name} is {getattr(self, name)!r}, expected one of {list(allowed)}")
        if (self.calibrate or self.patience) and self.held == 0:
            faults.append("held is 0: calibrate and patience need rows that are not trained on; for example held=0.1")
        return faults

    @property
    def module_class(self) -> Any:
        """The module's class; a ready one is imported now."""
        if isinstance(self.model, str):
            from ct.training import models

            return getattr(models, self.model)
        return self.model

    def searches(self) -> dict[str, Search]:
        """The searched settings: fields by name, options as `options.<name>`."""
        found = {name: value for name in ("lr", "weight_decay", "clip") if isinstance(value := getattr(self, name), Search)}
        return found | {f"options.{name}": value for name, value in self.options.items() if isinstance(value, Search)}

    def resolved(self, params: Mapping[str, Any]) -> Torch:
        """A copy in which every Search is a value: from `params`, else its middle. Raises InvalidPipeline for a setting not searched."""
        if unknown := sorted(set(params) - set(self.searches())):
            raise InvalidPipeline(
                f"{unknown} is not searched", f"some of {sorted(self.searches())}", "declare it as a ct.Search"
            )
        values = {name: params.get(name, search.middle()) for name, search in self.searches().items()}
        options = {
            **self.options,
            **{name.removeprefix("options."): v for name, v in values.items() if name.startswith("options.")},
        }
        fields = {name: value for name, value in values.items() if not name.startswith("options.")}
        return dataclasses.replace(self, options=options, **fields)


def source_folder(model: Any) -> Path:
    """The folder from which the model's top-level module is imported."""
    file = Path(inspect.getfile(model)).resolve()
    depth = str(model.__module__).count(".")
    return file.parents[depth]


def code_digest(model: Torch) -> str:
    """SHA-256 over the source of the module that defines the model, and of the modules beside it from which it imports names."""
    files: dict[str, str] = {}
    home = model.module_class
    waiting = [str(home.__module__)]
    folder = Path(inspect.getfile(home)).resolve().parent
    while waiting:
        name = waiting.pop()
        module = sys.modules.get(name)
        file = Path(getattr(module, "__file__", None) or "/")
        if name in files or file.resolve().parent != folder or file.suffix != ".py":
            continue
        files[name] = sha256_file(file)
        for value in vars(module).values():
            waiting.append(value.__name__ if inspect.ismodule(value) else str(getattr(value, "__module__", "")))
    return sha256(canonical(files))


def pickled(model: Torch) -> tuple[bytes, tuple[str, ...]]:
    """The declaration for another process, and the folders it must have on sys.path to read it."""
    from ray import cloudpickle

    data: bytes = cloudpickle.dumps(model)
    return data, (str(source_folder(model.module_class)),)


def unpickled(data: bytes, paths: Sequence[str]) -> Torch:
    """What `pickled` gave, in a process of this same system. Never for bytes from outside."""
    from ray import cloudpickle

    sys.path[:0] = [path for path in paths if path not in sys.path]
    model: Torch = cloudpickle.loads(data)
    return model
