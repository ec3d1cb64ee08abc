"""Counts what a verdict needs from the prediction log's records, whole and by segment. A fold: the same records give the same counts, in any split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ct.data.counting import MISSING
from ct.objectives import BINARY, Objective
from ct.registry.routes import WHOLE
from ct.rollout.guards import Business, Scores
from ct.rollout.verdict import Cell


def off(objective: Objective, record: Mapping[str, Any], label: float) -> float:
    """How far a number's answer is from its truth: the absolute error, or the mean pinball loss over the quantiles."""
    if objective.kind == "number":
        return abs(float(record["score"]) - label)
    gaps = [(q, label - float(record["scores"][name])) for q, name in zip(objective.quantiles, objective.names, strict=True)]
    return sum(max(q * gap, (q - 1) * gap) for q, gap in gaps) / len(gaps)


def wrong(
    objective: Objective, record: Mapping[str, Any], label: float, limit: float | None, cuts: Mapping[str, float] | None = None
) -> bool | None:
    """Is an answer wrong, now that its truth is known? None where that cannot be said.

    binary: the label that was told is not the truth; `cuts` has the score from which each version says 1 (1/2 for one that it does not name).
    classes: another class was answered. Numbers and quantiles: `off` by more than `limit`, and nobody can say without one; the quantiles'
    loss rather than whether the truth lies between the outermost, because an answer wide enough would never be wrong then.
    """
    if objective.kind == "binary":
        cut = (cuts or {}).get(record.get("version", ""), 0.5)
        return (float(record["score"]) >= cut) != (label >= 0.5)
    scores: dict[str, float] = record.get("scores") or {}
    if set(scores) != set(objective.names):
        return None  # answered by a version for another label
    if objective.kind == "classes":
        best: str = max(scores, key=scores.__getitem__)
        return best != objective.classes[int(label)]
    return None if limit is None else off(objective, record, label) > limit


_Place = tuple[int, str, str, str]
"""The canary's weight, the arm, and a segment with its value; both are empty for all requests."""
_Order = tuple[int, str]
"""A moment in microseconds, and the id of the request."""
_Voice = tuple[_Order, tuple[_Place, ...], tuple[str, ...]]
"""When a request was made, its places, and the counts that it raises."""
_SLOW = "slow "
_PARTS = 10**9
"""Losses are added up as whole numbers of this part, so that the order in which they came leaves no trace."""
WINDOW_US = 600_000_000
"""Ten minutes. A unit speaks once in each, so that harm that begins later is seen too."""


@dataclass
class _Counts:
    """What is counted of every request, and of those that speak for their unit."""

    every: Counter[str] = field(default_factory=Counter)
    units: Counter[str] = field(default_factory=Counter)
    valued: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)

    def losses(self) -> tuple[tuple[str, int, float], ...]:
        return tuple((name, rows, self.lost[name] / _PARTS) for name, rows in sorted(self.valued.items()) if rows)


@dataclass
class _Run:
    """An arm's failures after its last success, by unit."""

    succeeded: _Order = (-1, "")
    failed: dict[str, _Order] = field(default_factory=dict)

    def add(self, unit: str, at: _Order, failed: bool) -> None:
        if failed and at > self.succeeded:
            self.failed[unit] = max(at, self.failed.get(unit, at))
        elif not failed and at > self.succeeded:
            self.succeeded = at
            self.failed = {name: when for name, when in self.failed.items() if when > at}

    def told(self) -> dict[str, Any]:
        return {
            "failed_in_a_row": len(self.failed),
            "failing_since": min(self.failed.values())[0] if self.failed else None,
            "succeeded_at": self.succeeded[0] if self.succeeded[0] >= 0 else None,
        }


@dataclass(frozen=True)
class _Truth:
    """What a label says, the value that came with it, and when it came."""

    label: float
    value: float | None
    at: int


@dataclass(frozen=True)
class Worth:
    """A labelled row: the canary's weight in 10,000, the arm, and the part of the range that was lost, 0 to 1."""

    weight: int
    arm: str
    loss: float


