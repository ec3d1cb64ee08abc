"""The straight way from Serve's HTTP server in a replica to the endpoint: past Serve's own wrapper of each request, which costs more than an answer.

Serve asks `middlewares` for what stands before its wrapper when RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names it. Without that variable
everything works by the longer way.
"""

from __future__ import annotations

from starlette.middleware import Middleware

from ct.serving.replies import App, Receive, Scope, Send

VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
PATH = "ct.serving.straight:middlewares"
_SERVES_OWN = "/-/"
"""Serve's health check and its list of routes."""
_held: list[App] = []


def hold(app: App) -> None:
    """The endpoint's application in this process, from now on."""
    _held[:] = [app]


def middlewares() -> list[Middleware]:
    """What Serve puts before its wrapper, in every process that has an HTTP server of Serve's."""
    return [Middleware(Straight)]


class Straight:
    """The ASGI layer: a request for the endpoint held in this process goes there, any other one to `app`, Serve's wrapper."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        to = _held[0] if _held and scope["type"] == "http" and not scope["path"].startswith(_SERVES_OWN) else self._app
        await to(scope, receive, send)
