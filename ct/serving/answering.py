"""The way of a request: assign, score, log, answer; a candidate's fallback and its shadow. Knows neither ASGI nor Ray, nor how versions come.

Requests of one row that come while others are read, or while the pass before is being logged, are scored in one pass and logged by one commit.
Nobody waits for company.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, Protocol

import numpy as np

from ct.data import predictions
from ct.data.columns import column_of, from_row, from_rows
from ct.errors import CtError, InvalidRequest, NotFound
from ct.features.online import OnlineStore
from ct.features.transform import texts
from ct.serving import logged, passes, veil
from ct.serving.answers import Answer
from ct.serving.lanes import Lane
from ct.serving.passes import INLINE_ROWS, Outcome, Request, Scored
from ct.serving.router import STABLE, Assignment, assign
from ct.serving.slots import PROVEN, Live, Slot, Slots
from ct.serving.telemetry import Telemetry

SHADOWS = 64
"""So many rows at once may wait for one shadow's scores; further ones are dropped and counted."""
CANDIDATE_SECONDS, SHADOW_SECONDS = 1.0, 5.0
"""A candidate that takes longer has failed: stable answers. Every 1,000 rows of a request give a second more."""
FAR_SECONDS = 10.0
"""So long a stable version that another application holds may take."""
_THREADS = 4


class Told(Protocol):
    """The feature flags that a request obeys."""

    @property
    def canary(self) -> bool:
        """May candidates answer?"""
        ...

    @property
    def shadow(self) -> bool:
        """May shadows score?"""
        ...

    @property
    def log(self) -> str:
        """ "durable": records are on disk before the answer; "fast": soon after it."""
        ...

    @property
    def batching(self) -> bool:
        """May requests be scored together?"""
        ...


