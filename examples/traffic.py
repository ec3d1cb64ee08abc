"""Replays flights as live HTTP traffic, hour by hour: what has become known is told to the endpoint first, then the hour's flights are asked for."""

from __future__ import annotations

import http.client
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa

from ct.control.calls import authorization

HOUR = timedelta(hours=1)
HOUR_US = 3_600_000_000


@dataclass
class Answers:
    """What came back. `last_canary` is the wall time of the newest answer that the canary gave."""

    requests: int = 0
    failed: int = 0
    rows: int = 0
    labels: int = 0
    by_version: Counter[str] = field(default_factory=Counter)
    last_canary: float = 0.0
    last_id: str = ""
    last_ids: dict[str, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Replay(threading.Thread):
    """Traffic from `start` to `stop` (event time, UTC), or until `halt()`. `answers` may be read while it runs."""

    def __init__(
        self,
        endpoint: str,
        flights: pa.Table,
        weather: pa.Table,
        columns: Sequence[str],
        start: datetime,
        stop: datetime,
        *,
        rows: int = 1,
        connections: int = 4,
    ) -> None:
        super().__init__(daemon=True)
        self.answers = Answers()
        self.at = start
        self._stop_at, self._rows = stop, rows
        self._token = authorization(os.environ)
        self._halted = threading.Event()
        self._lock = threading.Lock()
        self._local = threading.local()
        self._address = urlsplit(endpoint).netloc
        self._pool = ThreadPoolExecutor(connections)
        self._asked = _by_hour(flights.select(list(columns)), "scheduled_departure", start, stop)
        landed = flights.filter(pa.compute.is_valid(flights["arrival_time"]))
        self._landed = _by_hour(landed, "arrival_time", start, stop)
        self._weather = _by_hour(weather, "observed_at", start - 3 * HOUR, stop)
        self._ids: dict[str, str] = {}

    def halt(self) -> Answers:
        """Stop after the current hour and return the answers."""
        self._halted.set()
        self.join()
        return self.answers

    def run(self) -> None:
        """The thread's work."""
        begun = time.monotonic()
        for back in (3, 2, 1):
            self._known("weather", self._weather.get(_hour(self.at) - back, []))
        while self.at < self._stop_at and not self._halted.is_set():
            hour = _hour(self.at)
            # A real feed runs on within the hour; the store shows a flight only what was known before its own departure.
            self._known("weather", self._weather.get(hour, []))
            self._known("flights", self._landed.get(hour, []))
            self._truth(self._landed.get(hour - 1, []))
            list(self._pool.map(self._ask, _chunks(self._asked.get(hour, []), self._rows)))
            self.at += HOUR
            self.answers.seconds = time.monotonic() - begun
        self._truth(self._landed.get(_hour(self.at) - 1, []))
        self._pool.shutdown()

    def _ask(self, rows: list[dict[str, Any]]) -> None:
        body = self._post("/predict", {"instances": rows})
        if body is None:
            return
        with self._lock:
            self.answers.rows += len(rows)
            self.answers.by_version[body["model_version"]] += len(rows)
            for row, found in zip(rows, body["predictions"], strict=True):
                self._ids[row["flight_id"]] = found["prediction_id"]
            self.answers.last_id = body["predictions"][-1]["prediction_id"]
            self.answers.last_ids[body["model_version"]] = self.answers.last_id
            if body["arm"] == "canary":
                self.answers.last_canary = max(self.answers.last_canary, time.time())

    def _truth(self, rows: list[dict[str, Any]]) -> None:
        known = [
            {"prediction_id": self._ids.pop(row["flight_id"]), "value": row["arr_delay"], "known_at": row["arrival_time"]}
            for row in rows
            if row["flight_id"] in self._ids
        ]
        if known and self._post("/labels", {"labels": known}) is not None:
            self.answers.labels += len(known)

    def _known(self, table: str, rows: list[dict[str, Any]]) -> None:
        for chunk in _chunks(rows, 200):
            self._post(f"/observe/{table}", {"rows": chunk})

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        """POST and return the answer; a failure is counted and kept, never repeated: a dropped request must show."""
        with self._lock:
            self.answers.requests += 1
        try:
            connection = getattr(self._local, "connection", None) or http.client.HTTPConnection(self._address, timeout=30)
            self._local.connection = connection
            connection.request("POST", path, json.dumps(body), {"content-type": "application/json", **self._token})
            response = connection.getresponse()
            data = response.read()
            if response.status == 200:
                return json.loads(data)
            fault = f"{response.status} {data[:300].decode(errors='replace')}"
        except (OSError, http.client.HTTPException) as error:
            self._local.connection = None
            fault = repr(error)
        with self._lock:
            self.answers.failed += 1
            self.answers.faults.append(f"{path}: {fault}")
        return None


def _hour(at: datetime) -> int:
    return int(at.timestamp() * 1e6) // HOUR_US


def _by_hour(table: pa.Table, column: str, start: datetime, stop: datetime) -> dict[int, list[dict[str, Any]]]:
    times = table[column].cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy()
    wanted = np.flatnonzero((times >= start.timestamp() * 1e6) & (times < stop.timestamp() * 1e6))
    hours: dict[int, list[dict[str, Any]]] = {}
    for row, at in zip(table.take(wanted).to_pylist(), times[wanted], strict=True):
        plain = {key: value.isoformat() if isinstance(value, datetime) else value for key, value in row.items()}
        hours.setdefault(int(at) // HOUR_US, []).append(plain)
    return hours


def _chunks(rows: list[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    for begin in range(0, len(rows), size):
        yield rows[begin : begin + size]


def utc(year: int, month: int, day: int) -> datetime:
    """Midnight UTC."""
    return datetime(year, month, day, tzinfo=UTC)
