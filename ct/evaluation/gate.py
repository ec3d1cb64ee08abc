"""The gate: what a candidate must show, declared, and the verdict about it with every number behind it. Pure; what follows is decided elsewhere."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

from ct.clock import duration
from ct.errors import CtError, InvalidPipeline
from ct.evaluation.evidence import CHAMPION, TRIVIAL, Evidence, Finding, Verdict
from ct.evaluation.guards import Fits, Slices, compared
from ct.evaluation.paired import COMPARED, PRIMARY
from ct.objectives import BINARY, Objective
from ct.roles import Challenger, Metric

MARGIN = 0.01
_ORDER = ("error", "fail", "inconclusive")


@dataclass(frozen=True)
class Floor:
    """An absolute limit of one metric: at least `low`, at most `high`."""

    metric: str
    low: float | None = None
    high: float | None = None

    def judge(self, evidence: Evidence) -> Finding:
        """An error where the metric was not measured, a fail where it breaks the limit."""
        value = evidence.candidate.metrics.get(self.metric, math.nan)
        wanted = f"at least {self.low:g}" if self.low is not None else f"at most {self.high:g}"
        part, numbers = f"{self.metric} {wanted}", {"value": value, "low": self.low, "high": self.high}
        if not math.isfinite(value):
            return Finding(part, "error", f"{self.metric} was not measured", numbers)
        if self.low is not None and not value >= self.low:
            return Finding(part, "fail", f"{self.metric} {value:.4f} is below the floor {self.low:g}", numbers)
        if self.high is not None and not value <= self.high:
            return Finding(part, "fail", f"{self.metric} {value:.4f} is above the limit {self.high:g}", numbers)
        return Finding(part, "pass", f"{self.metric} {value:.4f} is {wanted}", numbers)


@dataclass(frozen=True)
class Better:
    """The candidate is better than the champion in `metric` by `by`, or at worst `margin` short of it, with the gate's confidence.

    `lower` says that less of a metric of your own is better; ct's own know.
    """

    metric: str = "auroc"
    by: float = 0.0
    margin: float = MARGIN
    lower: bool = False

    def judge(self, evidence: Evidence) -> Finding | None:
        """None where there is no champion."""
        if evidence.champion is None:
            return None
        limit = self.by - self.margin
        return compared(evidence, self.metric, CHAMPION, limit, f"{self.metric} against the champion by {limit:+g}")


@dataclass(frozen=True)
class Baseline:
    """The candidate is better than the trivial baseline by more than `by`, with the gate's confidence.

    The baseline says the base rate, the classes' shares, the median or the quantiles of the training rows; with `last` the truth that
    was known last before each row, of the same value of the segment `per` where one is named (numbers and quantiles only).
    """

    metric: str = ""
    by: float = 0.0
    last: bool = False
    per: str = ""

    def measure(self, objective: Objective) -> str:
        """The metric it is judged by."""
        return self.metric or PRIMARY[objective.kind]

    def judge(self, evidence: Evidence, metric: str) -> Finding:
        """A candidate that is no better than guessing does not pass, whatever else it shows."""
        what = "the last known value" if self.last else "the base rate" if metric in ("log_loss", "brier") else "a constant"
        return compared(evidence, metric, TRIVIAL, self.by, f"{metric} against {what}", strictly=True)


@overload
def auc(floor: float) -> Floor: ...


@overload
def auc(*, by: float, margin: float = MARGIN) -> Better: ...


def auc(floor: float | None = None, *, by: float | None = None, margin: float = MARGIN) -> Floor | Better:
    """`auc(0.60)` is a floor. `auc(by=0.0)` compares with the champion: better by `by`, up to `margin`."""
    if (floor is None) == (by is None):
        raise InvalidPipeline(f"auc({floor}, by={by})", "either a floor or by=", "write ct.auc(0.60) or ct.auc(by=0.0)")
    if floor is not None:
        if not 0 <= floor <= 1:
            raise InvalidPipeline(f"auc({floor})", "a floor from 0 to 1", "for example 0.60")
        return Floor("auroc", low=floor)
    assert by is not None
    if not 0 <= margin < 1 or not -1 < by < 1:
        raise InvalidPipeline(f"auc(by={by}, margin={margin})", "by in (-1, 1), margin in [0, 1)", "for example by=0.0")
    return Better("auroc", by, margin)


@overload
def ece(max: float) -> Floor: ...


@overload
def ece(*, by: float, margin: float = MARGIN) -> Better: ...


def ece(max: float | None = None, *, by: float | None = None, margin: float = MARGIN) -> Floor | Better:
    """The expected calibration error is at most `max`; or, with `by`, it is compared with the champion's as in `auc`."""
    if (max is None) == (by is None):
        raise InvalidPipeline(f"ece({max}, by={by})", "either max= or by=", "write ct.ece(max=0.05) or ct.ece(by=0.0)")
    if max is not None:
        if not 0 < max <= 1:
            raise InvalidPipeline(f"ece(max={max})", "a limit above 0, at most 1", "for example 0.05")
        return Floor("ece", high=max)
    assert by is not None
    return better("ece", by=by, margin=margin)


