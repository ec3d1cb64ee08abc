"""The straight way from Serve's HTTP server in a replica to the endpoint: past Serve's own wrapper of each request, which costs more than an answer.

Serve asks `middlewares` for what stands before its wrapper when RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names it. Without that variable
everything works by the longer way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from ct.serving.replies import App, Receive, Scope, Send

if TYPE_CHECKING:
    from starlette.middleware import Middleware

VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
PATH = "ct.serving.straight:middlewares"
_SERVES_OWN = "/-/"
"""Serve's health check and its list of routes."""


def middlewares() -> list[Middleware]:
    """What Serve puts before its wrapper, in every process that has an HTTP server of Serve's."""
    from starlette.middleware import Middleware

    return [Middleware(Straight)]


class Straight:
    """The ASGI layer: in a replica whose object has an application `straight`, requests go there; all others to `app`, Serve's wrapper."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._chosen: App | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http" or scope["path"].startswith(_SERVES_OWN):
            await self._app(scope, receive, send)
            return
        await (self._chosen or self._choose())(scope, receive, send)

    def _choose(self) -> App:
        replica = running()
        if replica is None:  # the server listens a moment before Serve tells of the object
            return self._app
        self._chosen = cast("App | None", getattr(replica, "straight", None)) or self._app
        return self._chosen


def running() -> object | None:
    """The object that this process's replica runs; None where there is none, or none yet."""
    from ray import serve
    from ray.serve.exceptions import RayServeException

    try:
        return cast("object | None", serve.get_replica_context().servable_object)
    except RayServeException:  # a proxy of Serve's
        return None
