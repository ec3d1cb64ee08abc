"""The outermost layer: how large, of what type, how slow, how long and how many requests may be. What breaks a limit is refused before it costs anything.

Headers are HAProxy's and uvicorn's to read: this layer begins where they are complete.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ct.errors import CtError, InvalidRequest, Unavailable
from ct.serving import paths
from ct.serving.replies import App, Receive, Scope, Send, refuse
from ct.settings import Settings

EARLIER = 0.95
"""Serve reads x-request-timeout-seconds too and answers in plain text then; ours comes first."""
_NUMBER = frozenset("0123456789.eE+-")


class Limits:
    """The ASGI layer around `app`. `answered` is told of each status that this layer sends itself.

    A request that comes while `settings.max_in_work` are in work is refused with 503 and Retry-After before its body is read. Health, metrics
    and descriptions are not counted, so that a busy endpoint can still be looked at.
    """

    def __init__(self, app: App, settings: Settings, *, answered: Callable[[int], None] = lambda _: None) -> None:
        self._app, self._settings, self._answered = app, settings, answered
        self.in_work = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            known = paths.found(scope["path"])
            door = known[0] if known is not None and scope["method"] in known[0].methods else None
            takes = door.takes if door is not None else ()
            asked = self._asked(scope, takes)
            counted = door is not None and bool(takes)
            if counted and self.in_work >= self._settings.max_in_work:
                raise Unavailable(f"{self.in_work} requests are in work", "fewer at once", "try again after Retry-After")
        except CtError as error:
            self._answered(await refuse(scope, send, error))
            return
        self.in_work += counted
        try:
            await self._within(asked, _Body(receive, self._settings.max_body_bytes, bool(takes)), scope, send)
        finally:
            self.in_work -= counted

    def _asked(self, scope: Scope, takes: tuple[str, ...]) -> float:
        """The request's deadline in seconds, when its headers are in order. Raises InvalidRequest."""
        headers: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            if name in headers and name in (b"content-length", b"content-type", b"content-encoding", b"transfer-encoding"):
                raise InvalidRequest(f"two headers {name.decode('latin-1')}", "one", "send it once", status=400)
            headers[name] = value
        _check_length(headers, self._settings.max_body_bytes)
        if takes:
            _check_type(headers, takes)
        return _deadline(headers, self._settings.request_seconds)

    async def _within(self, seconds: float, body: _Body, scope: Scope, send: Send) -> None:
        begun = False

        async def told(message: Any) -> None:
            nonlocal begun
            begun = True
            await send(message)

        until = asyncio.get_running_loop().time() + seconds
        first = min(seconds, self._settings.body_seconds) if body.awaited else seconds
        try:
            async with asyncio.timeout(first) as clock:
                body.complete = lambda: clock.reschedule(until)
                await self._app(scope, body, told)
        except TimeoutError:
            if begun:  # half an answer is closed by the server, not mended
                raise
            self._answered(await refuse(scope, send, body.too_slow(first) if body.awaited else _late(seconds)))


@dataclass
class _Body:
    """A request's body as the app reads it: never more than `most` bytes of it; `complete` is called at its end."""

    receive: Receive
    most: int
    awaited: bool
    size: int = 0
    complete: Callable[[], None] = field(default=lambda: None)

    async def __call__(self) -> Any:
        message = await self.receive()
        if message["type"] == "http.request":
            self.size += len(message.get("body", b""))
            if self.size > self.most:
                self.awaited = False
                raise _too_large(self.most)
            if self.awaited and not message.get("more_body", False):
                self.awaited = False
                self.complete()
        return message

    def too_slow(self, seconds: float) -> InvalidRequest:
        """The error of a body that has not come in time."""
        found = f"{self.size:,} bytes of the body after {seconds:g} s"
        return InvalidRequest(found, "the whole body in that time", "send it quicker", status=408)


def _too_large(most: int) -> InvalidRequest:
    return InvalidRequest(f"a body of over {most:,} bytes", f"at most {most:,} bytes", "split the request", status=413)


def _late(seconds: float) -> InvalidRequest:
    return InvalidRequest(
        f"no answer in {seconds:g} s", "an answer before the deadline", "try again, or ask for fewer rows", status=504
    )


def _check_length(headers: Mapping[bytes, bytes], most: int) -> None:
    length = headers.get(b"content-length")
    if length is None:
        return
    if b"transfer-encoding" in headers or not length.isdigit():
        raise InvalidRequest("a content-length that says nothing", "the body's length in bytes", "mend it", status=400)
    if len(length) > 18 or int(length) > most:
        raise _too_large(most)


def _check_type(headers: Mapping[bytes, bytes], takes: tuple[str, ...]) -> None:
    coded = headers.get(b"content-encoding", b"").decode("latin-1").strip().lower()
    if coded not in ("", "identity"):
        raise InvalidRequest(f"content-encoding {coded[:40]!r}", "a plain body", "send it uncompressed", status=415)
    given = headers.get(b"content-type", b"").decode("latin-1")
    kind, _, rest = given.partition(";")
    charset = rest.strip().lower().replace('"', "")
    if kind.strip().lower() not in takes or charset not in ("", "charset=utf-8"):
        raise InvalidRequest(f"content-type {given[:60]!r}", " or ".join(takes), "name the body's type", status=415)


def _deadline(headers: Mapping[bytes, bytes], most: float) -> float:
    given = headers.get(b"x-request-timeout-seconds")
    if given is None:
        return most
    text = given.decode("latin-1").strip()
    try:
        seconds = float(text) if text and set(text) <= _NUMBER else math.nan
    except ValueError:
        seconds = math.nan
    if not seconds > 0:
        raise InvalidRequest(
            f"x-request-timeout-seconds {text[:20]!r}",
            "seconds above 0",
            "mend it or leave it out",
            status=400,
            field="x-request-timeout-seconds",
        )
    return min(seconds * EARLIER, most)
