"""What a user declares of a rollout: how a candidate gets its traffic (Canary, BlueGreen, Shadow). Plans decide nothing; see verdict.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ct.clock import duration
from ct.errors import InvalidPipeline
from ct.rollout.guards import Guard, is_count, is_number


class Plan(Protocol):
    """How a candidate gets its traffic."""

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
        """How long a step may take before it holds for a person."""
        ...

    def stages(self) -> tuple[tuple[int, bool], ...]:
        """For each step: the canary's share of the traffic in percent, and whether it is only shadowed."""
        ...

    def validate(self) -> list[str]:
        """What is wrong with its fields."""
        ...


@dataclass(frozen=True, init=False)
class Canary:
    """Traffic in growing `steps` (percent). A step passes after `min_requests` canary requests with every guard inside its margin."""

    steps: tuple[int, ...]
    guards: tuple[Guard, ...]
    min_requests: int
    deadline: str

    def __init__(self, *steps: int, guards: Sequence[Guard] = (), min_requests: int = 200, deadline: str = "1h") -> None:
        _set(self, steps=steps, guards=tuple(guards), min_requests=min_requests, deadline=deadline)

    def stages(self) -> tuple[tuple[int, bool], ...]:
        """One stage for each step."""
        return tuple((step, False) for step in self.steps)

    def validate(self) -> list[str]:
        """What is wrong with its fields."""
        faults = _plan_faults(self) if self.steps else []
        if not self.steps or not all(is_count(step, 1) and step <= 100 for step in self.steps):
            faults.append(f"Canary{self.steps!r}, expected percentages from 1 to 100, such as Canary(10, 50, 100)")
        elif list(self.steps) != sorted(set(self.steps)):
            faults.append(f"Canary{self.steps!r}, expected steps that grow")
        return faults


@dataclass(frozen=True, init=False)
class BlueGreen:
    """All traffic at once. Stable stays loaded; the guards' own limits decide whether it comes back, there being no one to compare with."""

    guards: tuple[Guard, ...]
    min_requests: int
    deadline: str

    def __init__(self, *, guards: Sequence[Guard] = (), min_requests: int = 200, deadline: str = "1h") -> None:
        _set(self, guards=tuple(guards), min_requests=min_requests, deadline=deadline)

    def stages(self) -> tuple[tuple[int, bool], ...]:
        """One stage with all traffic."""
        return ((100, False),)

    def validate(self) -> list[str]:
        """What is wrong with its fields."""
        return _plan_faults(self)


@dataclass(frozen=True, init=False)
class Shadow:
    """No traffic: the candidate scores every request unseen, and is compared with stable on the same rows once their truth is known.

    One that is surely worse is rolled back. With `within` it passes when it is surely not worse by more than that (AUROC, accuracy, or the
    mean loss of a number or its quantiles), on `min_labels` rows at least; without it never promotes by itself and holds for a person.
    """

    guards: tuple[Guard, ...]
    within: float | None
    min_labels: int
    min_requests: int
    deadline: str

    def __init__(
        self,
        *,
        guards: Sequence[Guard] = (),
        within: float | None = None,
        min_labels: int = 200,
        min_requests: int = 200,
        deadline: str = "1h",
    ) -> None:
        _set(self, guards=tuple(guards), within=within, min_labels=min_labels)
        _set(self, min_requests=min_requests, deadline=deadline)

    def stages(self) -> tuple[tuple[int, bool], ...]:
        """One stage that is only shadowed."""
        return ((0, True),)

    def validate(self) -> list[str]:
        """What is wrong with its fields."""
        faults = _plan_faults(self)
        if self.within is not None and not is_number(self.within, 0, float("inf")):
            faults.append(f"within={self.within!r}, expected a number above 0, or None to leave it to a person")
        if not is_count(self.min_labels, 2):
            faults.append(f"min_labels={self.min_labels!r}, expected a whole number of at least 2")
        return faults


def _set(plan: object, **fields: object) -> None:
    for name, value in fields.items():
        object.__setattr__(plan, name, value)


def _plan_faults(plan: Canary | BlueGreen | Shadow) -> list[str]:
    faults = []
    for guard in plan.guards:
        if isinstance(guard, Guard):
            faults += guard.validate()
            if guard.compares() and not any(0 < share < 100 for share, _ in plan.stages()):
                faults.append(f"{guard.metric()} compares two arms, but no step gives both a share; use ct.Canary(10, 100)")
        else:
            faults.append(
                f"guard {guard!r}, expected ct.error_rate(), ct.latency(), ct.quality() or an object with their methods"
            )
    if not is_count(plan.min_requests, 1):
        faults.append(f"min_requests={plan.min_requests!r}, expected a whole number of at least 1; no data is never a pass")
    try:
        duration(plan.deadline)
    except InvalidPipeline as error:
        faults.append(f"deadline: {error}")
    return faults
