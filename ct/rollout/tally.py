"""Counts what a verdict needs from the prediction log's records. A fold: the same records give the same counts, in any split."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ct.registry.routes import WHOLE
from ct.rollout.verdict import Cell


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
    Requests that a header forced onto an arm do not count. A prediction is wrong when score and truth lie on different sides of 1/2.
    """

    first_epoch: int
    slow_ms: float
    _cells: dict[tuple[int, str], _Counts] = field(default_factory=dict)
    _open: dict[str, tuple[tuple[int, str], float]] = field(default_factory=dict)
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
        if key in self._early:
            self._judge(cell, record["score"], self._early.pop(key))
        else:
            self._open[key] = (cell, record["score"])

    def _label(self, key: str, label: float) -> None:
        if key in self._open:
            cell, score = self._open.pop(key)
            self._judge(cell, score, label)
        elif key not in self._seen:
            self._early[key] = label

    def _judge(self, cell: tuple[int, str], score: float, label: float) -> None:
        counts = self._cells[cell]
        counts.labelled += 1
        counts.wrong += (score >= 0.5) != (label >= 0.5)
