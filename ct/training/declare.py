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


@dataclass(frozen=True)
class Torch:
    """A torch module and how it is trained.

    `model(numeric=F, cardinalities=[…], **options)` builds a module whose forward(numeric float32 [n, F], category int64 [n, C])
    gives logits [n]. A step takes `batch` rows in `shards` logical shards; both belong to the model's definition, whatever the
    number of workers. Numbers and options may be a ct.Search.
    """

    model: Any
    epochs: int = 3
    lr: Any = 1e-3
    weight_decay: Any = 1e-4
    batch: int = 1024
    shards: int = 8
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    def validate(self) -> list[str]:
        """Faults of the declaration, none for a good one."""
        faults = []
        if not callable(self.model):
            faults.append(f"model is {self.model!r}, expected a torch.nn.Module class")
        if not isinstance(self.epochs, int) or self.epochs < 1:
            faults.append(f"epochs is {self.epochs!r}, expected at least 1")
        if not isinstance(self.shards, int) or self.shards < 1 or self.shards & (self.shards - 1):
            faults.append(f"shards is {self.shards!r}, expected a power of two")
        elif not isinstance(self.batch, int) or self.batch < self.shards or self.batch % self.shards:
            faults.append(f"batch is {self.batch!r}, expected a multiple of shards ({self.shards})")
        for name in ("lr", "weight_decay"):
            value = getattr(self, name)
            if not isinstance(value, Search) and not (isinstance(value, (int, float)) and 0 <= value < math.inf):
                faults.append(f"{name} is {value!r}, expected a number of at least 0 or a ct.Search")
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**32:
            faults.append(f"seed is {self.seed!r}, expected a whole number from 0 to 2^32 - 1")
        return faults

    def searches(self) -> dict[str, Search]:
        """The searched settings: fields by name, options as `options.<name>`."""
        found = {name: value for name in ("lr", "weight_decay") if isinstance(value := getattr(self, name), Search)}
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
    waiting = [str(model.model.__module__)]
    folder = Path(inspect.getfile(model.model)).resolve().parent
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
    return data, (str(source_folder(model.model)),)


def unpickled(data: bytes, paths: Sequence[str]) -> Torch:
    """What `pickled` gave, in a process of this same system. Never for bytes from outside."""
    from ray import cloudpickle

    sys.path[:0] = [path for path in paths if path not in sys.path]
    model: Torch = cloudpickle.loads(data)
    return model
