"""A replica's own HTTP listener: the same ASGI application as behind Serve's proxy, without that hop and without Serve's wrapper of each request.

Replicas of one node share the port (SO_REUSEPORT); the kernel deals new connections out among them. Knows neither Ray nor routes.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from ct.errors import CtError
from ct.governance import binds
from ct.serving.replies import App
from ct.settings import Settings

WAIT_SECONDS = 0.2
AGAIN_SECONDS = 2.0
KEEP_ALIVE_SECONDS = 90
DRAIN_SECONDS = 5


class _Server(uvicorn.Server):
    """It hears no signals: they are the process's, which is Ray's to stop. Uvicorn's own would stand in the place of Ray's handlers."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Door:
    """The listener at `settings.direct_port`. It opens when `ready` says so, and again when it broke; `fault` is told why it could not."""

    def __init__(self, app: App, settings: Settings, *, ready: Callable[[], bool], fault: Callable[[str], None]) -> None:
        self._app, self._settings, self._ready, self._fault = app, settings, ready, fault
        self._server: _Server | None = None
        self._closed = False
        self._served = asyncio.Event()

    async def keep_open(self) -> None:
        """Listen until `close`. Called on the replica's event loop."""
        while not self._closed:
            if not self._ready():  # who listens gets a share of the connections, so it must be able to answer
                await asyncio.sleep(WAIT_SECONDS)
                continue
            try:
                await self._serve(_listening(self._settings))
            except (OSError, RuntimeError, CtError) as error:
                self._fault(f"door:{type(error).__name__}")
            if not self._closed:
                await asyncio.sleep(AGAIN_SECONDS)

    async def _serve(self, listening: socket.socket) -> None:
        options: dict[str, Any] = binds.tls(self._settings)
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        config = uvicorn.Config(
            self._app,
            http="httptools",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=DRAIN_SECONDS,
            **options,
        )
        self._server, self._served = _Server(config), asyncio.Event()
        try:
            await self._server.serve(sockets=[listening])
        finally:
            listening.close()
            self._served.set()

    async def close(self) -> None:
        """Take no new connection, end those that wait, answer what is in work, at most for DRAIN_SECONDS."""
        self._closed = True
        if self._server is not None:
            self._server.should_exit = True
            await self._served.wait()


def _listening(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind((settings.host.strip("[]"), settings.direct_port))
        made.setblocking(False)
    except OSError:
        made.close()
        raise
    return made
