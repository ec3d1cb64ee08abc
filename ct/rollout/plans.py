"""What a user declares of a rollout: how candidates get their traffic. Plans decide nothing; see verdict.py and steps.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Protocol, TypedDict, Unpack, runtime_checkable

from ct.clock import duration
from ct.errors import InvalidPipeline
from ct.rollout.guards import Business, Guard, is_count, is_number

MANUAL = "manual"
OVERRIDES = ("always", "never")
MOST_ARMS = 20
AtDeadline = Literal["hold", "abort", "promote"]
HarmedSegment = Literal["report", "hold"]
Segments = tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True)
class Stage:
    """One step of a plan: each candidate's share in percent, or their shadow. After it has passed, `pause` waits so long, or for a person ("manual")."""

    weights: tuple[int, ...]
    shadow: bool = False
    pause: str = ""
    bake: bool = False
    name: str = ""


@dataclass(frozen=True)
class Step:
    """A step of a Canary: `percent` of the traffic; once it has passed, `pause` waits that long ("2h"), or for a person ("manual")."""

    percent: int
    pause: str = ""


@runtime_checkable
class Plan(Protocol):
    """How candidates get their traffic."""

    @property
    def guards(self) -> Sequence[Guard]:
        """What is watched."""
        ...

    @property
    def min_requests(self) -> int:
        """Requests that the canary must have had at a step before the step passes."""
        ...

    @property
    def deadline(self) -> str:
        """How long a step may take until `at_deadline` happens."""
        ...

    @property
    def at_deadline(self) -> AtDeadline:
        """What a step that is not proven by then does."""
        ...

    @property
    def min_time(self) -> str:
        """A step lasts at least that long; "" for any time."""
        ...

    @property
    def only(self) -> Segments:
        """Only requests with these values of these segments can get a candidate."""
        ...

    @property
    def without(self) -> Segments:
        """Requests with these values of these segments cannot."""
        ...

    @property
    def override(self) -> tuple[str, ...]:
        """The values of the header x-canary that are obeyed."""
        ...

    def stages(self) -> tuple[Stage, ...]:
        """The steps in order."""
        ...

    def validate(self) -> list[str]:
        """What is wrong with its fields, all of it."""
        ...


class Terms(TypedDict, total=False):
    """What every plan may be told by name; see Plan."""

    guards: Sequence[Guard]
    min_requests: int
    deadline: str
    at_deadline: AtDeadline
    min_time: str
    harmed_segment: HarmedSegment
    only: Mapping[str, Sequence[str]]
    without: Mapping[str, Sequence[str]]
    override: Sequence[str]


@dataclass(frozen=True, init=False)
class _Told:
    guards: tuple[Guard, ...]
    min_requests: int
    deadline: str
    at_deadline: AtDeadline
    min_time: str
    harmed_segment: HarmedSegment
    only: Segments
    without: Segments
    override: tuple[str, ...]

    def _tell(self, terms: Terms, **fields: object) -> None:
        if unknown := sorted(set(terms) - set(Terms.__annotations__)):
            raise TypeError(f"{type(self).__name__} got {unknown}, expected among {sorted(Terms.__annotations__)}")
        usual = {"min_requests": 200, "deadline": "1h", "at_deadline": "hold", "min_time": "", "harmed_segment": "report"}
        known: dict[str, object] = {**usual, **terms}
        known |= {"guards": tuple(terms.get("guards", ())), "override": _tuple(terms.get("override", OVERRIDES))}
        known |= {"only": _segments(terms.get("only", {})), "without": _segments(terms.get("without", {}))}
        for name, value in {**known, **fields}.items():
            object.__setattr__(self, name, value)

    def stages(self) -> tuple[Stage, ...]:
        """The steps in order."""
        raise NotImplementedError

    def validate(self) -> list[str]:
        """What is wrong with its fields, all of it."""
        return _faults(self)


@dataclass(frozen=True, init=False)
class Canary(_Told):
    """Traffic in growing `steps`, percents or ct.Step(percent, pause). A step passes after `min_requests` canary requests with every guard inside its margin."""

    steps: tuple[int | Step, ...]

    def __init__(self, *steps: int | Step, **terms: Unpack[Terms]) -> None:
        self._tell(terms, steps=steps)

    def stages(self) -> tuple[Stage, ...]:
        """One stage for each step."""
        return tuple(
            Stage((step.percent,), pause=step.pause) if isinstance(step, Step) else Stage((step,)) for step in self.steps
        )

    def validate(self) -> list[str]:
        """What is wrong with its fields, all of it."""
        shares = [stage.weights[0] for stage in self.stages()]
        if not shares or not all(is_count(share, 1) and share <= 100 for share in shares):
            return [
                f"Canary{self.steps!r}, expected percentages from 1 to 100, such as Canary(10, 50, 100)",
                *_faults(self, False),
            ]
        grows = shares == sorted(set(shares))
        return _faults(self) + ([] if grows else [f"Canary{self.steps!r}, expected steps that grow"])


