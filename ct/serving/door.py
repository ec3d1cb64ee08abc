"""A replica's own HTTP listener: the same ASGI application as behind Serve's proxy, without that hop and without Serve's wrapper of each request.

Replicas of one node share the port (SO_REUSEPORT); the kernel deals new connections out among them. Knows neither Ray nor routes.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import orjson
import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from ct.errors import CtError, InvalidRequest, Unavailable
from ct.governance import binds
from ct.serving import replies
from ct.serving.replies import App
from ct.settings import Settings

WAIT_SECONDS = 0.2
AGAIN_SECONDS = 2.0
KEEP_ALIVE_SECONDS = 90
DRAIN_SECONDS = 5
HEAD_SECONDS, HEAD_BYTES = 10.0, 1 << 16
"""What a request's line and headers may take, as HAProxy has it before Serve's port."""
MOST_CONNECTIONS = 4096
"""Connections of one replica, or half as many as it may have files open. Those that are idle count too."""


class _Server(uvicorn.Server):
    """It hears no signals: they are the process's, which is Ray's to stop. Uvicorn's own would stand in the place of Ray's handlers."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Line(HttpToolsProtocol):
    """A connection. Uvicorn waits for ever for a request's head, takes one of any size, and any number of connections: not so here.

    Its timer runs while a head is awaited that did not come whole, so that most requests of a kept connection need none. `refused` is told each
    status that is answered here, before there is a request.
    """

    _timer: asyncio.TimerHandle | None = None
    _part: Literal["", "head", "body"] = ""
    _read = 0

    def __init__(self, *args: Any, refused: Callable[[int], None] = lambda _: None, **options: Any) -> None:
        super().__init__(*args, **options)
        self._refused = refused

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Arm the timer, or turn the connection away."""
        super().connection_made(transport)
        if len(self.connections) > most_connections():
            self._turn_away(Unavailable("too many connections", "fewer at once", "try again after Retry-After"))
        else:
            self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timer."""
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on. What is no part of a request in work has its time: a head, empty lines before it, and the rest of a body already refused."""
        super().data_received(data)
        if (self._part != "head" and self._works()) or self.transport.is_closing():
            return
        if self._part != "body":
            self._read += len(data)
        if self._read > HEAD_BYTES:
            self._turn_away(
                InvalidRequest("too long a head", f"at most {HEAD_BYTES:,} bytes", "send fewer headers", status=431)
            )
        elif self._timer is None:
            self._arm()

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        self._part = "head"
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The end of its head."""
        self._part, self._read = "body", 0
        if self._timer is not None:
            self._disarm()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The end of its body."""
        self._part = ""
        super().on_message_complete()

    def _works(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _arm(self) -> None:
        self._timer = self.loop.call_later(HEAD_SECONDS, self._late)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        if self._works():
            self._arm()  # an earlier request of this connection, with a deadline of its own
        elif self._part == "head":
            found = f"no whole head after {HEAD_SECONDS:g} s"
            self._turn_away(InvalidRequest(found, "a request's line and headers by then", "send them quicker", status=408))
        else:
            self.transport.close()

    def _turn_away(self, error: CtError) -> None:
        if not self._works():  # no answer within another's
            status, body, headers = replies.refusal(error, replies.request_id(()))
            data = orjson.dumps(body)
            headers |= {"content-type": "application/json", "content-length": str(len(data)), "connection": "close"}
            lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            self.transport.write(STATUS_LINE[status] + lines.encode() + b"\r\n" + data)
            self._refused(status)
        self.transport.close()


def most_connections() -> int:
    """How many connections one replica takes at once."""
    return min(MOST_CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)


class Door:
    """The listener at `settings.direct_port`. It opens when `ready` says so, and again when it broke; `fault` is told why it could not,
    `refused` what connections were answered before there was a request."""

    def __init__(
        self,
        app: App,
        settings: Settings,
        *,
        ready: Callable[[], bool],
        fault: Callable[[str], None],
        refused: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._app, self._settings, self._ready, self._fault = app, settings, ready, fault
        self._line: Any = partial(Line, refused=refused)
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
            http=self._line,
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