def at_least(metric: str, low: float) -> Floor:
    """A floor of any metric, also of one of your own: `at_least("accuracy", 0.8)`."""
    return Floor(metric, low=_number(low, f"at_least({metric!r}, {low!r})"))


def at_most(metric: str, high: float) -> Floor:
    """A limit of any metric, also of one of your own: `at_most("mae", 12)`."""
    return Floor(metric, high=_number(high, f"at_most({metric!r}, {high!r})"))


def better(metric: str, *, by: float = 0.0, margin: float = 0.0, lower: bool = False) -> Better:
    """Compares with the champion in any metric: better by `by`; `better("log_loss", margin=0.01)` is "not worse by more than 0.01".

    `lower=True` for a metric of your own of which less is better.
    """
    said = f"better({metric!r}, by={by!r}, margin={margin!r})"
    if _number(margin, said) < 0:
        raise InvalidPipeline(said, "a margin of at least 0", "for example margin=0.01")
    return Better(metric, _number(by, said), margin, lower)


def baseline(metric: str = "", *, by: float = 0.0, last: bool = False, per: str = "") -> Baseline:
    """The candidate beats the trivial baseline, also when there is a champion. See Baseline."""
    if per and not last:
        raise InvalidPipeline(f"baseline(per={per!r})", "per= only with last=True", "add last=True")
    return Baseline(metric, _number(by, f"baseline(by={by!r})"), last, per)


def slices(margin: float = 0.03, *, minimum: int = 200, metric: str = "") -> Slices:
    """No slice of the pipeline's segments is surely worse than the champion's by more than `margin`. See Slices."""
    if not _number(margin, f"slices(margin={margin!r})") >= 0 or minimum < 2:
        raise InvalidPipeline(f"slices(margin={margin}, minimum={minimum})", "a margin of at least 0, 2 rows or more", "")
    return Slices(metric, margin, minimum)


def fits(*, latency_ms: float | None = None, size_mb: float | None = None) -> Fits:
    """The candidate is small and quick enough in the real serving runtime. See Fits."""
    said = f"fits(latency_ms={latency_ms!r}, size_mb={size_mb!r})"
    if latency_ms is None and size_mb is None:
        raise InvalidPipeline(said, "latency_ms, size_mb or both", "for example latency_ms=20")
    for value in (latency_ms, size_mb):
        if value is not None and not _number(value, said) > 0:
            raise InvalidPipeline(said, "limits above 0", "for example latency_ms=20")
    return Fits(latency_ms, size_mb)


