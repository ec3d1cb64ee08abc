"""Counts what a verdict needs from the prediction log's records. A fold: the same records give the same counts, in any split."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ct.objectives import BINARY, Objective
from ct.registry.routes import WHOLE
from ct.rollout.verdict import Cell


def off(objective: Objective, record: Mapping[str, Any], label: float) -> float:
    """How far a number's answer is from its truth: the absolute error, or the mean pinball loss over the quantiles."""
    if objective.kind == "number":
        return abs(float(record["score"]) - label)
    gaps = [(q, label - float(record["scores"][name])) for q, name in zip(objective.quantiles, objective.names, strict=True)]
    return sum(max(q * gap, (q - 1) * gap) for q, gap in gaps) / len(gaps)


def wrong(objective: Objective, record: Mapping[str, Any], label: float, limit: float | None) -> bool | None:
    """Is an answer wrong, now that its truth is known? None where that cannot be said.

    binary: score and truth lie on different sides of 1/2. classes: another class was answered. Numbers and quantiles: `off` by more than
    `limit`, and nobody can say without one; the quantiles' loss rather than whether the truth lies between the outermost, because an answer
    wide enough would never be wrong then.
    """
    if objective.kind == "binary":
        return (float(record["score"]) >= 0.5) != (label >= 0.5)
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


@dataclass
class Tally:
    """Counts by (canary weight, assigned arm), from `first_epoch` on.

    A canary that failed and fell back to stable counts as an error of the canary, to which the request had been assigned.
    Requests that a header forced onto an arm do not count. See `wrong` for `objective` and `limit`.
    """

    first_epoch: int
    slow_ms: float
    objective: Objective = BINARY
    limit: float | None = None
    _cells: dict[tuple[int, str], _Counts] = field(default_factory=dict)
    _open: dict[str, tuple[tuple[int, str], Mapping[str, Any]]] = field(default_factory=dict)
    _early: dict[str, float] = field(default_factory=dict)
    _seen: set[str] = field(default_factory=set)

    def add(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Count `records` of the prediction log, predictions and labels, in any order. The same record twice counts once."""
        for record in records:
            if record["kind"] == "prediction":
                self._prediction(record)
            elif record["kind"] == "label" and record["label"] is not None:
                self._label(record["id"], float(record["label"]))

    def cells(self) -> tuple[Cell, ...]:
        """The counts, one cell for each weight and arm."""
        return tuple(
            Cell(
                weight=weight / WHOLE, arm=arm, total=c.total, errors=c.errors, slow=c.slow, labelled=c.labelled, wrong=c.wrong
            )
            for (weight, arm), c in sorted(self._cells.items())
        )

    def at(self, weight: int) -> int:
        """Requests that the canary answered or failed at `weight`."""
        counts = self._cells.get((weight, "canary"))
        return counts.total if counts else 0

    def _prediction(self, record: Mapping[str, Any]) -> None:
        key = record["id"]
        if record["epoch"] < self.first_epoch or record.get("forced") or key in self._seen:
            return
        self._seen.add(key)
        cell = (int(record["weight"]), str(record["assigned"]))
        counts = self._cells.setdefault(cell, _Counts())
        counts.total += 1
        counts.errors += bool(record["error"])
        counts.slow += record["latency_ms"] > self.slow_ms
        if record["error"]:
            return
        told = {"score": record["score"], "scores": record.get("scores") or {}}
        if key in self._early:
            self._judge(cell, told, self._early.pop(key))
        else:
            self._open[key] = (cell, told)

    def _label(self, key: str, label: float) -> None:
        if key in self._open:
            self._judge(*self._open.pop(key), label)
        elif key not in self._seen:
            self._early[key] = label

    def _judge(self, cell: tuple[int, str], told: Mapping[str, Any], label: float) -> None:
        found = wrong(self.objective, told, label, self.limit)
        if found is not None:
            counts = self._cells[cell]
            counts.labelled += 1
            counts.wrong += found
