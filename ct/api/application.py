"""The control API as an ASGI application: who asks, what came, whether it was asked before, whether the epoch is theirs, then one verb at a time."""

from __future__ import annotations

import asyncio
import logging
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Match, Route

from ct.api import front, openapi, verbs
from ct.api.doors import DOORS, Door
from ct.api.once import Decided, Once, keeps
from ct.control import exposed
from ct.errors import Conflict, CtError, InvalidRequest, NotFound, Unavailable
from ct.governance import access
from ct.ids import canonical, sha256
from ct.registry import routes
from ct.serving import bodies

if TYPE_CHECKING:
    from ct.control.act import Actor

MOST_BYTES = 64 * 1024
MOST_IN_WORK = 32
"""So many requests that change something are in work or wait for their turn; more are answered 503."""
Join = Callable[["Actor"], AbstractContextManager[None]]
STILL = ("pause", "set_flag")
"""Verbs that need the journal alone."""
_KEY = re.compile(r"[\x21-\x7e]{1,128}")


def build(act: Actor, *, closed: bool = False, hosts: Sequence[str] = (), join: Join = lambda _: nullcontext()) -> Starlette:
    """The application for one project. `closed` asks for tokens even while none was made; `hosts` are the Host headers answered, all when empty.
    Verbs that may move traffic run within `join`, which connects the actor to the cluster that runs the endpoint.

    Without hosts a web page whose name was made to point at loopback could steer rollouts while no token was made.
    """
    api = Api(act, closed, join)
    made = [Route(door.path, api.at(door), methods=[door.method], name=door.name) for door in DOORS]
    layer = Middleware(front.Front, hosts=hosts)
    app = Starlette(routes=made, middleware=[layer], exception_handlers={404: _absent, 405: _absent})
    app.router.redirect_slashes = False  # paths are compared as they are
    return app


class Api:
    """What the doors share: the actor, and one lock for whatever changes something in this process."""

    def __init__(self, act: Actor, closed: bool, join: Join) -> None:
        self._act, self._closed, self._join = act, closed, join
        self._lock = threading.Lock()
        self._in_work = 0

    def at(self, door: Door) -> Any:
        """The way in at one door."""

        async def enter(request: Request) -> Response:
            try:
                token = await run_in_threadpool(self._admit, door, request)  # before a byte of the body is read
                if not door.changes:
                    return await run_in_threadpool(self._read, door, request)
                if self._in_work >= MOST_IN_WORK:
                    raise Unavailable(f"{self._in_work} requests are in work", "fewer at once", "try again after Retry-After")
                self._in_work += 1
                try:
                    body = await _body(request, self._act.settings.body_seconds)
                    return await run_in_threadpool(self._change, door, request, body, token)
                finally:
                    self._in_work -= 1
            except CtError as error:
                return front.refusal(request, error)
            except Exception as error:  # a bug is told without its insides
                logging.getLogger("ct.api").exception("%s failed", door.name)
                return front.refusal(request, error)

        return enter

    def _admit(self, door: Door, request: Request) -> access.Token | None:
        keeper = access.Gatekeeper(access.tokens(self._act.journal) if door.role else (), closed=self._closed)
        shown = request.headers.getlist("authorization")
        # Of two headers nobody can say which one counts, so neither does.
        return keeper.admit(access.bearer(shown[0]) if len(shown) == 1 else "", door.role)

    def _read(self, door: Door, request: Request) -> Response:
        act = self._act
        match door.name:
            case "live":
                return JSONResponse({"live": True})
            case "metrics":
                return PlainTextResponse(metrics(act), media_type="text/plain; version=0.0.4")
            case "openapi":
                return JSONResponse(openapi.describe(act.pipeline.name))
        self._same(request.path_params)
        return self._said(request, *verbs.read(act, door.name, request.path_params))

    def _same(self, found: Mapping[str, str]) -> None:
        name = self._act.pipeline.name
        if found["endpoint"] != name:
            raise NotFound(f"no endpoint {found['endpoint'][:80]!r}", name, "check the path")

    def _change(self, door: Door, request: Request, body: bytes, token: access.Token | None) -> Response:
        act, found = self._act, request.path_params
        self._same(found)
        said = verbs.checked(door.name, _parsed(body))
        verbs.allowed(said, token)
        key = request.headers.get("idempotency-key", "")
        if key and not _KEY.fullmatch(key):
            raise InvalidRequest(
                "this Idempotency-Key", "1 to 128 visible letters", "choose another", status=400, field="idempotency-key"
            )
        once = Once(
            act.journal,
            act.pipeline.name,
            door.name,
            sha256(canonical([door.method, request.url.path, said])),
            key=key,
            by=token.name if token else "",
            rollout=found.get("rollout", ""),
            epochs=frozenset(re.findall(r'[^\s,"]+', request.headers.get("if-match", ""))),
        )
        # Who shows a token acts in its name; else it is whoever runs `ct api`.
        actor = f"{token.name} ({token.role})" if token else ""
        with act.journal.in_name_of(actor):
            return self._said(request, *self._once(once, found, said))

    def _once(self, once: Once, found: Mapping[str, str], said: verbs.Body) -> verbs.Said:
        """The answer that the key has; else what the verb does, or has left to do where a process died over it."""
        act, verb = self._act, once.verb
        reached = nullcontext() if verb in STILL else self._join(act)
        with once.turn() as known, self._lock, reached:
            if known is not None and known.status:
                return known.status, known.said
            try:
                status, answer = self._done(once, known, found, said)
            except CtError as error:
                if not keeps(error):
                    raise
                status, answer = front.status_of(error), front.told(error)
            once.answered(status, answer)
            return status, answer

    def _done(self, once: Once, known: Decided | None, found: Mapping[str, str], said: verbs.Body) -> verbs.Said:
        act, verb = self._act, once.verb
        if known is not None:
            return verbs.resumed(act, verb, known.rollout)
        once.match()
        try:
            with act.journal.in_name_of(act.journal.actor, once.watch):
                return verbs.change(act, verb, found, said)
        except Conflict:
            if not once.decided:
                raise
            return verbs.resumed(act, verb, once.rollout)  # `ct watch` was quicker with what was left of it

    def _said(self, request: Request, status: int, said: Any) -> Response:
        route = routes.current(self._act.journal, self._act.pipeline.name)
        if status >= 400:
            said = front.named(request, status, said)
        return JSONResponse(said, status, headers={"etag": f'"{route.epoch}"'} if route else {})