@dataclass(frozen=True, init=False)
class BlueGreen(_Told):
    """A second arm is loaded and warmed beside the first and gets all traffic at once. Once proven, it bakes for `bake` before stable is let go.

    Stable stays loaded; the guards' own limits decide whether it comes back, there being no one to compare with.
    """

    bake: str

    def __init__(self, *, bake: str = "", **terms: Unpack[Terms]) -> None:
        self._tell(terms, bake=bake)

    def stages(self) -> tuple[Stage, ...]:
        """One stage with all traffic."""
        return (Stage((100,), pause=self.bake, bake=True, name="bake"),)


@dataclass(frozen=True, init=False)
class AllAtOnce(_Told):
    """All traffic and the promotion at once, without any proof; `ct rollout undo` takes it back."""

    def __init__(self, **terms: Unpack[Terms]) -> None:
        self._tell(terms)
        if "min_requests" not in terms:
            object.__setattr__(self, "min_requests", 0)

    def stages(self) -> tuple[Stage, ...]:
        """One stage with all traffic."""
        return (Stage((100,)),)

    def validate(self) -> list[str]:
        """What is wrong with its fields, all of it."""
        wrong = "AllAtOnce proves nothing, expected neither guards nor min_requests; use ct.BlueGreen(guards=…)"
        return _faults(self, least=0) + ([wrong] if self.guards or self.min_requests else [])


@dataclass(frozen=True, init=False)
class Shadow(_Told):
    """No traffic: the candidate scores every request unseen, and is compared with stable on the same rows once their truth is known.

    One that is surely worse is rolled back. With `within` it passes when it is surely not worse by more than that (AUROC, accuracy, or the
    mean loss of a number or its quantiles), on `min_labels` rows at least; without it never promotes by itself and holds for a person.
    """

    within: float | None
    min_labels: int

    def __init__(self, *, within: float | None = None, min_labels: int = 200, **terms: Unpack[Terms]) -> None:
        self._tell(terms, within=within, min_labels=min_labels)

    def stages(self) -> tuple[Stage, ...]:
        """One stage that is only shadowed."""
        return (Stage((0,), shadow=True, name="shadow"),)

    def validate(self) -> list[str]:
        """What is wrong with its fields, all of it."""
        faults = _faults(self)
        if self.within is not None and not is_number(self.within, 0, float("inf")):
            faults.append(f"within={self.within!r}, expected a number above 0, or None to leave it to a person")
        if not is_count(self.min_labels, 2):
            faults.append(f"min_labels={self.min_labels!r}, expected a whole number of at least 2")
        return faults


@dataclass(frozen=True, init=False)
class AB(_Told):
    """A fixed split: each candidate gets its percent, stable what is left. It reports, ends at harm, and never promotes by itself."""

    weights: tuple[int, ...]

    def __init__(self, *weights: int, **terms: Unpack[Terms]) -> None:
        self._tell(terms, weights=weights)

    def stages(self) -> tuple[Stage, ...]:
        """One stage with every candidate."""
        return (Stage(self.weights, name="split"),)

    def validate(self) -> list[str]:
        """What is wrong with its fields, all of it."""
        if not 1 <= len(self.weights) <= MOST_ARMS or not all(is_count(share, 1) for share in self.weights):
            return [
                f"AB{self.weights!r}, expected 1 to {MOST_ARMS} whole percentages, such as AB(30, 30)",
                *_faults(self, False),
            ]
        faults = _faults(self)
        if sum(self.weights) > 99:
            faults.append(
                f"AB{self.weights!r} adds up to {sum(self.weights)}, expected at most 99, so that stable keeps a share"
            )
        if self.at_deadline == "promote":
            faults.append("at_deadline='promote', but an A/B test never promotes by itself; use 'hold' or 'abort'")
        return faults


