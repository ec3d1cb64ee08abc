"""The records of the prediction log: what is kept of an answer, of a request that nobody could answer, and of a shadow's scores."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ct.data.columns import NO_TIME
from ct.features.transform import texts
from ct.roles import Columns
from ct.serving import answers
from ct.serving.answers import Answer
from ct.serving.passes import Request, Scored
from ct.serving.runtime import Predictor

Record = dict[str, Any]


def predictions(
    endpoint: str, predictor: Predictor, answered: Sequence[tuple[Request, Answer]], scored: Scored
) -> list[Record]:
    """One record for each of a pass's m rows; the requests' rows follow each other in `scored`."""
    spec, now, done = predictor.spec, time.time_ns() // 1000, time.perf_counter()
    told = answers.logged(predictor.objective, scored.scores)
    asked = list(scored.read) if scored.read is not None else _rows(scored.rows, len(told))
    made, segments = _rows(scored.features, len(told)), {name: texts(scored.rows, name).tolist() for name in spec.segments}
    times, names, at = scored.times.tolist(), keys(predictor, scored.rows), 0
    records = []
    for request, answer in answered:
        common = {
            "kind": "prediction",
            "t": now,
            "endpoint": endpoint,
            "version": answer.version,
            "arm": answer.arm,
            "epoch": answer.epoch,
            "weight": request.live.route.weight,
            "assigned": request.where.arm,
            "forced": request.where.forced,
            "error": request.error,
            "latency_ms": (done - request.begun) * 1000,
            "unit": request.unit,
        }
        for name in answer.ids:
            records.append(
                {
                    **common,
                    "id": name,
                    "event_time": times[at],
                    **told[at],
                    "key": names[at],
                    "context": {segment: values[at] for segment, values in segments.items()},
                    "request": asked[at],
                    "features": made[at],
                }
            )
            at += 1
    return records


def failed(endpoint: str, request: Request, answer: Answer, asked: Columns) -> list[Record]:
    """The records of rows that nobody could score: they count as errors of the arm they were assigned to."""
    predictor = request.live.stable.predictor
    scored = Scored(asked, asked[predictor.spec.time], {}, answer.scores, None)
    records = predictions(endpoint, predictor, [(request, answer)], scored)
    return [{**record, "score": None, "scores": {}} for record in records]


def shadows(
    endpoint: str, predictor: Predictor, of: Sequence[tuple[Request, Answer, tuple[Scored, int] | str]], took: float
) -> list[Record]:
    """One record for each row that a shadow scored, or failed to score; `took` is in seconds."""
    records, now = [], time.time_ns() // 1000
    for request, answer, outcome in of:
        scored, first = (None, 0) if isinstance(outcome, str) else outcome
        count = len(answer.ids)
        told: list[dict[str, Any]] = [{"score": None, "scores": {}}] * count
        times = [0] * count
        if scored is not None:
            told = answers.logged(predictor.objective, scored.scores[first : first + count])
            times = scored.times[first : first + count].tolist()
        route = request.live.route
        common = {
            "kind": "shadow",
            "t": now,
            "endpoint": endpoint,
            "version": predictor.version,
            "arm": "shadow",
            "epoch": route.epoch,
            "weight": route.weight,
            "assigned": "shadow",
            "forced": False,
            "error": outcome if isinstance(outcome, str) else "",
            "latency_ms": took * 1000,
        }
        empty = {"context": {}, "request": {}, "features": {}, "unit": "", "key": ""}
        records += [
            {**common, "id": f"{name}.{predictor.version}", "of": name, "event_time": times[at], **told[at], **empty}
            for at, name in enumerate(answer.ids)
        ]
    return records


def keys(predictor: Predictor, columns: Columns) -> list[str]:
    """Each row's key as one text."""
    lists = [columns[name].tolist() for name in predictor.spec.key]
    return ["|".join(map(str, key)) for key in zip(*lists, strict=True)]


def key(read: Mapping[str, Any], predictor: Predictor) -> str:
    """The key of one row that was read alone, as `keys` tells it."""
    missing = {"number": "nan", "time": str(NO_TIME)}
    kinds = predictor.spec.request
    return "|".join(
        str(value) if (value := read[name]) is not None else missing.get(kinds[name], "None") for name in predictor.spec.key
    )


def _rows(columns: Mapping[str, NDArray[Any]], count: int) -> list[dict[str, Any]]:
    """Columns [m] as m rows of plain values."""
    plain = [_plain(values) for values in columns.values()]
    return [dict(zip(columns, row, strict=True)) for row in zip(*plain, strict=True)] if plain else [{} for _ in range(count)]


def _plain(values: NDArray[Any]) -> list[Any]:
    match values.dtype.kind:
        case "f":
            return [None if value != value else value for value in values.tolist()]
        case "i":
            return [None if value == NO_TIME else value for value in values.tolist()]
        case _:
            return [_one(value) for value in values]


def _one(value: Any) -> Any:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, np.integer):
        return None if int(value) == NO_TIME else int(value)
    return None if math.isnan(value) else float(value)
