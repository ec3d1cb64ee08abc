"""One pass over requests that wait for the same slot: columns, history, features and scores for all their rows at once.

A pass gives each request what it would have got alone: a fault makes it go request by request. `run` is for a version in this process and
knows no event loop; `ask` is for one that another application holds, and no thread waits for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ct.data.columns import column_of, from_row, from_rows
from ct.errors import Unavailable
from ct.features.online import OnlineStore
from ct.roles import Columns, History
from ct.serving.answers import Answer
from ct.serving.router import Assignment
from ct.serving.runtime import Predictor
from ct.serving.slots import Live, Slot


@dataclass(eq=False, slots=True)
class Request:
    """One request on its way: its rows [n], veiled; `read` is the only row read by stable's declaration, `columns` are several so.

    `slot` and `arm` are where it goes now, `where` is where it belongs; `error` is what its first arm failed with. `begun` is in perf_counter
    seconds. `answered` is done when its records are kept. A `pinned` one asks for one version and takes no other's answer.
    """

    live: Live
    rows: Sequence[Mapping[str, Any]]
    read: Mapping[str, Any] | None
    columns: Columns | None
    unit: str
    where: Assignment
    slot: Slot
    arm: str
    error: str
    begun: float
    answered: asyncio.Future[Answer]
    pinned: bool = False


@dataclass(frozen=True, slots=True)
class Scored:
    """What a pass made: m rows with their times, features and scores [m] or [m, k]; `read` are the rows where each was read alone."""

    rows: Columns
    times: NDArray[np.int64]
    features: Mapping[str, NDArray[Any]]
    scores: NDArray[np.float64]
    read: Sequence[Mapping[str, Any]] | None


INLINE_ROWS = 32
"""So many rows are read and scored on the event loop in one go. More are a thread's work, so that they do not hold up other requests."""
Outcome = tuple[Scored, int] | str | Exception
"""A pass and the place of the request's first row in it; what the version failed with; or what is no fault of the version."""


def run(predictor: Predictor, requests: Sequence[Request], store: OnlineStore) -> list[Outcome]:
    """The outcome of each request. Only requests of one row may come together."""
    if len(requests) > 1:
        try:
            scored = _score(predictor, [_read(predictor, request) for request in requests], store)
        except Exception:  # one row's fault must not hit another's request: each alone is told its own
            return [outcome for request in requests for outcome in run(predictor, [request], store)]
        return [(scored, at) for at in range(len(requests))]
    try:
        given = _given(predictor, requests[0])
    except Exception as error:
        return [said(error)]
    try:
        return [(_score(predictor, given, store), 0)]
    except _Elsewhere as error:
        return [error.fault]
    except Exception as error:
        return [said(error)]


async def ask(
    predictor: Predictor, requests: Sequence[Request], store: OnlineStore, seconds: float, *, again: bool = False
) -> list[Outcome]:
    """The outcome of each request, as `run` tells it, after `seconds` at most. Called on the event loop that `Predictor.ask` belongs to.

    With `again` what a process has taken with it as it died is asked once more.
    """
    try:
        async with asyncio.timeout(seconds):
            return await _asked(predictor, requests, store, again)
    except TimeoutError:
        return [f"Unavailable: {predictor.version} took over {seconds:g} s"] * len(requests)


async def _asked(predictor: Predictor, requests: Sequence[Request], store: OnlineStore, again: bool) -> list[Outcome]:
    fault: Outcome
    try:
        read = partial(_looked_up, predictor, requests, store)
        quick = store.near and sum(len(request.rows) for request in requests) <= INLINE_ROWS
        given, rows, history = read() if quick else await asyncio.to_thread(read)
        times = rows[predictor.spec.time]
        try:
            try:
                scores, features = await predictor.ask(rows, times, history)
            except Gone:
                if not again:
                    raise
                scores, features = await predictor.ask(rows, times, history)
        except Unavailable as error:  # nobody's row is to blame, and alone none would fare better
            return [said(error)] * len(requests)
        scored = _whole(Scored(rows, times, features, scores, given))
        return [(scored, at) for at in range(len(requests))]
    except _Elsewhere as error:
        fault = error.fault
    except Exception as error:
        fault = said(error)
    if len(requests) == 1:
        return [fault]
    alone = await asyncio.gather(*(_asked(predictor, [request], store, again) for request in requests))
    return [outcome for some in alone for outcome in some]


class Gone(Unavailable):
    """The process that was asked is gone; another one may be asked."""


class Failed(Exception):
    """What a version that runs elsewhere failed with there, as the log keeps it."""


def said(error: Exception) -> str:
    """An error as the log keeps it."""
    return str(error) if isinstance(error, Failed) else f"{type(error).__name__}: {error}"[:200]


_Known = tuple[Sequence[Mapping[str, Any]] | None, Columns, History]
"""Rows where each was read alone, their columns, and what is known of them."""


class _Elsewhere(Exception):
    """The store failed: no fault of the version."""

    def __init__(self, fault: Exception) -> None:
        super().__init__(str(fault))
        self.fault = fault


def _read(predictor: Predictor, request: Request) -> Mapping[str, Any]:
    """A request's only row as this version declares it. Raises InvalidRequest."""
    declared = request.live.stable.predictor
    if predictor is declared or predictor.spec.request == declared.spec.request:
        assert request.read is not None, "only requests of one row come together"
        return request.read
    return from_row(request.rows[0], predictor.spec.request, times=(predictor.spec.time,))


def _given(predictor: Predictor, request: Request) -> list[Mapping[str, Any]] | Columns:
    if request.columns is None:
        return [_read(predictor, request)]
    if predictor.spec.request == request.live.stable.predictor.spec.request:
        return request.columns
    return from_rows(request.rows, predictor.spec.request, times=(predictor.spec.time,))


def _score(predictor: Predictor, given: Sequence[Mapping[str, Any]] | Columns, store: OnlineStore) -> Scored:
    read, rows, history = _known(predictor, given, store)
    times = rows[predictor.spec.time]
    scores, features = predictor.score(rows, times, history)
    return _whole(Scored(rows, times, features, scores, read))


def _looked_up(predictor: Predictor, requests: Sequence[Request], store: OnlineStore) -> _Known:
    one = len(requests) == 1
    return _known(predictor, _given(predictor, requests[0]) if one else [_read(predictor, each) for each in requests], store)


def _known(predictor: Predictor, given: Sequence[Mapping[str, Any]] | Columns, store: OnlineStore) -> _Known:
    read = None if isinstance(given, Mapping) else given
    rows = (
        given
        if isinstance(given, Mapping)
        else {name: column_of([row[name] for row in given], kind) for name, kind in predictor.spec.request.items()}
    )
    try:
        return read, rows, store.history(rows, predictor.lookups)
    except Exception as error:
        raise _Elsewhere(error) from error


def _whole(scored: Scored) -> Scored:
    if not np.isfinite(scored.scores).all():
        raise Unavailable("the model gave a score that is no number", "finite scores", "roll the version back")
    return scored
