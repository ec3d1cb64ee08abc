"""Load on one HTTP path, in a process of its own: `python load.py JOB` with a job as JSON, one JSON object out.

A job: {port, path, bodies: [text], headers: {…}, connections, seconds, rate}. With rate 0 each connection sends as soon as it was answered
(closed loop); else requests begin at random moments, `rate` a second, and latency counts from the moment that was meant (open loop), also
when no connection was free. No request is ever sent twice.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections import Counter, deque
from typing import Any

GOOD_SECONDS = 1.0
"""An answer counts as good when it has status 200 and came within so long."""


class Line(asyncio.Protocol):
    """One connection with at most one request on it."""

    def __init__(self, load: Load) -> None:
        self._load, self._begun, self._data = load, 0.0, b""
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        """Ready."""
        self._transport = transport
        self._load.free(self)

    def send(self, request: bytes, due: float) -> None:
        """Ask."""
        self._begun = due
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        """An answer, or a part of one."""
        data = self._data = self._data + data if self._data else data
        head = data.find(b"\r\n\r\n")
        if head < 0:
            return
        top = data[:head].lower()
        at = top.find(b"content-length:")
        if at >= 0:
            end = top.find(b"\r\n", at)
            whole = len(data) >= head + 4 + int(top[at + 15 : end if end >= 0 else None])
        else:
            whole = data.endswith(b"0\r\n\r\n")  # chunked
        if whole:
            self._data, begun, self._begun = b"", self._begun, 0.0
            self._load.answered(int(data[9:12]), begun)
            if b"connection: close" in top:
                self._transport.close()
            else:
                self._load.free(self)

    def connection_lost(self, _: Exception | None) -> None:
        """Count what was lost with it, and begin another."""
        if self._begun:
            self._load.answered(0, self._begun)
        self._load.lost()


class Load:
    """A running job."""

    def __init__(self, job: dict[str, Any]) -> None:
        self._job, self._rate = job, job["rate"]
        extra = "".join(f"{name}: {value}\r\n" for name, value in job.get("headers", {}).items())
        self._requests = [
            f"POST {job['path']} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n{extra}"
            f"content-length: {len(body)}\r\n\r\n{body}".encode()
            for body in job["bodies"]
        ]
        self._at = random.Random(job.get("seed", 7)).randrange(len(self._requests))
        self._idle: deque[Line] = deque()
        self._due: deque[float] = deque()
        self._open = True
        self._took: list[float] = []
        self._ended: list[float] = []
        self._codes: Counter[int] = Counter()
        self._sent = 0

    def free(self, line: Line) -> None:
        """A connection has nothing to do."""
        if not self._rate and self._open:
            self._send(line, time.perf_counter())
        elif self._due:
            self._send(line, self._due.popleft())
        else:
            self._idle.append(line)

    def answered(self, status: int, due: float) -> None:
        """One answer; status 0 when the connection broke."""
        now = time.perf_counter()
        self._codes[status] += 1
        if status == 200:
            self._took.append(now - due)
            self._ended.append(now)

    def lost(self) -> None:
        """A connection broke."""
        if self._open:
            self._connecting = asyncio.get_running_loop().create_task(self._connect())

    async def _connect(self) -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: Line(self), "127.0.0.1", self._job["port"])
        except OSError:
            self._codes[0] += 1
            await asyncio.sleep(0.05)
            self.lost()

    def _send(self, line: Line, due: float) -> None:
        self._at = (self._at + 1) % len(self._requests)
        self._sent += 1
        line.send(self._requests[self._at], due)

    async def run(self) -> dict[str, Any]:
        """Carry the job out."""
        for _ in range(self._job["connections"]):
            await self._connect()
        begun, cpu = time.perf_counter(), time.process_time()
        until = begun + self._job["seconds"]
        if self._rate:
            chance, due = random.Random(self._job.get("seed", 7)), begun
            while (due := due + chance.expovariate(self._rate)) < until:
                while due > time.perf_counter():
                    await asyncio.sleep(max(0.0, min(0.001, due - time.perf_counter())))
                while self._idle and self._idle[-1]._transport.is_closing():
                    self._idle.pop()
                if self._idle:
                    self._send(self._idle.pop(), due)
                else:
                    self._due.append(due)
                await asyncio.sleep(0)
        else:
            await asyncio.sleep(self._job["seconds"])
        self._open = False
        spent = time.perf_counter() - begun
        used = (time.process_time() - cpu) / spent
        within = [took for took, ended in zip(self._took, self._ended, strict=True) if ended <= begun + spent]
        for _ in range(20):
            if sum(self._codes.values()) >= self._sent:
                break
            await asyncio.sleep(0.1)
        took = sorted(self._took) or [float("nan")]
        good = sum(value <= GOOD_SECONDS for value in within)
        return {
            "answers": len(within),
            "per_s": len(within) / spent,
            "good_per_s": good / spent,
            "p50_ms": took[len(took) // 2] * 1000,
            "p99_ms": took[min(len(took) - 1, int(len(took) * 0.99))] * 1000,
            "codes": {str(code): count for code, count in sorted(self._codes.items())},
            "never_sent": len(self._due),
            "own_cpu": used,
        }


def main() -> None:
    """One job."""
    import uvloop

    print(json.dumps(uvloop.run(Load(json.loads(sys.stdin.read())).run())))


if __name__ == "__main__":
    main()
