"""Ground truth that arrives later: reading posted labels, and joining them to predictions. Pure; storing them is the prediction log's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ct.data.naming import PredictionIds
from ct.data.predictions import Record
from ct.errors import InvalidRequest
from ct.objectives import Objective

_FIELDS = {"prediction_id", "value", "label", "known_at"}
_SKEW_US = 86_400_000_000


def read_labels(entries: object, *, ids: PredictionIds, objective: Objective, above: float | None, now_us: int) -> list[Record]:
    """Posted entries `{"prediction_id", "value" or "label", "known_at"?}` as records of the prediction log.

    `value` is the label column's raw value, `label` the truth itself: 0 or 1, the class, or the number; null says that there will be
    none. `above` makes a binary truth of a value. A record's "label" is a number, for a class its place.
    Raises InvalidRequest: 404 for an id this endpoint never gave, 422 for anything else.
    """
    if not isinstance(entries, Sequence) or isinstance(entries, (str, bytes)) or not entries:
        raise InvalidRequest(
            f"labels is {type(entries).__name__}", "a list of one label or more", "send {'labels': [...]}", field="labels"
        )
    return [_read(index, entry, ids, objective, above, now_us) for index, entry in enumerate(entries)]


def _read(index: int, entry: object, ids: PredictionIds, objective: Objective, above: float | None, now_us: int) -> Record:
    if not isinstance(entry, Mapping) or not set(entry) <= _FIELDS or "prediction_id" not in entry:
        found = "no object" if not isinstance(entry, Mapping) else f"fields {sorted(map(str, entry))}"
        raise InvalidRequest(
            f"label {index} has {found}", "prediction_id, value or label, and known_at if you know it", "", field=f"{index}"
        )
    name = ids.check(entry["prediction_id"])
    if ("value" in entry) == ("label" in entry):
        raise InvalidRequest(
            f"label {index} has {'both' if 'value' in entry else 'neither'} of value and label",
            "one of them",
            "send the label column's value",
            field=f"{index}.value",
        )
    given = "value" if "value" in entry else "label"
    value, label = _truth(entry[given], index, given, objective, above)
    known_at = _moment(entry.get("known_at"), index, now_us)
    return {"kind": "label", "id": name, "t": now_us, "value": value, "label": label, "known_at": known_at}


def _truth(
    said: object, index: int, given: str, objective: Objective, above: float | None
) -> tuple[float | None, float | None]:
    """The column's value, where it is a number, and the truth."""
    if objective.kind == "classes":
        if said is not None and (not isinstance(said, str) or said not in objective.classes):
            raise InvalidRequest(
                f"{given} of label {index} is {str(said)[:80]!r}",
                f"one of {list(objective.classes)}, or null",
                "send the class as it is declared; null says that there will be none",
                field=f"{index}.{given}",
            )
        return None, None if said is None else float(objective.classes.index(str(said)))
    value = _number(said, index, given)
    if objective.kind != "binary":
        return value, value
    label = value if given == "label" or value is None or above is None else float(value > above)
    if label not in (None, 0.0, 1.0):
        raise InvalidRequest(f"label {index} is {label}", "0 or 1", "send the raw value as `value`", field=f"{index}.label")
    return value, label


def _number(value: object, index: int, name: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InvalidRequest(f"{name} of label {index} is {value!r}", "a finite number or null", "", field=f"{index}.{name}")
    return float(value)


def _moment(value: object, index: int, now_us: int) -> int:
    if value is None:
        return now_us
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise InvalidRequest(
            f"known_at of label {index} is {str(value)[:80]!r}",
            "a time with its zone, such as 2013-04-01T10:00:00Z",
            "",
            field=f"{index}.known_at",
        )
    known_at = round(moment.timestamp() * 1e6)
    if known_at > now_us + _SKEW_US:
        raise InvalidRequest(
            f"label {index} is known only at {value}", "a time that has come", "send it then", field=f"{index}.known_at"
        )
    return known_at


@dataclass(frozen=True)
class Row:
    """A prediction with its truth. `label` is None while it is not known; times are microseconds. `scores` has those of classes or quantiles.

    `of` is the answered prediction that a shadow's score belongs to.
    """

    id: str
    version: str
    arm: str
    epoch: int
    score: float
    label: float | None
    t: int
    event_time: int
    known_at: int | None
    context: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    of: str = ""


def arrays(rows: Sequence[Row], objective: Objective) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scores [n] or [n, k] of these rows and their labels [n], NaN where there is none, or where a row was answered for another label."""
    names = objective.names
    told = [[row.scores.get(name, np.nan) for name in names] if names else row.score for row in rows]
    truth = [np.nan if row.label is None else row.label for row in rows]
    shape = (len(rows), len(names)) if names else (len(rows),)
    return np.array(told, dtype=np.float64).reshape(shape), np.array(truth, dtype=np.float64)


@dataclass(frozen=True)
class Joined:
    """Answered predictions and unseen shadow scores, each once, with the newest known truth.

    `duplicates` counts labels that said the same again, `contradictions` labels that said something else about the same prediction,
    `parked` labels whose prediction has not been seen.
    """

    rows: tuple[Row, ...]
    shadow: tuple[Row, ...]
    duplicates: int
    contradictions: int
    parked: int


def join(records: Iterable[Mapping[str, Any]]) -> Joined:
    """Join the prediction log's records, in any order. Predictions without a score (the request failed) do not appear."""
    predictions: dict[str, Mapping[str, Any]] = {}
    shadows: dict[str, Mapping[str, Any]] = {}
    truths: dict[str, dict[tuple[Any, ...], Mapping[str, Any]]] = {}
    duplicates = 0
    for record in records:
        if record["kind"] == "label":
            told = truths.setdefault(record["id"], {})
            said = (record["label"], record["known_at"])
            duplicates += said in told
            told.setdefault(said, record)
        elif record["score"] is not None:
            (shadows if record["kind"] == "shadow" else predictions).setdefault(record["id"], record)
    newest = {name: max(told.values(), key=lambda label: (label["known_at"], label["t"])) for name, told in truths.items()}
    return Joined(
        rows=tuple(_row(record, newest.get(name)) for name, record in predictions.items()),
        shadow=tuple(_row(record, newest.get(record["of"])) for record in shadows.values()),
        duplicates=duplicates,
        contradictions=sum(len({said[0] for said in told}) - 1 for told in truths.values()),
        parked=sum(name not in predictions for name in truths),
    )


def _row(record: Mapping[str, Any], truth: Mapping[str, Any] | None) -> Row:
    return Row(
        id=record["id"],
        version=record["version"],
        arm=record["arm"],
        epoch=record["epoch"],
        score=record["score"],
        label=None if truth is None else truth["label"],
        t=record["t"],
        event_time=record["event_time"],
        known_at=None if truth is None else truth["known_at"],
        context=record["context"],
        scores=record.get("scores") or {},
        of=record.get("of") or "",
    )
