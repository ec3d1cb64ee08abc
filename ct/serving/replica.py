"""One replica's work behind the HTTP: assign, score, log, answer; labels and fresh rows; stage and activate. Knows neither ASGI nor Ray."""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ct.data import labels, personal, predictions
from ct.data.columns import NO_TIME, from_rows
from ct.errors import Corrupt, CtError, InvalidRequest, NotFound, Unavailable
from ct.features import online
from ct.features.transform import texts
from ct.registry import routes
from ct.registry.routes import Route
from ct.roles import Columns, History
from ct.serving import answers
from ct.serving.answers import Answer
from ct.serving.router import CANARY, STABLE, Assignment, assign
from ct.serving.runtime import Predictor
from ct.serving.slots import Live, Slot, Slots
from ct.serving.telemetry import Telemetry
from ct.serving.veil import Rows, veiled
from ct.settings import Settings
from ct.store.artifacts import Artifacts
from ct.store.journal import Journal, New
from ct.store.signing import Keys

POLL_SECONDS = 1.0
SHADOWS = 64
INLINE_ROWS = 32
"""Requests of more rows are scored in a thread, so that they do not hold up the others."""


@dataclass(frozen=True)
class _Scored:
    rows: Columns
    times: NDArray[np.int64]
    features: Mapping[str, NDArray[Any]]
    scores: NDArray[np.float64]