@dataclass(frozen=True, init=False)
class Then(_Told):
    """Plans one after the other, such as Then(Shadow(within=0.01), Canary(10, 100)). Each has its own terms; a guard counts over all of them.

    Segments and overrides are the last part's.
    """

    parts: tuple[Plan, ...]

    def __init__(self, *parts: Plan) -> None:
        self._tell(Terms(), parts=parts)
        last = parts[-1] if parts else self
        guards = tuple(dict.fromkeys(guard for part in parts for guard in getattr(part, "guards", ())))
        for name in ("min_requests", "deadline", "at_deadline", "min_time", "harmed_segment", "only", "without", "override"):
            object.__setattr__(self, name, getattr(last, name, None))
        object.__setattr__(self, "guards", guards)

    def stages(self) -> tuple[Stage, ...]:
        """The stages of each part."""
        return tuple(stage for part in self.parts for stage in part.stages())

    def validate(self) -> list[str]:
        """What is wrong with its parts, all of it."""
        allowed = (Canary, BlueGreen, AllAtOnce, Shadow)
        if len(self.parts) < 2 or not all(isinstance(part, allowed) for part in self.parts):
            return [f"Then{self.parts!r}, expected two or more of Shadow, Canary, BlueGreen and AllAtOnce"]
        faults = [f"{type(part).__name__}: {fault}" for part in self.parts for fault in part.validate()]
        shares = [stage.weights[0] for stage in self.stages()]
        if not faults and any(late <= soon for soon, late in pairwise(shares)):
            faults.append(f"Then gives {shares} percent in turn, expected shares that grow: a shadow first, all traffic last")
        return faults


def part_at(plan: Plan, step: int) -> tuple[Plan, int]:
    """The part of a plan that `step` belongs to, and the step within it; the plan itself unless it is a Then."""
    if isinstance(plan, Then):
        for part in plan.parts:
            if step < len(part.stages()):
                return part, step
            step -= len(part.stages())
    return plan, step


def arms(plan: Plan) -> int:
    """How many candidates it takes."""
    return max(len(stage.weights) for stage in plan.stages())


def _faults(plan: Plan, shares: bool = True, *, least: int = 1) -> list[str]:
    faults = []
    for guard in plan.guards:
        if not isinstance(guard, Guard):
            remedy = "expected ct.error_rate(), ct.latency(), ct.quality() or an object with their methods"
            faults.append(f"guard {guard!r}, {remedy}")
            continue
        faults += guard.validate()
        if shares and guard.compares() and not any(0 < stage.weights[0] < 100 for stage in plan.stages()):
            faults.append(f"{guard.metric()} compares two arms, but no step gives both a share; use ct.Canary(10, 100)")
    named = [guard.metric() for guard in plan.guards if isinstance(guard, Business)]
    if len(set(named)) < len(named):
        faults.append(f"the business guards {named}, expected a name of its own for each; use ct.business(…, name=…)")
    if not is_count(plan.min_requests, least):
        faults.append(
            f"min_requests={plan.min_requests!r}, expected a whole number of at least {least}; no data is never a pass"
        )
    spans = [("deadline", plan.deadline), ("min_time", plan.min_time or "1s")]
    spans += [("pause", stage.pause) for stage in plan.stages() if stage.pause not in ("", MANUAL)]
    for name, span in spans:
        try:
            duration(span)
        except InvalidPipeline as error:
            faults.append(f"{name}: {error}")
    timed = plan.min_time and not any(fault.startswith(("deadline", "min_time")) for fault in faults)
    if timed and duration(plan.min_time) > duration(plan.deadline):
        faults.append(f"min_time={plan.min_time!r} is longer than deadline={plan.deadline!r}")
    if plan.at_deadline not in ("hold", "abort", "promote"):
        faults.append(f"at_deadline={plan.at_deadline!r}, expected 'hold', 'abort' or 'promote'")
    harmed = getattr(plan, "harmed_segment", "report")
    if harmed not in ("report", "hold"):
        faults.append(f"harmed_segment={harmed!r}, expected 'report' or 'hold'")
    if unknown := [value for value in plan.override if value not in OVERRIDES]:
        faults.append(f"override={unknown!r}, expected among {list(OVERRIDES)}")
    for name, segments in (("only", plan.only), ("without", plan.without)):
        for segment, values in segments:
            if not values or not all(isinstance(value, str) for value in values):
                faults.append(f"{name}[{segment!r}] = {values!r}, expected a list of texts, such as ['AA']")
    return faults


def _segments(given: Mapping[str, Sequence[str]]) -> Segments:
    return tuple(sorted((str(name), _tuple(values)) for name, values in given.items()))


def _tuple(values: Sequence[str]) -> tuple[str, ...]:
    return (values,) if isinstance(values, str) else tuple(values)
