"""What a user declares about training: the torch module and its settings, and the space a sweep searches. Imports no torch."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ct.errors import InvalidPipeline
from ct.ids import canonical
from ct.training.code import remember_modules, source_folder

if TYPE_CHECKING:
    from ct.training.ensemble import Ensemble


@dataclass(frozen=True)
class Search:
    """A setting to be searched: a number in [low, high], evenly or by its logarithm, or one of `choices` (numbers, texts, lists of them).

    Two whole bounds mean whole numbers, both bounds among them: Search(64, 256) never gives 100.5.
    """

    low: float = 0
    high: float = 0
    log: bool = False
    choices: Sequence[Any] = ()

    def __post_init__(self) -> None:
        said = f"Search({self.low}, {self.high}, log={self.log})"
        if self.choices:
            texts = [_plain(choice) for choice in self.choices]
            if (self.low, self.high, self.log) != (0, 0, False) or len(set(texts)) < len(texts):
                raise InvalidPipeline(f"{said} with choices={list(self.choices)!r}", "a range, or different choices", "mend it")
        elif not (
            math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high and (self.low > 0 or not self.log)
        ):
            raise InvalidPipeline(said, "finite bounds, low < high, above 0 with log, or choices", "mend the range")

    @property
    def whole(self) -> bool:
        """Whether it is a range of whole numbers."""
        return not self.choices and isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def ends(self) -> tuple[Any, ...]:
        """The bounds, or all choices: if these are allowed, every value is."""
        return tuple(self.choices) or (self.low, self.high)

    def middle(self) -> Any:
        """The value used when nothing is searched: the (geometric) middle, or the first choice."""
        return self.choices[0] if self.choices else self.at(0.5)

    def at(self, share: float) -> Any:
        """The value at `share` in [0, 1) of the way from low to high, or of the choices."""
        if self.choices:
            return self.choices[int(share * len(self.choices))]
        high = self.high + 1 if self.whole else self.high
        value = self.low * (high / self.low) ** share if self.log else self.low + (high - self.low) * share
        return min(math.floor(value), self.high) if self.whole else value

    def holds(self, value: Any) -> bool:
        """Whether `value` is one that this search may give."""
        if self.choices:
            return value in self.choices
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        return self.low <= value <= self.high and (isinstance(value, int) or not self.whole)

    def near(self, value: Any, *, up: bool, factor: float = 1.25) -> Any:
        """A neighbour of `value`: `factor` times more or less, at least one for whole numbers, within the range; or the choice beside it."""
        if self.choices:
            at = list(self.choices).index(value) + (1 if up else -1)
            return self.choices[min(max(at, 0), len(self.choices) - 1)]
        if value == 0:
            moved = (self.high - self.low) / 10 * (1 if up else -1)
        else:
            moved = value * factor if up == (value > 0) else value / factor
        if self.whole:
            moved = max(round(moved), value + 1) if up else min(round(moved), value - 1)
        return min(max(moved, self.low), self.high)


def _plain(choice: Any) -> str:
    """A choice as it will stand in the journal. Raises InvalidPipeline for one that has no such form."""
    try:
        return canonical(choice)
    except (TypeError, ValueError):
        raise InvalidPipeline(
            f"the choice {choice!r}",
            "a number, a text, True, False, None or a list of them",
            "give its name, and let the model look it up",
        ) from None


SEARCHED = ("lr", "weight_decay", "clip", "average", "batch", "epochs")
"""The fields of Torch that may be a Search, besides options."""
CHANGING = ("lr", "weight_decay", "clip")
"""The fields that may change between two epochs of one training."""
SCHEDULES = ("cosine", "constant", "linear")
CALIBRATIONS = ("", "temperature", "isotonic")
READY = ("MLP", "RealMLP", "TabM")


@dataclass(frozen=True)
class Torch:
    """A torch module and how it is trained. `lr`, `weight_decay`, `clip`, `average`, `epochs`, `batch` (by choices) and options may be a
    ct.Search; whatever is not swept takes its middle.

    `model` is a module class, or the name of a ready one: "TabM", "RealMLP" or "MLP". `model(numeric=F, cardinalities=[…], **options)`
    builds a module whose forward(numeric float32 [n, F], category int64 [n, C]) gives raw outputs [n], or [n, k] for k outputs: then
    it is built with `outputs=k` too. A class that names `sequences` or `objective` is given the features' sequences and the objective's
    kind. A module with an attribute `members` (m) gives [n, m] or [n, m, k] while it trains, each member with a loss of its own, and
    one raw output afterwards. With a method `groups()` its parameters learn at rates of their own.

    A step takes `batch` rows in `shards` logical shards; both belong to the model's definition, whatever the number of workers.
    `optimizer` is AdamW when None, else called as optimizer(params, lr=…, weight_decay=…), such as functools.partial(torch.optim.SGD,
    momentum=0.9). `schedule`: "cosine" (a tenth of warm-up, then half a cosine), "constant", "linear", or a function from the share
    of steps done, in [0, 1), to a factor of lr. Gradients are clipped to the norm `clip` (0: never). `average` is the decay of an
    exponential moving average of the weights, which is then the model (0: none). With `patience`, training stops after so many epochs
    without a better loss on rows kept aside, and the best epoch is the model. `precision` "bfloat16" trains under autocast.

    The share `held` of the training rows is never trained on: on it `calibrate` ("temperature", "isotonic" or "") is fitted and the
    threshold is chosen. `patience` keeps as many rows again aside. `balanced` weighs every class alike. `start` "champion" begins
    with the champion's weights where they fit; after `fresh_every` such runs in a row one begins from scratch (0: never).

    `course` holds (epoch, {"lr": …, "weight_decay": …, "clip": …}): from that epoch on, counted from 0, those values count. A
    population's sweep finds such a course.
    """

    model: Any = "TabM"
    epochs: Any = 3
    lr: Any = 1e-3
    weight_decay: Any = 1e-4
    batch: Any = 1024
    shards: int = 8
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    optimizer: Any = None
    schedule: Any = "cosine"
    clip: Any = 0.0
    average: Any = 0.0
    patience: int = 0
    precision: str = "float32"
    held: float = 0.1
    calibrate: str = "temperature"
    balanced: bool = False
    start: str = "scratch"
    fresh_every: int = 0
    course: Sequence[tuple[int, Mapping[str, Any]]] = ()

    def validate(self) -> list[str]:
        """Faults of the declaration, none for a good one."""
        faults = []
        if not callable(self.model) and self.model not in READY:
            faults.append(f"model is {self.model!r}, expected a torch.nn.Module class or one of {list(READY)}")
        if not all(isinstance(value, int) and value >= 1 for value in _possible(self.epochs)):
            faults.append(f"epochs is {self.epochs!r}, expected at least 1")
        if not isinstance(self.shards, int) or self.shards < 1 or self.shards & (self.shards - 1):
            faults.append(f"shards is {self.shards!r}, expected a power of two")
        elif isinstance(self.batch, Search) and not self.batch.choices:
            faults.append(f"batch is {self.batch!r}, expected ct.Search(choices=[…])")
        elif not all(
            isinstance(value, int) and value >= self.shards and value % self.shards == 0 for value in _possible(self.batch)
        ):
            faults.append(f"batch is {self.batch!r}, expected a multiple of shards ({self.shards})")
        for name in CHANGING:
            value = getattr(self, name)
            if not all(isinstance(value, (int, float)) and 0 <= value < math.inf for value in _possible(value)):
                faults.append(f"{name} is {value!r}, expected a number of at least 0 or a ct.Search")
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**32:
            faults.append(f"seed is {self.seed!r}, expected a whole number from 0 to 2^32 - 1")
        if self.optimizer is not None and not callable(self.optimizer):
            faults.append(f"optimizer is {self.optimizer!r}, expected a torch optimizer class or a function that makes one")
        if self.schedule not in SCHEDULES and not callable(self.schedule):
            faults.append(f"schedule is {self.schedule!r}, expected one of {list(SCHEDULES)} or a function")
        for name, limit in (("average", 1.0), ("held", 0.5)):
            value = getattr(self, name)
            possible = _possible(value) if name in SEARCHED else (value,)
            if not all(isinstance(value, (int, float)) and 0 <= value < limit for value in possible):
                faults.append(f"{name} is {value!r}, expected a number from 0 to below {limit:g}")
        if not isinstance(self.patience, int) or self.patience < 0:
            faults.append(f"patience is {self.patience!r}, expected a number of epochs, or 0")
        if not isinstance(self.fresh_every, int) or self.fresh_every < 0 or (self.fresh_every and self.start == "scratch"):
            faults.append(f"fresh_every is {self.fresh_every!r}, expected a number of runs, or 0, with start='champion'")
        for name, allowed in (
            ("precision", ("float32", "bfloat16")),
            ("calibrate", CALIBRATIONS),
            ("start", ("scratch", "champion")),
        ):
            if getattr(self, name) not in allowed:
                faults.append(f"{name} is {getattr(self, name)!r}, expected one of {list(allowed)}")
        epochs = [at for at, _ in self.course]
        if epochs != sorted(set(epochs)) or any(at < 1 or set(values) - set(CHANGING) for at, values in self.course):
            faults.append(f"course is {self.course!r}, expected rising epochs above 0, each with some of {list(CHANGING)}")
        if (self.calibrate or self.patience) and self.held == 0:
            faults.append("held is 0: calibrate and patience need rows that are not trained on; for example held=0.1")
        return faults

    @property
    def members(self) -> tuple[Torch, ...]:
        """What is trained: itself. An ensemble has several."""
        return (self,)

    @property
    def module_class(self) -> Any:
        """The module's class; a ready one is imported now."""
        if isinstance(self.model, str):
            from ct import models

            return getattr(models, self.model)
        return self.model

    def searches(self) -> dict[str, Search]:
        """The searched settings: fields by name, options as `options.<name>`."""
        found = {name: value for name in SEARCHED if isinstance(value := getattr(self, name), Search)}
        return found | {f"options.{name}": value for name, value in self.options.items() if isinstance(value, Search)}

    def resolved(self, params: Mapping[str, Any]) -> Torch:
        """A copy in which every Search is a value: from `params`, else its middle. A "course" among them replaces the course.

        Raises InvalidPipeline for a setting not searched.
        """
        if unknown := sorted(set(params) - set(self.searches()) - {"course"}):
            raise InvalidPipeline(
                f"{unknown} is not searched", f"some of {sorted(self.searches())}", "declare it as a ct.Search"
            )
        values = {name: params.get(name, search.middle()) for name, search in self.searches().items()}
        options = {
            **self.options,
            **{name.removeprefix("options."): v for name, v in values.items() if name.startswith("options.")},
        }
        fields = {name: value for name, value in values.items() if not name.startswith("options.")}
        course = tuple((at, dict(changed)) for at, changed in params.get("course", self.course))
        return dataclasses.replace(self, options=options, course=course, **fields)

    def during(self, epoch: int) -> Torch:
        """The declaration with the values that its course has in that epoch, counted from 0."""
        values: dict[str, Any] = {}
        for at, changed in self.course:
            values |= changed if at <= epoch else {}
        return dataclasses.replace(self, course=(), **values)


def _possible(value: Any) -> tuple[Any, ...]:
    return value.ends if isinstance(value, Search) else (value,)


def pickled(model: Torch | Ensemble) -> tuple[bytes, tuple[str, ...]]:
    """The declaration for another process, and the folders it must have on sys.path to read it."""
    from ray import cloudpickle

    data: bytes = cloudpickle.dumps(model)
    return data, tuple(dict.fromkeys(str(source_folder(part.module_class)) for part in model.members))


def unpickled(data: bytes, paths: Sequence[str]) -> Any:
    """What `pickled` gave, in a process of this same system. Never for bytes from outside."""
    from ray import cloudpickle

    sys.path[:0] = [path for path in paths if path not in sys.path]
    found = cloudpickle.loads(data)
    remember_modules()
    return found