def _number(value: float, said: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InvalidPipeline(said, "a finite number", "mend it")
    return float(value)


@dataclass(frozen=True)
class Gate:
    """What a candidate must show: `floors` by itself, `beats` against the champion, `guards` besides.

    Everything must hold at once. Each comparison is made with `confidence`: the chance that a candidate passes which does not keep what
    one of them demands is at most 1 - confidence, however many there are. `metrics` are your own, {name: f(scores, labels, columns)}
    or an object with value(), by the names that floors and comparisons use. `challengers` are fitted beside the candidate, reported and
    never promoted. Rows of the same `blocks` of time (UTC) count as one draw; "" takes every row for independent. A row judges once it is
    `mature` (such as "2d"); learned from the labels where empty.
    """

    beats: Better | Sequence[Better]
    floors: Sequence[Floor] = ()
    guards: Sequence[Baseline | Slices | Fits] = ()
    metrics: Mapping[str, Any] = field(default_factory=dict, hash=False)
    challengers: Sequence[Any] = ()
    confidence: float = 0.95
    blocks: str = "1d"
    mature: str = ""

    def __post_init__(self) -> None:
        for name in ("floors", "guards", "challengers"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if isinstance(self.beats, (list, tuple)):
            object.__setattr__(self, "beats", tuple(self.beats))

    @property
    def comparisons(self) -> tuple[Better, ...]:
        """What is compared with the champion."""
        return self.beats if isinstance(self.beats, tuple) else (self.beats,)

    @property
    def trivial(self) -> Baseline:
        """The baseline that is reported, and that a first version must beat."""
        return next((part for part in self.guards if isinstance(part, Baseline)), Baseline())

    def sliced(self, objective: Objective) -> Slices | None:
        """The guard over slices, if there is one; it judges by the first comparison that ct measures itself unless it names a metric."""
        found = next((part for part in self.guards if isinstance(part, Slices)), None)
        known = [part.metric for part in self.comparisons if part.metric in COMPARED[objective.kind]]
        return None if found is None else found.by_metric((known or [PRIMARY[objective.kind]])[0])

    def fits(self) -> Fits | None:
        """The limits of latency and size, if there are any."""
        return next((part for part in self.guards if isinstance(part, Fits)), None)

    def higher(self, metric: str) -> bool:
        """Is more of this metric of the user's better?"""
        return not any(part.lower for part in self.comparisons if part.metric == metric)

    def validate(self) -> list[str]:
        """Faults of the declaration, none for a good one."""
        faults = []
        if not self.comparisons or not all(isinstance(part, Better) for part in self.comparisons):
            faults.append(f"beats is {self.beats!r}, expected ct.auc(by=...), ct.better(...) or a list of them")
        if not self.floors:
            faults.append("there is no floor: without one the first model would go live unjudged; add for example ct.auc(0.60)")
        faults += [
            f"floor {floor!r} is no ct.auc(0.60), ct.ece(max=0.05), ct.at_least(...) or ct.at_most(...)"
            for floor in self.floors
            if not isinstance(floor, Floor)
        ]
        faults += [
            f"guard {part!r} is no ct.baseline(), ct.slices() or ct.fits()"
            for part in self.guards
            if not isinstance(part, (Baseline, Slices, Fits))
        ]
        kinds = [type(part) for part in self.guards]
        faults += [f"guards holds two of {kind.__name__}" for kind in (Baseline, Slices, Fits) if kinds.count(kind) > 1]
        if not 0.5 < self.confidence < 1:
            faults.append(f"confidence is {self.confidence!r}, expected a number between 0.5 and 1, such as 0.95")
        for name in ("blocks", "mature"):
            faults += [f"{name}: {fault}" for fault in _duration_faults(getattr(self, name))]
        return faults + self._metric_faults() + self._challenger_faults()

    def _metric_faults(self) -> list[str]:
        faults, taken = [], {name for names in COMPARED.values() for name in names} | {"coverage", "base_rate"}
        for name, value in self.metrics.items():
            if name in taken:
                faults.append(f"metrics names {name!r}, which ct measures itself; choose another name")
            if not callable(value) and not isinstance(value, Metric):
                faults.append(f"metric {name!r} is {value!r}, expected f(scores, labels, columns) or an object with value()")
        return faults

    def _challenger_faults(self) -> list[str]:
        faults = []
        for part in self.challengers:
            if not isinstance(part, Challenger):
                faults.append(f"challenger {part!r} lacks name, missing() or scores(); use ct.LightGBM() or your own")
            elif missing := part.missing():
                faults.append(f"challenger {part.name}: {missing}")
        return faults

    def suits(self, objective: Objective, segments: Sequence[str]) -> list[str]:
        """Faults of the declaration for what is predicted: metrics that such a label has not, segments that the pipeline has not."""
        faults, own = [], set(self.metrics)
        each = {f"{name}_{q:g}" for q in objective.quantiles for name in ("pinball", "coverage")}
        extra = {"binary": {"base_rate"}, "classes": {"average_precision"}, "quantiles": {"coverage"}}.get(
            objective.kind, set()
        )
        floors = own | set(COMPARED[objective.kind]) | each | extra
        known = set(COMPARED[objective.kind])
        for floor in self.floors:
            if floor.metric not in floors:
                faults.append(f"floor {floor.metric!r}: this label has {sorted(floors)}")
        named = [(part.metric, "beats", known | own) for part in self.comparisons]
        named.append((self.trivial.measure(objective), "baseline", known))
        sliced = self.sliced(objective)
        named += [(sliced.metric, "slices", known)] if sliced else []
        faults += [
            f"{where}: {metric!r} cannot be compared, this label has {sorted(allowed)}"
            for metric, where, allowed in named
            if metric not in allowed
        ]
        faults += [
            f"{part.metric!r}: ct knows itself which side is better; leave out lower="
            for part in self.comparisons
            if part.lower and part.metric not in own
        ]
        if sliced and not segments:
            faults.append("slices: the pipeline has no segments; name some, or leave the guard out")
        if self.trivial.last and objective.kind not in ("number", "quantiles"):
            faults.append("baseline: last=True is for numbers and quantiles; leave it out")
        if self.trivial.per and self.trivial.per not in segments:
            faults.append(f"baseline: per={self.trivial.per!r} is not in the pipeline's segments {list(segments)}")
        return faults


def _duration_faults(text: str) -> list[str]:
    try:
        return [] if not text or duration(text).total_seconds() > 0 else [f"{text!r}, expected a time above 0"]
    except (CtError, TypeError, AttributeError) as error:
        return [f"{text!r}: {error}"]


def decide(gate: Gate, evidence: Evidence, objective: Objective = BINARY, warnings: Sequence[str] = ()) -> Verdict:
    """Judge a candidate: the worst that any part says, "error" before "fail" before "inconclusive".

    A first version, without a champion, must beat the trivial baseline. A needed number that is missing is an error, never a pass.
    """
    findings: list[Finding] = [Finding("measuring", "error", fault) for fault in evidence.faults]
    findings += [found for part in gate.comparisons if (found := part.judge(evidence)) is not None]
    if evidence.champion is None or any(isinstance(part, Baseline) for part in gate.guards):
        findings.append(gate.trivial.judge(evidence, gate.trivial.measure(objective)))
    if (sliced := gate.sliced(objective)) is not None and evidence.champion is not None:
        findings.append(sliced.judge(evidence, gate.confidence))
    if (limits := gate.fits()) is not None:
        findings += limits.judge(evidence)
    findings += [floor.judge(evidence) for floor in gate.floors]
    decision = next((name for name in _ORDER if any(found.outcome == name for found in findings)), "pass")
    reasons = tuple(found.reason for found in findings if found.outcome == decision)
    return Verdict(decision, reasons, tuple(findings), tuple(warnings))
