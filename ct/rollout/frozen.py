"""A plan as the journal keeps it from a rollout's start on, and back again: a changed file applies from the next rollout. No code is kept.

A function or a guard of the user's own is taken from the present file while it is what it was; else nothing passes by it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any

from ct.errors import InvalidPipeline
from ct.ids import Json, describe
from ct.rollout import guards, plans
from ct.rollout.guards import Guard
from ct.rollout.plans import AtDeadline, HarmedSegment, Plan, Segments, Stage

if TYPE_CHECKING:
    from ct.rollout.verdict import Cell


@dataclass(frozen=True)
class Declared:
    """What a plan of the user's own class declared."""

    steps: tuple[Stage, ...]
    guards: tuple[Guard, ...]
    min_requests: int
    deadline: str
    at_deadline: AtDeadline
    min_time: str
    only: Segments
    without: Segments
    override: tuple[str, ...]
    harmed_segment: HarmedSegment = "report"

    def stages(self) -> tuple[Stage, ...]:
        """The steps in order."""
        return self.steps

    def validate(self) -> list[str]:
        """Nothing: the plan it stands for was validated."""
        return []


@dataclass(frozen=True)
class Lost:
    """In the place of a guard whose code is no longer what it was: it sees nothing, so nothing passes by it."""

    name: str

    def metric(self) -> str:
        return f"{self.name} (its code is no longer what it was when the rollout began)"

    def events(self, cell: Cell) -> tuple[int, float]:
        return 0, 0.0

    def ratio(self, stable: float) -> float:
        return 1.0

    def cap(self) -> float | None:
        return None

    def allowed(self, stable: float) -> float:
        return 0.0

    def needed(self) -> int:
        return 1

    def compares(self) -> bool:
        return False

    def validate(self) -> list[str]:
        return []


_KINDS: Mapping[str, type] = {
    found.__name__: found
    for found in (Declared, *vars(plans).values(), *vars(guards).values())
    if isinstance(found, type) and is_dataclass(found)
}
_TERMS = ("min_requests", "deadline", "at_deadline", "min_time", "only", "without", "override")


def freeze(plan: Plan) -> dict[str, Any]:
    """The plan's declared values as plain data."""
    if type(plan) not in _KINDS.values():
        terms: dict[str, Any] = {name: getattr(plan, name) for name in _TERMS}
        terms["harmed_segment"] = getattr(plan, "harmed_segment", "report")
        plan = Declared(tuple(plan.stages()), tuple(plan.guards), **terms)
    return dict(_told(plan))


def thaw(told: Mapping[str, Any], present: Plan) -> Plan:
    """The plan that was frozen. Code of the user's own comes from `present`, the plan of the file."""
    made: Plan = _made(told, {guard.metric(): guard for guard in _guards(present)})
    return made


def _told(value: Any) -> Json:
    if type(value) in _KINDS.values():
        return {"kind": type(value).__name__, **{field.name: _told(getattr(value, field.name)) for field in fields(value)}}
    if isinstance(value, (list, tuple)):
        return [_told(item) for item in value]
    if isinstance(value, Guard):
        return {"own": value.metric(), "code": _code(value)}
    return {"code": _code(value)} if callable(value) else describe(value)


def _code(value: Any) -> Json:
    """What a function or an object is now; None where nobody can say, and then it is taken to be the same."""
    try:
        return describe(value) if callable(value) else [describe(type(value)), describe(value)]
    except InvalidPipeline:
        return None


def _made(told: Any, present: Mapping[str, Guard]) -> Any:
    if isinstance(told, list):
        return tuple(_made(item, present) for item in told)
    if not isinstance(told, Mapping):
        return told
    if "own" in told:
        found = present.get(told["own"])
        return found if found is not None and _code(found) == told["code"] else Lost(told["own"])
    kind, name = _KINDS[told["kind"]], told.get("name", told["kind"])
    values = {field: _made(value, present) for field, value in told.items() if field != "kind" and not _is_code(value)}
    if functions := {field: value["code"] for field, value in told.items() if _is_code(value)}:
        found = present.get(name)
        if type(found) is not kind or any(_code(getattr(found, field)) != code for field, code in functions.items()):
            return Lost(name)
        values |= {field: getattr(found, field) for field in functions}
    made: Any = object.__new__(kind)
    for field in fields(kind):
        if field.name in values:
            value = values[field.name]
        else:  # it did not exist when the rollout began
            value = getattr(kind(), field.name) if field.default is MISSING else field.default
        object.__setattr__(made, field.name, value)
    return made


def _is_code(value: Any) -> bool:
    return isinstance(value, Mapping) and set(value) == {"code"}


def _guards(plan: Plan) -> Iterator[Guard]:
    for part in (plan, *getattr(plan, "parts", ())):
        yield from part.guards
