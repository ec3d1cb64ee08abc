"""What stands before every door of the control API: the request's id, the hosts that are answered, no web pages; and errors as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ct.errors import Conflict, CtError, Forbidden, InvalidRequest, NotFound, Unauthenticated, Unavailable
from ct.serving import replies

_STATUS: tuple[tuple[type[CtError], int], ...] = (
    (Unauthenticated, 401),
    (Forbidden, 403),
    (NotFound, 404),
    (Conflict, 409),
    (Unavailable, 503),
)
_READS = ("GET", "HEAD", "OPTIONS")


class Front:
    """The ASGI layer. `hosts` are the Host headers that are answered, all when empty.

    A request that changes something and comes from a web page is refused, whoever's page it is: browsers say so in Origin, programs do not.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str] = ()) -> None:
        self._app, self._hosts = app, frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        scope.setdefault("state", {})["request_id"] = name = replies.request_id(scope["headers"])

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = name
                headers["cache-control"] = "no-store"
            await send(message)

        try:
            self._look(request)
        except CtError as error:
            await refusal(request, error)(scope, receive, told)
        else:
            await self._app(scope, receive, told)

    def _look(self, request: Request) -> None:
        if self._hosts and (host := _host(request.headers.get("host", ""))) not in self._hosts:
            found = f"the Host header {host[:60]!r}"
            raise InvalidRequest(found, "an address of this API", "add it to `hosts` in ct.toml", status=421, field="host")
        if request.method not in _READS and "origin" in request.headers:
            raise Forbidden("a request from a web page", "a program", "use `ct rollout`, or a client without Origin")


def status_of(error: Exception) -> int:
    """The HTTP status that an error answers with: 422 for what `ct` refuses and has no status of its own, 500 for a bug."""
    if isinstance(error, InvalidRequest):
        return error.status
    named = next((status for kind, status in _STATUS if isinstance(error, kind)), 422)
    return named if isinstance(error, CtError) else 500


def told(error: Exception) -> dict[str, Any]:
    """An error as plain data, without what belongs to one request."""
    if not isinstance(error, CtError):
        return {
            "error": "InternalError",
            "found": "the control API failed",
            "expected": "",
            "remedy": "see its log",
            "field": "",
        }
    return {**error.as_dict(), "field": getattr(error, "field", "")}


def named(request: Request, status: int, said: Mapping[str, Any]) -> dict[str, Any]:
    """What `told` gave, as this request's answer."""
    return {"code": status, **said, "request_id": request.scope["state"]["request_id"]}


def refusal(request: Request, error: Exception, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The answer to a request that met an error. Only a CtError's words leave the process."""
    status = status_of(error)
    more = dict(headers or {})
    if status == 401:
        more["www-authenticate"] = "Bearer"
    if status == 503:
        more["retry-after"] = "1"
    if status in (408, 413):  # the body still comes: the connection cannot be used again
        more["connection"] = "close"
    return JSONResponse(named(request, status, told(error)), status, headers=more)


def _host(header: str) -> str:
    try:
        return (urlsplit(f"//{header}").hostname or "").lower()
    except ValueError:
        return header.lower()
