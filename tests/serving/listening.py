"""An ASGI application on a real socket, and bytes sent to it just as they are."""

from __future__ import annotations

import asyncio
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn


@contextmanager
def listening(make: Callable[[], Any]) -> Iterator[int]:
    """The port where the application that `make` makes listens; it is made on the server's own thread."""
    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    config = uvicorn.Config(make, factory=True, log_config=None, access_log=False, lifespan="off", timeout_keep_alive=2)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[taken])), daemon=True)
    thread.start()
    until = time.monotonic() + 20
    while not server.started and time.monotonic() < until:
        time.sleep(0.01)
    assert server.started
    try:
        yield taken.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(20)


def head(path: str, *lines: str, method: str = "POST") -> bytes:
    """A request's head."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", "host: localhost", *lines, "", ""]).encode("latin-1")


def ask(port: int, *parts: bytes, pause: float = 0.0, timeout: float = 10.0, silence: float = 0.02) -> bytes:
    """Everything that is answered to `parts`, sent with `pause` seconds between them, until the other side closes or falls silent.

    Once it answers no more is sent: what comes for a closed socket makes the kernel throw the answer away.
    """
    with socket.create_connection(("127.0.0.1", port), timeout) as line:
        said = b""
        for part in parts:
            line.sendall(part)
            if pause and select.select([line], [], [], pause)[0]:
                break
        line.settimeout(timeout)
        try:
            while more := line.recv(65536):
                said += more
                if _whole(said):
                    line.settimeout(silence)
        except OSError:
            pass
        return said


def status(said: bytes) -> int:
    """The first answer's status, 0 when there is none."""
    return int(said.split(b" ", 2)[1]) if said.startswith(b"HTTP/1.1 ") else 0


def _whole(said: bytes) -> bool:
    start, _, body = said.partition(b"\r\n\r\n")
    for line in start.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return len(body) >= int(line.partition(b":")[2])
    return False
