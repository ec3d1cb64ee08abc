"""Where the control API listens: a socket of its own, connections that keep to the endpoint's limits, and an end that answers what is in work."""

from __future__ import annotations

import socket
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from ct.errors import Unavailable
from ct.serving.door import Line

DRAIN_SECONDS = 10


def bound(host: str, port: int) -> socket.socket:
    """A listening socket. Raises Unavailable when the port is taken or the address is not this machine's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host.strip("[]"), port))
        made.listen(128)
    except OSError as error:
        made.close()
        raise Unavailable(
            f"{host}:{port}: {error.strerror or error}", "a free port of this machine", "choose another"
        ) from None
    return made


def server(app: ASGIApp, **certificate: Any) -> uvicorn.Server:
    """A server for the application; at its end what is in work is answered, at most for DRAIN_SECONDS."""
    config = uvicorn.Config(
        app,
        http=Line,
        ws="none",
        lifespan="off",
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=DRAIN_SECONDS,
        **certificate,
    )
    return uvicorn.Server(config)