@dataclass
class Tally:
    """Counts by (canary weight, assigned arm), from `first_epoch` on, and of each of `segments` by its value as well.

    A canary that failed and fell back to stable counts as an error of the canary, to which the request had been assigned.
    Requests that a header forced onto an arm do not count. `slow_ms` has the limit of each quantile that is watched. See `wrong` for
    `objective`, `limit` and `cuts`. The first request of a unit in each window of WINDOW_US, and its first labelled one, speak for it in
    counts of their own, in the segments that they belong to: the requests of one user, who stays on one arm, do not go badly independently.
    For the guards in `valued` only the row of each unit whose label came first counts at all, for the same reason; and for the scores, which
    are extreme outside `middle` (None: nobody can say), only its first answer.
    """

    first_epoch: int
    slow_ms: Mapping[str, float]
    objective: Objective = BINARY
    limit: float | None = None
    cuts: Mapping[str, float] = field(default_factory=dict)
    valued: tuple[Business, ...] = ()
    middle: tuple[float, float] | None = None
    segments: tuple[str, ...] = ()
    _cells: dict[_Place, _Counts] = field(default_factory=dict)
    _runs: dict[_Place, _Run] = field(default_factory=dict)
    _open: dict[str, tuple[tuple[_Place, ...], Mapping[str, Any]]] = field(default_factory=dict)
    _early: dict[str, _Truth] = field(default_factory=dict)
    _seen: set[str] = field(default_factory=set)
    _units: dict[_Place, set[str]] = field(default_factory=dict)
    _first: dict[tuple[str, str, int], _Voice] = field(default_factory=dict)
    _worth: dict[tuple[str, str], tuple[_Order, tuple[_Place, ...], float]] = field(default_factory=dict)

    def add(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Count `records` of the prediction log, predictions and labels, in any order. The same record twice counts once."""
        for record in records:
            if record["kind"] == "prediction":
                self._prediction(record)
            elif record["kind"] == "label" and record["label"] is not None:
                self._label(record["id"], _Truth(float(record["label"]), record.get("value"), int(record.get("t") or 0)))

    def cells(self) -> tuple[Cell, ...]:
        """The counts, one cell for each weight and arm."""
        return self.by_segment().get(("", ""), ())

    def by_segment(self) -> dict[tuple[str, str], tuple[Cell, ...]]:
        """The cells of each (segment, value); those of all requests under two empty texts."""
        found: dict[tuple[str, str], list[Cell]] = {}
        for place, counts in sorted(self._cells.items()):
            weight, arm, segment, value = place
            run = self._runs.get(place)
            cell = Cell(
                weight=weight / WHOLE,
                arm=arm,
                total=counts.every["total"],
                errors=counts.every["errors"],
                slow=self._slow(counts.every),
                labelled=counts.every["labelled"],
                wrong=counts.every["wrong"],
                unit_total=counts.units["total"],
                unit_errors=counts.units["errors"],
                unit_slow=self._slow(counts.units),
                unit_labelled=counts.units["labelled"],
                unit_wrong=counts.units["wrong"],
                losses=counts.losses(),
                **(run.told() if run else {}),
                distinct=len(self._units[place]) if place in self._units else None,
            )
            found.setdefault((segment, value), []).append(cell)
        return {name: tuple(cells) for name, cells in found.items()}

    def worths(self, name: str) -> tuple[Worth, ...]:
        """What the guard of that name lost on each row, in the order in which the labels came."""
        rows = sorted((order, places[0], loss) for (guard, _), (order, places, loss) in self._worth.items() if guard == name)
        return tuple(Worth(weight, arm, loss) for _, (weight, arm, _, _), loss in rows)

    def _slow(self, counts: Counter[str]) -> dict[str, int]:
        return {quantile: counts[_SLOW + quantile] for quantile in self.slow_ms}

    def _prediction(self, record: Mapping[str, Any]) -> None:
        key = record["id"]
        if record["epoch"] < self.first_epoch or record.get("forced") or key in self._seen:
            return
        self._seen.add(key)
        places = self._places(record)
        told = {name: record.get(name) for name in ("id", "unit", "t", "version", "score")} | {
            "scores": record.get("scores") or {}
        }
        if self.valued:
            told["request"] = record.get("request") or {}
        failed = bool(record["error"])
        raised = ["total", *(["errors"] if failed else [])]
        raised += [_SLOW + quantile for quantile, limit in self.slow_ms.items() if record["latency_ms"] > limit]
        for place in places:
            self._cells.setdefault(place, _Counts()).every.update(raised)
        unit = str(told["unit"] or key)
        self._units.setdefault(places[0], set()).add(unit)
        self._runs.setdefault(places[0], _Run()).add(unit, (int(told["t"] or 0), key), failed)
        self._speak(places, told, raised)
        if failed:
            return
        if self.middle is not None and record["score"] is not None:
            low, high = self.middle
            self._take(Scores().metric(), places, told, float(not low <= float(record["score"]) <= high), int(told["t"] or 0))
        if key in self._early:
            self._judge(places, told, self._early.pop(key))
        else:
            self._open[key] = (places, told)

    def _places(self, record: Mapping[str, Any]) -> tuple[_Place, ...]:
        """Where a request is counted: among all, and in its value of each segment."""
        weight, arm, context = int(record["weight"]), str(record["assigned"]), record.get("context") or {}
        values = ((name, context.get(name)) for name in self.segments)
        return (
            (weight, arm, "", ""),
            *((weight, arm, name, MISSING if value is None else str(value)) for name, value in values),
        )

    def _label(self, key: str, truth: _Truth) -> None:
        if key in self._open:
            self._judge(*self._open.pop(key), truth)
        elif key not in self._seen and (key not in self._early or truth.at < self._early[key].at):
            self._early[key] = truth

    def _judge(self, places: tuple[_Place, ...], told: Mapping[str, Any], truth: _Truth) -> None:
        for guard in self.valued:
            loss = guard.loss(told["request"], float(told["score"]), truth.label, truth.value)
            if loss is not None:
                self._take(guard.name, places, told, loss, truth.at)
        found = wrong(self.objective, told, truth.label, self.limit, self.cuts)
        if found is not None:
            raised = ["labelled", "wrong"] if found else ["labelled"]
            for place in places:
                self._cells[place].every.update(raised)
            self._speak(places, told, raised)

    def _take(self, name: str, places: tuple[_Place, ...], told: Mapping[str, Any], loss: float, at: int) -> None:
        """Keep a unit's loss unless one that came earlier, `at` an earlier moment, is kept."""
        mark, order = (name, str(told.get("unit") or told["id"])), (at, str(told["id"]))
        known, new = self._worth.get(mark), (order, places, loss)
        if known is not None and known[0] <= order:
            return
        self._worth[mark] = new
        for (_, where, lost), by in ((new, 1), *([(known, -1)] if known else [])):
            for place in where:
                self._cells[place].valued[name] += by
                self._cells[place].lost[name] += by * round(lost * _PARTS)

    def _speak(self, places: tuple[_Place, ...], told: Mapping[str, Any], raised: Sequence[str]) -> None:
        """Count a row for its unit, unless an earlier one of the same window speaks for it. `raised` begins with what kind of row it is."""
        moment = int(told.get("t") or 0)
        mark = (raised[0], str(told.get("unit") or told["id"]), moment // WINDOW_US)
        new: _Voice = ((moment, str(told["id"])), places, tuple(raised))
        known = self._first.get(mark)
        if known is not None and known[0] <= new[0]:
            return
        if known is not None:
            self._count(known, -1)
        self._first[mark] = new
        self._count(new, 1)

    def _count(self, voice: _Voice, by: int) -> None:
        for place in voice[1]:
            units = self._cells[place].units
            for name in voice[2]:
                units[name] += by
