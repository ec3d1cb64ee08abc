"""Counts what a verdict needs from the prediction log's records. A fold: the same records give the same counts, in any split."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

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


@dataclass
class _Counts:
    total: int = 0
    errors: int = 0
    slow: int = 0
    labelled: int = 0
    wrong: int = 0
    units: Counter[str] = field(default_factory=Counter)


_Place = tuple[int, str]
"""The canary's weight, and the arm."""


_Voice = tuple[int, str, _Place, tuple[bool, ...]]
"""When a request was made, its id, its place, and whether it went badly, in the order of _BAD."""
_BAD = {"total": ("errors", "slow"), "labelled": ("wrong",)}
WINDOW_US = 600_000_000
"""Ten minutes. A unit speaks once in each, so that harm that begins later is seen too."""


@dataclass
class Tally:
    """Counts by (canary weight, assigned arm), from `first_epoch` on.

    A canary that failed and fell back to stable counts as an error of the canary, to which the request had been assigned.
    Requests that a header forced onto an arm do not count. See `wrong` for `objective`, `limit` and `cuts`. The first request of a unit in
    each window of WINDOW_US, and its first labelled one, speak for it in counts of their own: the requests of one user, who stays on one arm,
    do not go badly independently.
    For the guards in `valued` only the first labelled row of each unit counts at all, for the same reason; and for the scores, which are
    extreme outside `middle` (None: nobody can say), only its first answer.
    """

    first_epoch: int
    slow_ms: float
    objective: Objective = BINARY
    limit: float | None = None
    cuts: Mapping[str, float] = field(default_factory=dict)
    valued: tuple[Business, ...] = ()
    middle: tuple[float, float] | None = None
    _cells: dict[_Place, _Counts] = field(default_factory=dict)
    _open: dict[str, tuple[_Place, Mapping[str, Any]]] = field(default_factory=dict)
    _early: dict[str, float] = field(default_factory=dict)
    _seen: set[str] = field(default_factory=set)
    _first: dict[tuple[str, str, int], _Voice] = field(default_factory=dict)
    _worth: dict[tuple[str, str], tuple[int, str, _Place, float]] = field(default_factory=dict)

    def add(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Count `records` of the prediction log, predictions and labels, in any order. The same record twice counts once."""
        for record in records:
            if record["kind"] == "prediction":
                self._prediction(record)
            elif record["kind"] == "label" and record["label"] is not None:
                self._label(record["id"], float(record["label"]))

    def cells(self) -> tuple[Cell, ...]:
        """The counts, one cell for each weight and arm."""
        losses = self._losses()
        return tuple(
            Cell(
                weight=weight / WHOLE,
                arm=arm,
                total=c.total,
                errors=c.errors,
                slow=c.slow,
                labelled=c.labelled,
                wrong=c.wrong,
                unit_total=c.units["total"],
                unit_errors=c.units["errors"],
                unit_slow=c.units["slow"],
                unit_labelled=c.units["labelled"],
                unit_wrong=c.units["wrong"],
                losses=losses.get((weight, arm), ()),
            )
            for (weight, arm), c in sorted(self._cells.items())
        )

    def _prediction(self, record: Mapping[str, Any]) -> None:
        key = record["id"]
        if record["epoch"] < self.first_epoch or record.get("forced") or key in self._seen:
            return
        self._seen.add(key)
        place = (int(record["weight"]), str(record["assigned"]))
        counts = self._cells.setdefault(place, _Counts())
        counts.total += 1
        told = {name: record.get(name) for name in ("id", "unit", "t", "version", "score")} | {
            "scores": record.get("scores") or {}
        }
        if self.valued:
            told["request"] = record.get("request") or {}
        failed, slow = bool(record["error"]), bool(record["latency_ms"] > self.slow_ms)
        counts.errors += failed
        counts.slow += slow
        self._speak("total", place, told, failed, slow)
        if failed:
            return
        if self.middle is not None and record["score"] is not None:
            low, high = self.middle
            self._take(Scores().metric(), place, told, float(not low <= float(record["score"]) <= high))
        if key in self._early:
            self._judge(place, told, self._early.pop(key))
        else:
            self._open[key] = (place, told)

    def _label(self, key: str, label: float) -> None:
        if key in self._open:
            self._judge(*self._open.pop(key), label)
        elif key not in self._seen:
            self._early[key] = label

    def _judge(self, place: _Place, told: Mapping[str, Any], label: float) -> None:
        for guard in self.valued:
            loss = guard.loss(told["request"], float(told["score"]), label)
            if loss is not None:
                self._take(guard.name, place, told, loss)
        found = wrong(self.objective, told, label, self.limit, self.cuts)
        if found is not None:
            counts = self._cells[place]
            counts.labelled += 1
            counts.wrong += found
            self._speak("labelled", place, told, found)

    def _take(self, name: str, place: _Place, told: Mapping[str, Any], loss: float) -> None:
        mark, new = (name, str(told.get("unit") or told["id"])), (int(told.get("t") or 0), str(told["id"]), place, loss)
        known = self._worth.get(mark)
        if known is None or new[:2] < known[:2]:
            self._worth[mark] = new

    def _losses(self) -> dict[_Place, tuple[tuple[str, int, float], ...]]:
        """For each cell its rows and losses by metric. fsum, so that the order in which they came leaves no trace."""
        found: dict[_Place, dict[str, list[float]]] = {}
        for (name, _), (_, _, place, loss) in self._worth.items():
            found.setdefault(place, {}).setdefault(name, []).append(loss)
        return {
            place: tuple((name, len(each), math.fsum(each)) for name, each in sorted(by_name.items()))
            for place, by_name in found.items()
        }

    def _speak(self, kind: str, place: _Place, told: Mapping[str, Any], *bad: bool) -> None:
        """Count a row for its unit, unless an earlier one of the same window speaks for it."""
        moment = int(told.get("t") or 0)
        mark = (kind, str(told.get("unit") or told["id"]), moment // WINDOW_US)
        new: _Voice = (moment, str(told["id"]), place, bad)
        known = self._first.get(mark)
        if known is not None and known[:2] <= new[:2]:
            return
        if known is not None:
            self._count(kind, known, -1)
        self._first[mark] = new
        self._count(kind, new, 1)

    def _count(self, kind: str, voice: _Voice, by: int) -> None:
        units = self._cells[voice[2]].units
        units[kind] += by
        for name, bad in zip(_BAD[kind], voice[3], strict=True):
            units[name] += by * bad
