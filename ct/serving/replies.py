"""Answers on their way out: plain data as JSON, errors as JSON with a code, a field and the request's id. Every layer answers through here."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any

import orjson

from ct.errors import Conflict, CtError, Forbidden, InvalidRequest, NotFound, Unauthenticated, Unavailable

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_STATUS: dict[type[CtError], int] = {Unauthenticated: 401, Forbidden: 403, NotFound: 404, Conflict: 409, Unavailable: 503}
_CLOSING = (408, 413)
"""What is answered while the body still comes: the connection cannot be used again."""


def status_of(error: Exception) -> int:
    """The HTTP status that an error answers with; 500 for what is nobody's request's fault."""
    if isinstance(error, InvalidRequest):
        return error.status
    return next((status for kind, status in _STATUS.items() if isinstance(error, kind)), 500)


def request_id(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The caller's x-request-id, at most 64 characters of it, or a new one."""
    given = next((value for name, value in headers if name == b"x-request-id"), b"")
    return given.decode("latin-1")[:64] or f"{random.getrandbits(64):016x}"


def refusal(error: Exception, name: str) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, body and headers of an error's answer to the request `name`. Only a CtError's words leave the process."""
    status = status_of(error)
    said = (
        error.as_dict()
        if isinstance(error, CtError)
        else {
            "error": "InternalError",
            "found": "the endpoint failed",
            "expected": "",
            "remedy": "try again; see /metrics",
        }
    )
    headers = {}
    if status in (429, 503):
        headers["retry-after"] = "1"
    if status in _CLOSING:
        headers["connection"] = "close"
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    return status, {"code": status, **said, "field": getattr(error, "field", ""), "request_id": name}, headers


async def refuse(scope: Scope, send: Send, error: Exception) -> int:
    """Answer a request with an error. Returns the status."""
    name = request_id(scope["headers"])
    status, body, headers = refusal(error, name)
    await answer(scope, send, status, body, {"x-request-id": name, **headers})
    return status


async def answer(scope: Scope, send: Send, status: int, body: Any, headers: Mapping[str, str]) -> None:
    """Send `body`: bytes as they are, text as UTF-8, anything else as JSON. To HEAD only the headers are sent."""
    data = body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else orjson.dumps(body)
    given = {"content-type": "application/json", "content-length": str(len(data)), **headers}
    raw = [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in given.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else data})
