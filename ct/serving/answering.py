"""The way of a request: assign, score, log, answer; a candidate's fallback and its shadow. Knows neither ASGI nor Ray, nor how versions come."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ct.data import predictions
from ct.data.columns import NO_TIME, from_rows
from ct.errors import CtError, InvalidRequest, NotFound, Unavailable
from ct.features.online import OnlineStore
from ct.features.transform import texts
from ct.roles import Columns, History
from ct.serving import answers, veil
from ct.serving.answers import Answer
from ct.serving.router import STABLE, Assignment, assign
from ct.serving.runtime import Predictor
from ct.serving.slots import Live, Slot, Slots
from ct.serving.telemetry import Telemetry

SHADOWS = 64
INLINE_ROWS = 32
"""Requests of more rows are scored in a thread, so that they do not hold up the others."""


@dataclass(frozen=True)
class _Scored:
    rows: Columns
    times: NDArray[np.int64]
    features: Mapping[str, NDArray[Any]]
    scores: NDArray[np.float64]


class Answering:
    """What one replica needs to answer. `ids` names predictions once a route is in force. All methods run on its event loop."""

    def __init__(
        self, endpoint: str, slots: Slots, *, telemetry: Telemetry, store: OnlineStore, inbox: predictions.Inbox, max_rows: int
    ) -> None:
        self.endpoint, self.slots, self.telemetry = endpoint, slots, telemetry
        self.ids: predictions.PredictionIds | None = None
        self._online, self._inbox, self._max_rows = store, inbox, max_rows
        self._shadows: set[asyncio.Task[None]] = set()

    async def predict(self, rows: Sequence[Mapping[str, Any]], *, unit: str = "", force: str = "", version: str = "") -> Answer:
        """Score rows on the arm their unit belongs to, log them durably, answer. A failing canary is replaced by stable within the request.

        `version` pins a loaded version; pinned and forced requests are logged but never judged. Raises InvalidRequest or Unavailable.
        """
        begun = time.perf_counter()
        live = self.slots.require()
        self._check_size(rows)
        rows = veil.of_table(live.personal, live.stable.predictor.spec.table, rows)
        asked = self._parse(live.stable.predictor, rows)
        unit = unit or self._keys(live.stable.predictor, asked)[0]
        where = Assignment(STABLE, forced=True) if version else self._assign(live, asked, unit, force)
        slot, arm, error = self._choose(live, where, version)
        scored, fault = await self._try(slot, rows, asked if slot is live.stable else None)
        if arm in live.circuits:
            live.circuits[arm].record(scored is not None)
        if scored is None and arm in live.candidates:
            slot, arm, error = live.stable, STABLE, fault
            scored, fault = await self._try(slot, rows, asked)
        if scored is None:
            await self._durable(self._inbox.submit(self._failed(live, where, unit, asked, fault, begun)))
            raise RuntimeError(fault)
        answer = self._answer(slot, arm, live, scored)
        took = (time.perf_counter() - begun) * 1000
        base = {"assigned": where.arm, "forced": where.forced, "error": error, "latency_ms": took, "unit": unit}
        await self._durable(self._inbox.submit(self._records(slot.predictor, live, answer, scored, base)))
        self.telemetry.predicted(answer.arm, answer.version, len(rows), time.perf_counter() - begun, bool(error))
        if where == Assignment(STABLE):
            for share, candidate in zip(live.route.candidates, live.candidates.values(), strict=True):
                if share.shadow:
                    self._shadow(live, candidate, rows, answer)
        return answer

    def _check_size(self, rows: Sequence[Any]) -> None:
        if not 1 <= len(rows) <= self._max_rows:
            raise InvalidRequest(f"{len(rows)} rows", f"1 to {self._max_rows} rows", "split the request", field="instances")

    def _parse(self, predictor: Predictor, rows: Sequence[Mapping[str, Any]]) -> Columns:
        columns = from_rows(rows, predictor.spec.request)
        times = columns[predictor.spec.time]
        if len(absent := np.flatnonzero(times == NO_TIME)):
            name = predictor.spec.time
            raise InvalidRequest(f"row {absent[0]} has no {name!r}", "the event time", "send it", field=f"{absent[0]}.{name}")
        return columns

    def _assign(self, live: Live, asked: Columns, unit: str, force: str) -> Assignment:
        """The arm of a request. All its rows go the way of its first: one request, one version."""
        context: dict[str, str | None] = {}
        if live.route.only or live.route.without:
            context = {name: texts(asked, name)[0] for name in {*live.route.only, *live.route.without} if name in asked}
        return assign(live.route, unit, force, context)

    def _choose(self, live: Live, where: Assignment, version: str) -> tuple[Slot, str, str]:
        if version:
            slot = self.slots.loaded.get(version)
            if slot is None:
                raise NotFound(
                    f"version {version!r} is not loaded", f"one of {sorted(self.slots.loaded)}", "leave the version out"
                )
            return slot, next((arm for arm, held in live.candidates.items() if held is slot), STABLE), ""
        if where.arm in live.circuits and live.circuits[where.arm].open:
            return live.stable, STABLE, "circuit open"
        return live.slot(where.arm), where.arm, ""

    async def _try(self, slot: Slot, rows: Sequence[Mapping[str, Any]], asked: Columns | None) -> tuple[_Scored | None, str]:
        """Score; a version's failure of any kind is returned as text. Many rows are scored beside the event loop."""
        with slot.using() as predictor:
            try:
                columns = self._parse(predictor, rows) if asked is None else asked
            except Exception as error:
                return None, _said(error)
            history = await self._history(predictor, columns)  # what fails here is no fault of the version
            try:
                if len(rows) <= INLINE_ROWS:
                    return self._score(predictor, columns, history), ""
                return await asyncio.to_thread(self._score, predictor, columns, history), ""
            except Exception as error:
                return None, _said(error)

    async def _history(self, predictor: Predictor, columns: Columns) -> History:
        """What is known of the rows' entities; a server is waited for beside the event loop. Raises Unavailable."""
        look = partial(self._online.history, columns, predictor.lookups)
        inline = self._online.near and len(columns[predictor.spec.time]) <= INLINE_ROWS
        return look() if inline else await asyncio.to_thread(look)

    def _score(self, predictor: Predictor, columns: Columns, history: History) -> _Scored:
        times = columns[predictor.spec.time]
        scores, features = predictor.score(columns, times, history)
        if not np.isfinite(scores).all():
            raise Unavailable("the model gave a score that is no number", "finite scores", "roll the version back")
        return _Scored(columns, times, features, scores)

    def _answer(self, slot: Slot, arm: str, live: Live, scored: _Scored) -> Answer:
        assert self.ids is not None, "a live route has set the ids"
        ids = tuple(self.ids.new() for _ in scored.scores)
        model = slot.predictor
        return Answer(ids, scored.scores, model.objective, model.threshold, model.version, arm, live.route.epoch)

    def _keys(self, predictor: Predictor, columns: Columns) -> list[str]:
        return ["|".join(map(str, key)) for key in zip(*(columns[name] for name in predictor.spec.key), strict=True)]

    def _records(
        self, predictor: Predictor, live: Live, answer: Answer, scored: _Scored, base: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        now, spec = _now(), predictor.spec
        common = {
            "kind": "prediction",
            "t": now,
            "endpoint": self.endpoint,
            "version": answer.version,
            "arm": answer.arm,
            "epoch": answer.epoch,
            "weight": live.route.weight,
            **base,
        }
        told = answers.logged(answer.objective, answer.scores)
        keys, segments = self._keys(predictor, scored.rows), {name: texts(scored.rows, name) for name in spec.segments}
        return [
            {
                **common,
                "id": answer.ids[at],
                "event_time": int(scored.times[at]),
                **told[at],
                "key": keys[at],
                "context": {name: values[at] for name, values in segments.items()},
                "request": {name: _plain(values[at]) for name, values in scored.rows.items()},
                "features": {name: _plain(values[at]) for name, values in scored.features.items()},
            }
            for at in range(len(keys))
        ]

    def _failed(
        self, live: Live, where: Assignment, unit: str, asked: Columns, fault: str, begun: float
    ) -> list[dict[str, Any]]:
        """The records of rows that nobody could score: they count as errors of the arm they were assigned to."""
        assert self.ids is not None, "a live route has set the ids"
        predictor, took = live.stable.predictor, (time.perf_counter() - begun) * 1000
        none = np.full((len(asked[predictor.spec.time]), predictor.objective.outputs), np.nan)
        scored = _Scored(asked, asked[predictor.spec.time], {}, none if none.shape[1] > 1 else none[:, 0])
        answer = self._answer(live.stable, STABLE, live, scored)
        base = {"assigned": where.arm, "forced": where.forced, "error": fault, "latency_ms": took, "unit": unit}
        records = self._records(predictor, live, answer, scored, base)
        return [{**record, "score": None, "scores": {}} for record in records]

    async def _durable(self, done: Future[None]) -> None:
        await asyncio.wrap_future(done)

    def _shadow(self, live: Live, slot: Slot, rows: Sequence[Mapping[str, Any]], answer: Answer) -> None:
        """Score the same rows on the canary after the answer has gone, unless too many are waiting: then the copy is dropped."""
        if len(self._shadows) >= SHADOWS:
            self.telemetry.shadow_dropped()
            return
        task = asyncio.create_task(self._score_shadow(live, slot, rows, answer))
        self._shadows.add(task)
        task.add_done_callback(self._shadows.discard)

    async def _score_shadow(self, live: Live, slot: Slot, rows: Sequence[Mapping[str, Any]], answer: Answer) -> None:
        await asyncio.sleep(0)
        begun = time.perf_counter()
        try:
            scored, fault = await self._try(slot, rows, None)
        except CtError as error:
            scored, fault = None, _said(error)
        took = (time.perf_counter() - begun) * 1000
        told = answers.logged(slot.predictor.objective, scored.scores) if scored else []
        common = {
            "kind": "shadow",
            "t": _now(),
            "endpoint": self.endpoint,
            "version": slot.predictor.version,
            "arm": "shadow",
            "epoch": live.route.epoch,
        }
        records = [
            {
                **common,
                "id": f"{name}.{slot.predictor.version}",
                "of": name,
                "weight": live.route.weight,
                "assigned": "shadow",
                "forced": False,
                "error": fault,
                "latency_ms": took,
                "event_time": int(scored.times[at]) if scored else 0,
                **(told[at] if scored else {"score": None, "scores": {}}),
                "context": {},
                "request": {},
                "features": {},
                "unit": "",
                "key": "",
            }
            for at, name in enumerate(answer.ids)
        ]
        try:
            await self._durable(self._inbox.submit(records))
        except CtError as error:
            self.telemetry.fault(type(error).__name__)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, np.integer):
        return None if int(value) == NO_TIME else int(value)
    return None if math.isnan(value) else float(value)


def _now() -> int:
    return time.time_ns() // 1000