def metrics(act: Actor) -> str:
    """The control plane in the Prometheus text format: epoch and weights of the route, and what the journal says of rollouts."""
    route, name = routes.current(act.journal, act.pipeline.name), act.pipeline.name
    lines = []
    if route is not None:
        lines += ["# HELP ct_route_epoch Epoch of the route in the journal.", "# TYPE ct_route_epoch gauge"]
        lines.append(f'ct_route_epoch{{endpoint="{name}"}} {route.epoch}')
        lines += ["# HELP ct_rollout_weight Share of traffic by arm, 0 to 1.", "# TYPE ct_rollout_weight gauge"]
        shares = zip(route.shares.items(), route.arms, strict=True)
        for (arm, weight), held in shares:
            labels = f'endpoint="{name}",arm="{arm}",version="{held.version}"'
            lines.append(f"ct_rollout_weight{{{labels}}} {weight / routes.WHOLE:g}")
    return "".join(f"{line}\n" for line in lines) + exposed.text(act.journal, name)


async def _body(request: Request, seconds: float) -> bytes:
    """The whole body, which must be JSON, short and there in time. Raises InvalidRequest."""
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:19]) > MOST_BYTES:
        raise _too_long()
    if request.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise InvalidRequest(
            "a body that is encoded", "a plain body", "send it uncompressed", status=415, field="content-encoding"
        )
    body = b""
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                body += part
                if len(body) > MOST_BYTES:
                    raise _too_long()
    except TimeoutError:
        found = f"{len(body):,} bytes of the body after {seconds:g} s"
        raise InvalidRequest(found, "the whole body in that time", "send it quicker", status=408) from None
    except ClientDisconnect:
        raise InvalidRequest("the client went away", "a whole request", "send it again", status=400) from None
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if body.strip() and kind != "application/json":
        raise InvalidRequest(f"content-type {kind[:60]!r}", "application/json", "name it", status=415, field="content-type")
    return body


def _parsed(body: bytes) -> Any:
    text = body.strip()
    if text and not text.startswith(b"{"):
        raise InvalidRequest("a body that is no JSON object", "a JSON object", "mend it", status=400)
    return bodies.read(text) if text else {}


def _too_long() -> InvalidRequest:
    return InvalidRequest("a longer body", f"at most {MOST_BYTES:,} bytes", "send less", status=413)


async def _absent(request: Request, error: Exception) -> Response:
    method, path = request.method[:20], request.url.path[:200]
    if getattr(error, "status_code", 404) == 404:
        return front.refusal(request, NotFound(f"{method} {path}", "a door of /openapi.json", "check the path"))
    doors = [route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE]
    meant = ", ".join(sorted({name for route in doors for name in route.methods}))
    refused = InvalidRequest(f"{method} {path}", f"one of {meant}", "check the method", status=405)
    return front.refusal(request, refused, {"allow": meant})
