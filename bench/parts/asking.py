"""Clients of an endpoint under open load, and what each call of theirs was told.

The retry policy: a request whose connection broke, or that was answered 502, 503 or 504, is sent again on a new connection, at most
five times, after 50, 100, 200, 400 and 800 ms. A call has failed when even the last try got no answer with 200.
"""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

PAUSES = (0.05, 0.1, 0.2, 0.4, 0.8)
AGAIN = (502, 503, 504)
Make = Callable[[str, int], Mapping[str, Any]]


@dataclass(frozen=True)
class Call:
    """One call: the row it asked for, when (monotonic seconds; `due` is when the load meant it), what it was told, and the tries that failed.

    `status` 0 means that no try got an answer.
    """

    client: int
    key: str
    row: Mapping[str, Any]
    due: float
    begun: float
    ended: float
    status: int
    version: str = ""
    arm: str = ""
    epoch: int = 0
    id: str = ""
    score: float = 0.0
    faults: tuple[str, ...] = ()
    label: float | None = None

    @property
    def failed(self) -> bool:
        """Did even the last try fail?"""
        return self.status != 200


@dataclass
class Clients:
    """`threads` clients that together send `rate` requests a second at random times, each over its own connection.

    With `labels`, every tenth answered row is given a truth. Every call is kept in `calls`.
    """

    port: int
    make: Make
    rate: float
    threads: int = 4
    seed: int = 7
    labels: bool = False
    pauses: tuple[float, ...] = PAUSES
    calls: list[Call] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Clients:
        self._running = [threading.Thread(target=self._ask, args=(at,), daemon=True) for at in range(self.threads)]
        for thread in self._running:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._running:
            thread.join(60)

    def _ask(self, client: int) -> None:
        chance = random.Random(f"{self.seed}-{client}")
        line, due, number = Line(self.port, self.pauses), time.monotonic(), 0
        while True:
            due += chance.expovariate(self.rate / self.threads)
            if self._over.wait(max(0.0, due - time.monotonic())):
                break
            number += 1
            call = self._call(line, client, number, due, chance)
            self.calls.append(call)
        line.close()

    def _call(self, line: Line, client: int, number: int, due: float, chance: random.Random) -> Call:
        key = f"{self.seed}-{client}-{number}"
        row, begun = self.make(key, chance.randrange(6)), time.monotonic()
        status, body, faults = line.post("/predict", row)
        ended = time.monotonic()
        if status != 200:
            return Call(client, key, row, due, begun, ended, status, faults=(*faults, body[:200].decode(errors="replace")))
        said = json.loads(body)
        one = said["predictions"][0]
        truth: float | None = None
        if self.labels and number % 10 == 0:
            told = {"labels": [{"prediction_id": one["prediction_id"], "value": float(number)}]}
            truth = float(number) if line.post("/labels", told)[0] == 200 else None
        return Call(
            client, key, row, due, begun, ended, status,
            version=said["model_version"], arm=said["arm"], epoch=said["epoch"], id=one["prediction_id"], score=one["score"],
            faults=faults, label=truth,
        )  # fmt: skip


class Line:
    """One connection and its retries."""

    def __init__(self, port: int, pauses: tuple[float, ...]) -> None:
        self._port, self._pauses = port, pauses
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)

    def close(self) -> None:
        self._connection.close()

    def post(self, path: str, body: Mapping[str, Any]) -> tuple[int, bytes, tuple[str, ...]]:
        """Status (0: no answer), body, and what the tries before met."""
        faults: tuple[str, ...] = ()
        for pause in (*self._pauses, None):
            status, answer = self._try(path, json.dumps(body))
            if pause is None or (status and status not in AGAIN):
                break
            faults += (str(status) if status else answer.decode(errors="replace"),)
            self._connection.close()
            time.sleep(pause)
        return status, answer, faults

    def _try(self, path: str, body: str) -> tuple[int, bytes]:
        try:
            self._connection.request("POST", path, body, {"content-type": "application/json"})
            answer = self._connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            return 0, repr(error).encode()