class Replica:
    """The versions, the prediction log and the online store of one replica. All methods run on its event loop."""

    def __init__(self, settings: Settings, endpoint: str) -> None:
        self.settings, self.endpoint = settings, endpoint
        self.name = secrets.token_hex(4)
        self.slots = Slots(Artifacts(settings.place("artifacts"), Keys(settings.trusted_keys)))
        self.telemetry = Telemetry(endpoint)
        self._journal = Journal(settings.database)
        self._online = online.opened(settings)
        self._inbox = predictions.Inbox(settings.inbox, self.name)
        self._ids: predictions.PredictionIds | None = None
        self._shadows: set[asyncio.Task[None]] = set()
        self.converge()

    # -- control

    def converge(self) -> int:
        """Bring this replica to the journal's route, if it is newer. Returns the epoch in force."""
        if self._journal.version(routes.stream(self.endpoint)) > self.slots.epoch:
            route = routes.current(self._journal, self.endpoint)
            if route is not None:
                for arm in route.arms:
                    self.stage(arm.version, arm.manifest)
                self.activate(route)
        return self.slots.epoch

    def stage(self, version: str, manifest: str) -> None:
        """Load a version beside the others, see `Slots.stage`. Files that are refused are journaled, once for each manifest."""
        try:
            self.slots.stage(version, manifest)
        except Corrupt as error:
            try:
                self._refused(version, manifest, error)
            except CtError as fault:
                self.telemetry.fault(type(fault).__name__)
            raise

    def _refused(self, version: str, manifest: str, error: Corrupt) -> None:
        stream = f"audit/{self.endpoint}"
        said = {"version": version, "manifest": manifest, "error": type(error).__name__, "found": error.found}
        if not any(event.data["manifest"] == manifest for event in self._journal.read(stream, types=["ArtifactRefused"])):
            self._journal.append(stream, [New("ArtifactRefused", said | {"replica": self.name})])

    def activate(self, route: Route) -> int:
        """Put a route in force whose versions are staged. Returns the epoch in force."""
        if self._ids is None:
            self._ids = predictions.PredictionIds(route.key, self.name)
        return self.slots.activate(route)

    async def keep_converging(self) -> None:
        """Poll the journal for a route that a broadcast did not bring. A journal that does not answer changes nothing."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            try:
                version = await asyncio.to_thread(self._journal.version, routes.stream(self.endpoint))
                if version > self.slots.epoch:
                    route = await asyncio.to_thread(routes.current, self._journal, self.endpoint)
                    if route is not None:
                        for arm in route.arms:
                            await asyncio.to_thread(self.stage, arm.version, arm.manifest)
                        self.activate(route)
                self.slots.drain()
            except Exception as error:  # the loop is a repair and must outlive any fault; what it met is shown by /metrics
                self.telemetry.fault(type(error).__name__)

    async def metrics(self) -> str:
        """Counters, what is in force, and how new what the online store holds is, in the Prometheus text format."""
        try:
            fresh = self._online.freshness() if self._online.near else await asyncio.to_thread(self._online.freshness)
        except CtError as error:
            self.telemetry.fault(type(error).__name__)
            fresh = ()
        state, live = self.state(), self.slots.live
        given = {name: state[name] for name in ("epoch", "in_flight", "circuit_open")}
        return self.telemetry.text(weight=live.route.weight if live else 0, freshness=fresh, **given)

    def state(self) -> dict[str, Any]:
        """What this replica holds."""
        live = self.slots.live
        return {
            "replica": self.name,
            "epoch": self.slots.epoch,
            "versions": sorted(self.slots.loaded),
            "in_flight": {version: slot.in_flight for version, slot in self.slots.loaded.items()},
            "circuit_open": bool(live and live.circuit.open),
        }

    # -- data

    async def predict(self, rows: Sequence[Mapping[str, Any]], *, unit: str = "", force: str = "", version: str = "") -> Answer:
        """Score rows on the arm their unit belongs to, log them durably, answer. A failing canary is replaced by stable within the request.

        `version` pins a loaded version; pinned and forced requests are logged but never judged. Raises InvalidRequest or Unavailable.
        """
        begun = time.perf_counter()
        live = self.slots.require()
        self._check_size(rows)
        rows = self._veiled(live, live.stable.predictor.spec.table, rows)
        asked = self._parse(live.stable.predictor, rows)
        unit = unit or self._keys(live.stable.predictor, asked)[0]
        where = Assignment(STABLE, forced=True) if version else assign(live.route, unit, force)
        slot, arm, error = self._choose(live, where, version)
        scored, fault = await self._try(slot, rows, asked if slot is live.stable else None)
        if arm == CANARY:
            live.circuit.record(scored is not None)
        if scored is None and arm == CANARY:
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
        if live.route.shadow and live.canary is not None and where == Assignment(STABLE):
            self._shadow(live, live.canary, rows, answer)
        return answer

    async def label(self, entries: object) -> int:
        """Log posted ground truth durably. Returns the number of labels. Raises InvalidRequest."""
        live = self.slots.require()
        assert self._ids is not None, "a live route has set the ids"
        stable = live.stable.predictor
        above = stable.spec.label["above"]
        records = labels.read_labels(entries, ids=self._ids, objective=stable.objective, above=above, now_us=_now())
        await self._durable(self._inbox.submit(records))
        self.telemetry.labelled(len(records))
        return len(records)

    async def observe(self, table: str, rows: object) -> int:
        """Store fresh rows of a source table for the features. Returns the new entries. Raises InvalidRequest or NotFound."""
        live = self.slots.require()
        spec = live.stable.predictor.spec
        if table not in spec.observe:
            raise NotFound(f"no feature reads a table {table!r}", f"one of {sorted(spec.observe)}", "check the path")
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise InvalidRequest("rows is no list of objects", "a list of rows", "send {'rows': [{...}]}", field="rows")
        known, rows = spec.observe[table], self._veiled(live, table, rows)
        for at, row in enumerate(rows):
            if unknown := sorted(set(row) - set(known)):
                raise InvalidRequest(
                    f"row {at} has the unknown field {unknown[0]!r}",
                    f"fields {sorted(known)}",
                    "leave it out",
                    field=f"{at}.{unknown[0]}",
                )
        lookups = tuple(dict.fromkeys(found for slot in self.slots.loaded.values() for found in slot.predictor.lookups))
        needed = dict.fromkeys(name for lookup in lookups if lookup.table == table for name in lookup.reads)
        kinds = {name: known[name] for name in needed}
        columns = from_rows([{name: row[name] for name in kinds if name in row} for row in rows], kinds)
        return await asyncio.to_thread(self._online.push, lookups, table, columns) if rows and kinds else 0

    def metadata(self) -> dict[str, Any]:
        """The model's inputs and outputs, in the words of the Open Inference Protocol v2."""
        spec = self.slots.require().stable.predictor.spec
        types = {"number": "FP64", "text": "BYTES", "time": "BYTES"}
        return {
            "name": self.endpoint,
            "versions": sorted(self.slots.loaded),
            "platform": "onnxruntime",
            "inputs": [{"name": name, "datatype": types[kind], "shape": [-1]} for name, kind in spec.request.items()],
            "outputs": answers.outputs(self.slots.require().stable.predictor.objective),
        }

    # -- within

    def _veiled(self, live: Live, table: str, rows: Rows) -> Rows:
        """The rows without raw personal values: nothing else in this process sees these."""
        kinds = live.personal.get(table)
        return veiled(rows, kinds, personal.secret() if "keyed" in kinds.values() else b"") if kinds else rows

    def _check_size(self, rows: Sequence[Any]) -> None:
        if not 1 <= len(rows) <= self.settings.max_rows:
            raise InvalidRequest(
                f"{len(rows)} rows", f"1 to {self.settings.max_rows} rows", "split the request", field="instances"
            )

    def _parse(self, predictor: Predictor, rows: Sequence[Mapping[str, Any]]) -> Columns:
        columns = from_rows(rows, predictor.spec.request)
        times = columns[predictor.spec.time]
        if len(absent := np.flatnonzero(times == NO_TIME)):
            name = predictor.spec.time
            raise InvalidRequest(f"row {absent[0]} has no {name!r}", "the event time", "send it", field=f"{absent[0]}.{name}")
        return columns

    def _choose(self, live: Live, where: Assignment, version: str) -> tuple[Slot, str, str]:
        if version:
            slot = self.slots.loaded.get(version)
            if slot is None:
                raise NotFound(
                    f"version {version!r} is not loaded", f"one of {sorted(self.slots.loaded)}", "leave the version out"
                )
            return slot, STABLE if slot is live.stable else CANARY, ""
        if where.arm == CANARY and live.circuit.open:
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
        assert self._ids is not None, "a live route has set the ids"
        ids = tuple(self._ids.new() for _ in scored.scores)
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
        assert self._ids is not None, "a live route has set the ids"
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
                "id": f"{name}.shadow",
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
