"""From rows to a logged answer: pick the arm, score, fall back to stable, write the prediction log, shadow. Knows nothing of HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ct.data.columns import NO_TIME, from_rows
from ct.data.predictions import Inbox, PredictionIds, Record
from ct.errors import InvalidRequest, NotFound
from ct.features.online import OnlineStore
from ct.pipeline import Columns
from ct.serving.metrics import Metrics
from ct.serving.router import CANARY, STABLE, Assignment, assign
from ct.serving.runtime import Predictor
from ct.serving.slots import Live, Slots

INLINE_ROWS = 32
SHADOWS = 16
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Request:
    """Rows to predict. `unit` is what sticks to an arm; `force` the header x-canary; `version` pins one that is loaded."""

    rows: Sequence[Mapping[str, Any]]
    unit: str = ""
    force: str = ""
    version: str = ""


@dataclass(frozen=True)
class Answer:
    """Scores [n] with their ids and labels (score at or above the version's threshold), and who gave them."""

    ids: tuple[str, ...]
    scores: tuple[float, ...]
    labels: tuple[int, ...]
    version: str
    arm: str
    epoch: int


@dataclass(frozen=True)
class _Batch:
    """A validated request."""

    request: Request
    columns: Columns
    times: NDArray[np.int64]
    keys: tuple[str, ...]
    unit: str
    begun: float


@dataclass(frozen=True)
class _Scored:
    arm: str
    version: str
    threshold: float
    scores: Floats | None
    features: Mapping[str, Any]
    error: str


class Answering:
    """What one replica needs to answer. Used on its event loop."""

    def __init__(self, slots: Slots, store: OnlineStore, inbox: Inbox, metrics: Metrics, *, max_rows: int) -> None:
        self._slots, self._store, self._inbox, self._metrics = slots, store, inbox, metrics
        self._max_rows = max_rows
        self._ids: PredictionIds | None = None
        self._shadows: set[asyncio.Task[None]] = set()

    def ids(self, live: Live) -> PredictionIds:
        """The names of the endpoint's predictions."""
        if self._ids is None:
            self._ids = PredictionIds(live.route.key)
        return self._ids

    async def answer(self, request: Request) -> Answer:
        """Predict and log; the answer is durable when this returns. A failing canary is answered by stable.

        Raises InvalidRequest, Unavailable before the first route or when the log cannot be written, and whatever stable raises.
        """
        begun = time.perf_counter()
        live = self._slots.require()
        place = self._assign(live, request)
        batch = self._validate(live, request, begun)
        if place is None:
            place = assign(live.route, batch.unit, request.force)
        scored = await self._score(live, place.arm, batch)
        ids = [self.ids(live).new() for _ in request.rows]
        await asyncio.wrap_future(self._inbox.submit(_records(live, place, batch, scored, ids)))
        self._metrics.time(time.perf_counter() - begun, arm=scored.arm, version=scored.version)
        self._metrics.count("ct_rows_total", len(ids), arm=scored.arm, version=scored.version)
        if scored.scores is None:
            raise RuntimeError(scored.error)
        if live.route.shadow and place == Assignment(STABLE):
            self._shadow(live, batch, ids)
        scores = scored.scores.tolist()
        labels = tuple(int(score >= scored.threshold) for score in scores)
        return Answer(tuple(ids), tuple(scores), labels, scored.version, scored.arm, live.route.epoch)

    def _assign(self, live: Live, request: Request) -> Assignment | None:
        """The arm of a pinned version, None when the route decides. Raises NotFound for a version that is not routed."""
        if not request.version:
            return None
        for arm, declared in ((STABLE, live.route.stable), (CANARY, live.route.canary)):
            if declared is not None and declared.version == request.version:
                return Assignment(arm, forced=True)
        raise NotFound(
            f"version {request.version!r} is not served",
            f"one of {[arm.version for arm in live.route.arms]}",
            "leave the version out, or ask for one that is served",
        )

    def _validate(self, live: Live, request: Request, begun: float) -> _Batch:
        spec, count = live.stable.predictor.spec, len(request.rows)
        if not 1 <= count <= self._max_rows:
            raise InvalidRequest(f"{count} rows", f"1 to {self._max_rows}", "split the request", field="instances")
        columns = from_rows(request.rows, live.kinds, optional=live.optional)
        times = columns[spec.time]
        if (times == NO_TIME).any():
            raise InvalidRequest(f"a row without {spec.time!r}", "the event time", "send it", field=spec.time)
        for name in spec.key:
            if any(row[name] is None for row in request.rows):
                raise InvalidRequest(f"a row without {name!r}", "the row's key", "send it", field=name)
        keys = tuple("|".join(str(row[name]) for name in spec.key) for row in request.rows)
        return _Batch(request, columns, times, keys, request.unit or keys[0], begun)

    async def _score(self, live: Live, arm: str, batch: _Batch) -> _Scored:
        error = ""
        if arm == CANARY and live.canary is not None:
            if live.circuit.open:
                error = f"circuit open after {live.circuit.failures} failures in a row"
            else:
                canary = await self._try(live, CANARY, batch, "")
                live.circuit.record(ok=not canary.error)
                if not canary.error:
                    return canary
                error = canary.error
            self._metrics.count("ct_canary_failures_total", version=live.canary.predictor.version)
        return await self._try(live, STABLE, batch, error)

    async def _try(self, live: Live, arm: str, batch: _Batch, error: str) -> _Scored:
        slot = live.slot(arm)
        with slot.using() as predictor:
            try:
                if len(batch.keys) <= INLINE_ROWS:
                    scores, features = self._predict(predictor, batch)
                else:
                    scores, features = await asyncio.to_thread(self._predict, predictor, batch)
            except Exception as failure:  # a version may fail in any way; the request must not
                error = error or f"{type(failure).__name__}: {failure}"
                return _Scored(arm, predictor.version, predictor.threshold, None, {}, error)
            return _Scored(arm, predictor.version, predictor.threshold, scores, features, error)

    def _predict(self, predictor: Predictor, batch: _Batch) -> tuple[Floats, Mapping[str, Any]]:
        scores, features = predictor.score(batch.columns, batch.times, self._store)
        if not np.isfinite(scores).all():
            raise ArithmeticError("the model gave a score that is no number")
        return scores, features

    def _shadow(self, live: Live, batch: _Batch, ids: Sequence[str]) -> None:
        """Score the rows on the canary as well, unseen, after the answer has gone out. Dropped and counted when too many wait."""
        if len(self._shadows) >= SHADOWS:
            self._metrics.count("ct_shadow_dropped_total", len(ids))
            return
        task = asyncio.ensure_future(self._score_shadow(live, batch, ids))
        self._shadows.add(task)
        task.add_done_callback(self._shadows.discard)

    async def _score_shadow(self, live: Live, batch: _Batch, ids: Sequence[str]) -> None:
        await asyncio.sleep(0)
        again = _Batch(batch.request, batch.columns, batch.times, batch.keys, batch.unit, time.perf_counter())
        scored = await self._try(live, CANARY, again, "")
        records = _records(live, Assignment(CANARY), again, scored, [f"{name}/shadow" for name in ids])
        self._inbox.submit(
            [{**record, "kind": "shadow", "arm": "shadow", "of": of} for record, of in zip(records, ids, strict=True)]
        )


def _records(live: Live, place: Assignment, batch: _Batch, scored: _Scored, ids: Sequence[str]) -> list[Record]:
    spec, route = live.stable.predictor.spec, live.route
    latency = round((time.perf_counter() - batch.begun) * 1e3, 3)
    now, times = time.time_ns() // 1000, batch.times.tolist()
    scores = [None] * len(ids) if scored.scores is None else scored.scores.tolist()
    values = {name: column.tolist() for name, column in scored.features.items()}
    return [
        {
            "kind": "prediction",
            "id": name,
            "t": now,
            "event_time": times[at],
            "endpoint": route.endpoint,
            "version": scored.version,
            "arm": scored.arm,
            "assigned": place.arm,
            "forced": place.forced,
            "epoch": route.epoch,
            "weight": route.weight,
            "score": scores[at],
            "latency_ms": latency,
            "error": scored.error,
            "unit": batch.unit,
            "key": batch.keys[at],
            "context": {segment: batch.request.rows[at].get(segment) for segment in spec.segments},
            "request": batch.request.rows[at],
            "features": {column: found[at] for column, found in values.items()},  # orjson writes NaN as null
        }
        for at, name in enumerate(ids)
    ]