class Answering:
    """What one replica needs to answer. `ids` names predictions once a route is in force. All methods run on its event loop."""

    def __init__(
        self, endpoint: str, slots: Slots, *, telemetry: Telemetry, store: OnlineStore, inbox: predictions.Inbox, max_rows: int
    ) -> None:
        self.endpoint, self.slots, self.telemetry = endpoint, slots, telemetry
        self.ids: predictions.PredictionIds | None = None
        self.flags: Told | None = None
        self._online, self._inbox, self._max_rows = store, inbox, max_rows
        self._waiting: dict[int, tuple[Slot, list[Request]]] = {}
        self._writing = 0
        self._lanes: dict[tuple[int, str], tuple[Slot, Lane]] = {}
        self._shadowed: dict[int, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def predict(self, rows: Sequence[Mapping[str, Any]], *, unit: str = "", force: str = "", version: str = "") -> Answer:
        """Score rows on the arm their unit belongs to, log them durably, answer. A failing canary is replaced by stable within the request.

        `version` pins a loaded version, which answers or nobody does. Pinned and forced requests are logged, but neither judged nor counted by a
        circuit. Raises InvalidRequest or Unavailable, CtError where a pinned version fails.
        """
        begun = time.perf_counter()
        live = self.slots.require()
        if not 1 <= len(rows) <= self._max_rows:
            raise InvalidRequest(f"{len(rows)} rows", f"1 to {self._max_rows} rows", "split the request", field="instances")
        predictor = live.stable.predictor
        spec = predictor.spec
        rows = veil.of_table(live.personal, spec.table, rows)
        read = columns = None
        if len(rows) == 1:
            read = from_row(rows[0], spec.request, times=(spec.time,))
            unit = unit or logged.key(read, predictor)
        else:
            columns = from_rows(rows, spec.request, times=(spec.time,))
            unit = unit or logged.keys(predictor, columns)[0]
        off = bool(version) or (self.flags is not None and not self.flags.canary)
        where = Assignment(STABLE, forced=True) if off else assign(live.route, unit, force, _context(live, read, columns))
        slot, arm, error = self._choose(live, where, version)
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        request = Request(live, rows, read, columns, unit, where, slot, arm, error, begun, answered, pinned=bool(version))
        self._put(request)
        answer = await answered
        took, fell_back = time.perf_counter() - begun, where.arm if request.error else ""
        self.telemetry.predicted(answer.arm, answer.version, len(rows), took, fell_back)
        return answer

    def _choose(self, live: Live, where: Assignment, version: str) -> tuple[Slot, str, str]:
        if version:
            slot = self.slots.loaded.get(version)
            if slot is None:
                raise NotFound(
                    f"version {version!r} is not loaded", f"one of {sorted(self.slots.loaded)}", "leave the version out"
                )
            # Stable's own name first: it stands in for a candidate that is not here.
            arms = {} if slot is live.stable else live.candidates
            return slot, next((arm for arm, held in arms.items() if held is slot), STABLE), ""
        if where.arm in live.circuits and live.circuits[where.arm].open:
            return live.stable, STABLE, "circuit open"
        return live.slot(where.arm), where.arm, ""

    # -- passes

    def _put(self, request: Request) -> None:
        """Have a request scored: alone, or with those that come until the loop turns again."""
        slot = request.slot
        slot.in_flight += 1
        batching = self.flags is None or self.flags.batching
        if request.read is None or not batching or not slot.predictor.steady:
            self._pass(slot, [request])
            return
        _, waiting = self._waiting.setdefault(id(slot), (slot, []))
        waiting.append(request)
        if len(waiting) == 1 and not self._writing:
            asyncio.get_running_loop().call_soon(self._turn, id(slot))

    def _turn(self, name: int, *, now: bool = False) -> None:
        """Begin a pass with what waits for a slot. While records are being written more may come, until one writing has ended."""
        if (self._writing and not now) or name not in self._waiting:
            return
        slot, waiting = self._waiting.pop(name)
        for at in range(0, len(waiting), INLINE_ROWS):
            self._pass(slot, waiting[at : at + INLINE_ROWS])

    def _pass(self, slot: Slot, requests: list[Request]) -> None:
        """Score requests of one slot. Stable's few rows are scored here; what is many, far or not yet trusted, beside the event loop."""
        work, rows = partial(passes.run, slot.predictor, requests, self._online), sum(len(request.rows) for request in requests)
        self.telemetry.batched(rows)
        proven = slot.predictor.near and not slot.predictor.own_code and slot.proven >= PROVEN
        trusted = slot is requests[0].live.stable or proven
        if trusted and slot.predictor.near and self._online.near and rows <= INLINE_ROWS:
            begun, outcomes = time.perf_counter(), work()
            if not isinstance(outcomes[0], tuple) or time.perf_counter() - begun > CANDIDATE_SECONDS / 4:
                slot.proven = 0
            self._told(slot, requests, outcomes)
            return
        self._begin(self._beside(slot, requests, work, trusted))

    async def _beside(self, slot: Slot, requests: list[Request], work: Callable[[], list[Outcome]], trusted: bool) -> None:
        seconds = CANDIDATE_SECONDS + sum(len(request.rows) for request in requests) / 1000
        try:
            if not slot.predictor.near:  # awaited: a thread that waits for this loop may be the one that the loop needs
                far = FAR_SECONDS if trusted else seconds
                outcomes = await passes.ask(slot.predictor, requests, self._online, far, again=trusted)
            elif trusted:
                outcomes = await asyncio.to_thread(work)
            else:
                outcomes = await self._lane(slot, "candidate", INLINE_ROWS).call(work, seconds)
        except Exception as error:
            outcomes = [passes.said(error)] * len(requests)
        slot.proven = slot.proven + 1 if all(isinstance(outcome, tuple) for outcome in outcomes) else 0
        self._told(slot, requests, outcomes)

    def _begin(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _lane(self, slot: Slot, kind: str, waiting: int) -> Lane:
        found = self._lanes.get((id(slot), kind))
        if found is None or found[0] is not slot:
            kept = set(map(id, self.slots.loaded.values()))
            self._lanes = {name: held for name, held in self._lanes.items() if name[0] in kept}
            lane = Lane(f"{kind} {slot.predictor.version}", threads=_THREADS, waiting=waiting)
            found = self._lanes[id(slot), kind] = slot, lane
        return found[1]

    def _told(self, slot: Slot, requests: list[Request], outcomes: list[Outcome]) -> None:
        """Go on with each request of a pass: log and answer it, or give it to stable, or say what went wrong."""
        slot.in_flight -= len(requests)
        done: dict[int, tuple[Scored, list[Request]]] = {}
        for request, outcome in zip(requests, outcomes, strict=True):
            live, arm = request.live, request.arm
            if isinstance(outcome, Exception):
                _fail(request, outcome)
                continue
            if arm in live.circuits and not request.where.forced:  # a person who tries the canary out closes it to nobody
                live.circuits[arm].record(not isinstance(outcome, str))
            if not isinstance(outcome, str):
                done.setdefault(id(outcome[0]), (outcome[0], []))[1].append(request)
            elif arm in live.candidates and not request.pinned:
                request.slot, request.arm, request.error = live.stable, STABLE, outcome
                self._put(request)
            else:
                try:
                    self._give_up(request, outcome)
                except Exception as error:  # the others of this pass are answered nevertheless
                    _fail(request, error)
        for scored, some in done.values():
            try:
                self._keep(slot, scored, some, self._answers(slot, scored, some))
            except Exception as error:
                for request in some:
                    _fail(request, error)

    def _answers(self, slot: Slot, scored: Scored, requests: list[Request]) -> list[Answer]:
        assert self.ids is not None, "a live route has set the ids"
        made, model, at = [], slot.predictor, 0
        for request in requests:
            count = len(request.rows)
            ids = tuple(self.ids.new() for _ in range(count))
            scores = scored.scores[at : at + count]
            route = request.live.route
            made.append(Answer(ids, scores, model.objective, model.threshold, model.version, request.arm, route.epoch))
            at += count
        return made

    def _keep(self, slot: Slot, scored: Scored, requests: list[Request], given: list[Answer]) -> None:
        """Log a pass, then answer its requests; then its shadows."""
        pairs = list(zip(requests, given, strict=True))
        records = logged.predictions(self.endpoint, slot.predictor, pairs, scored)
        self._log(records, partial(self._answer, pairs))

    def _log(self, records: list[dict[str, Any]], then: Callable[[BaseException | None], None]) -> None:
        """Log records, then say how that went: once they are on disk, or at once where the flags say "fast"."""
        if self.flags is not None and self.flags.log == "fast":
            self._inbox.soon(records).add_done_callback(self._late)
            then(None)
            return
        written = self._inbox.keep(records)
        if written.done():
            then(written.exception())
            return
        loop = asyncio.get_running_loop()
        self._writing += 1
        written.add_done_callback(lambda _: loop.call_soon_threadsafe(self._written, written, then))

    def _written(self, written: Future[None], then: Callable[[BaseException | None], None]) -> None:
        self._writing -= 1
        try:
            then(written.exception())
        finally:
            # After each writing, not after all: others may write one after the other and never leave a gap.
            for name in list(self._waiting):
                self._turn(name, now=True)

    def _late(self, written: Future[None]) -> None:
        if (error := written.exception()) is not None:
            self.telemetry.log_fault(type(error).__name__)

    def _answer(self, pairs: Sequence[tuple[Request, Answer]], error: BaseException | None) -> None:
        for request, answer in pairs:
            if request.answered.done():
                continue  # the client has gone
            if error is None:
                request.answered.set_result(answer)
            else:
                request.answered.set_exception(error)
        if error is None:
            durable = self.flags is None or self.flags.log != "fast"
            self.telemetry.kept(sum(len(answer.ids) for _, answer in pairs), durable=durable)
            try:
                self._shadow(pairs)
            except Exception as fault:  # a shadow's trouble is nobody's but its own
                self.telemetry.fault(type(fault).__name__)
        else:
            self.telemetry.log_fault(type(error).__name__)

    def _give_up(self, request: Request, fault: str) -> None:
        """Log that nobody could score a request, or the version that it is pinned to could not, then say so."""
        assert self.ids is not None, "a live route has set the ids"
        version = request.slot.predictor.version
        self.telemetry.failed(request.arm, version)
        stable = request.live.stable.predictor
        count, outputs = len(request.rows), stable.objective.outputs
        none = np.full((count, outputs) if outputs > 1 else count, np.nan)
        ids, epoch = tuple(self.ids.new() for _ in range(count)), request.live.route.epoch
        answer = Answer(ids, none, stable.objective, stable.threshold, version, request.arm, epoch)
        asked = request.columns
        if asked is None:
            assert request.read is not None, "one row is read alone"
            asked = {name: column_of([request.read[name]], kind) for name, kind in stable.spec.request.items()}
        request.error = fault
        records = logged.failed(self.endpoint, request, answer, asked)
        told: Exception = RuntimeError(fault)
        if request.pinned:
            told = CtError(f"{version} could not score this request", "an answer of the version it is pinned to", "pin none")
        self._log(records, lambda error: _fail(request, error or told))

    # -- shadows

    def _shadow(self, pairs: Sequence[tuple[Request, Answer]]) -> None:
        """Have the shadows score what stable has answered, unless too much is waiting there: then the copies are dropped and counted."""
        if self.flags is not None and not self.flags.shadow:
            return
        by_slot: dict[int, tuple[Slot, list[tuple[Request, Answer]]]] = {}
        for request, answer in pairs:
            live = request.live
            if request.where != Assignment(STABLE):
                continue
            for share, slot in zip(live.route.candidates, live.candidates.values(), strict=True):
                if not share.shadow:
                    continue
                waiting = self._shadowed.get(id(slot), 0)
                if self._lane(slot, "shadow", SHADOWS).full or (waiting and waiting + len(answer.ids) > SHADOWS):
                    self.telemetry.shadow_dropped()
                    continue
                self._shadowed[id(slot)] = waiting + len(answer.ids)
                by_slot.setdefault(id(slot), (slot, []))[1].append((request, answer))
        for slot, some in by_slot.values():
            together = slot.predictor.steady and all(request.read is not None for request, _ in some)
            for part in [some] if together else [[one] for one in some]:
                self._begin(self._score_shadow(slot, part))

    async def _score_shadow(self, slot: Slot, pairs: list[tuple[Request, Answer]]) -> None:
        slot.in_flight += len(pairs)
        begun, requests = time.perf_counter(), [request for request, _ in pairs]
        outcomes: list[Outcome]
        try:
            if slot.predictor.near:
                work = partial(passes.run, slot.predictor, requests, self._online)
                outcomes = list(await self._lane(slot, "shadow", SHADOWS).call(work, SHADOW_SECONDS))
            else:
                outcomes = await passes.ask(slot.predictor, requests, self._online, SHADOW_SECONDS)
        except Exception as error:
            outcomes = [passes.said(error)] * len(pairs)
        finally:
            slot.in_flight -= len(pairs)
            left = self._shadowed.get(id(slot), 0) - sum(len(answer.ids) for _, answer in pairs)
            self._shadowed.pop(id(slot), None)
            if left > 0:
                self._shadowed[id(slot)] = left
        told = [
            (request, answer, passes.said(outcome) if isinstance(outcome, Exception) else outcome)
            for (request, answer), outcome in zip(pairs, outcomes, strict=True)
        ]
        records = logged.shadows(self.endpoint, slot.predictor, told, time.perf_counter() - begun)
        self._inbox.submit(records).add_done_callback(self._late)


def _context(live: Live, read: Mapping[str, Any] | None, columns: Mapping[str, Any] | None) -> dict[str, str | None]:
    """The segments of a request that the route asks for. All its rows go the way of its first: one request, one version."""
    route = live.route
    if not (route.only or route.without):
        return {}
    kinds, found = live.stable.predictor.spec.request, dict[str, str | None]()
    for name in {*route.only, *route.without} & kinds.keys():
        values = column_of([read[name]], kinds[name]) if read is not None else (columns or {})[name]
        found[name] = texts({name: values}, name)[0]
    return found


def _fail(request: Request, error: BaseException) -> None:
    if not request.answered.done():
        request.answered.set_exception(error)
