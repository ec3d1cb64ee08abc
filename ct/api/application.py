"""The control API as an ASGI application: who asks, whether it was asked before, whether the epoch is theirs, then one verb at a time."""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from ct.api import verbs
from ct.api.doors import DOORS, Door
from ct.control import exposed
from ct.errors import Conflict, CtError, Forbidden, InvalidRequest, NotFound, Unauthenticated, Unavailable
from ct.governance import access
from ct.ids import canonical, sha256
from ct.registry import routes
from ct.store.journal import New

if TYPE_CHECKING:
    from ct.control.act import Actor

MOST_BYTES = 64 * 1024
_KEY = re.compile(r"[\x21-\x7e]{1,128}")
_STATUS: tuple[tuple[type[CtError], int], ...] = (
    (Unauthenticated, 401),
    (Forbidden, 403),
    (NotFound, 404),
    (Conflict, 409),
    (Unavailable, 503),
)


class Stale(CtError):
    """The route is of another epoch than If-Match says."""


def build(act: Actor, *, closed: bool = False, hosts: Sequence[str] = ()) -> Starlette:
    """The application for one project. `closed` asks for tokens even while none was made; `hosts` are the Host headers answered, all when empty.

    Without them a web page whose name was made to point at loopback could steer rollouts while no token was made.
    """
    named = Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
    api = Api(act, closed)
    made = [Route(door.path, api.at(door), methods=[door.method], name=door.name) for door in DOORS]
    return Starlette(routes=made, middleware=[named] if hosts else [], exception_handlers={404: _absent, 405: _absent})


class Api:
    """What the doors share: the actor, one lock for whatever changes something, and the journal of answers."""

    def __init__(self, act: Actor, closed: bool) -> None:
        self._act, self._closed = act, closed
        self._lock = threading.Lock()
        self._stream = f"api/{act.pipeline.name}"

    def at(self, door: Door) -> Any:
        """The way in at one door."""

        async def enter(request: Request) -> Response:
            try:
                body = await _body(request) if door.changes else b""
                return await run_in_threadpool(self._answer, door, request, body)
            except CtError as error:
                return _refusal(error)
            except Exception as error:  # a bug is told without its insides
                logging.getLogger("ct.api").exception("%s failed", door.name)
                told = {"error": type(error).__name__, "found": "an internal error", "expected": "", "remedy": "see the log"}
                return JSONResponse(told, 500)

        return enter

    def _answer(self, door: Door, request: Request, body: bytes) -> Response:
        act, found = self._act, request.path_params
        keeper = access.Gatekeeper(access.tokens(act.journal) if door.role else (), closed=self._closed)
        token = keeper.admit(access.bearer(request.headers.get("authorization", "")), door.role)
        if door.name == "live":
            return JSONResponse({"live": True})
        if door.name == "metrics":
            return PlainTextResponse(metrics(act), media_type="text/plain; version=0.0.4")
        if found["endpoint"] != act.pipeline.name:
            raise NotFound(f"no endpoint {found['endpoint'][:80]!r}", act.pipeline.name, "check the path")
        if not door.changes:
            return _json(*verbs.read(act, door.name, found), act)
        said = verbs.checked(door.name, _parsed(body))
        key = request.headers.get("idempotency-key", "")
        asked = sha256(canonical([door.method, request.url.path, said]))
        with self._lock:
            if key and (before := self._before(key, asked)):
                return _json(before["status"], before["said"], act)
            self._match(request.headers.get("if-match", ""))
            if key:
                self._note("Asked", key, asked, by=token.name if token else "")
            try:
                status, answer = verbs.change(act, door.name, found, said)
            except Unavailable:
                raise  # what was done is not known: the same key says so
            except CtError as error:
                status, answer = _status(error), error.as_dict()
            if key:
                self._note("Answered", key, asked, status=status, said=answer)
        return _json(status, answer, act)

    def _before(self, key: str, asked: str) -> dict[str, Any] | None:
        """The answer that this key had, None for a new one. Raises Conflict for another body, and where the answer is not known."""
        if not _KEY.fullmatch(key):
            raise InvalidRequest("this Idempotency-Key", "1 to 128 visible letters", "choose another", status=400)
        told = [event for event in self._act.journal.read(self._stream) if event.data["key"] == key]
        if not told:
            return None
        if told[0].data["asked"] != asked:
            raise Conflict("this Idempotency-Key came with another request", "a new key", "use one key for one request")
        if told[-1].type != "Answered":
            raise Conflict("what this key asked for was cut off", "the state as it is", "read it, then use a new key")
        return told[-1].data

    def _note(self, kind: str, key: str, asked: str, **more: Any) -> None:
        self._act.journal.append(self._stream, [New(kind, {"key": key, "asked": asked, **more})])

    def _match(self, wanted: str) -> None:
        route = routes.current(self._act.journal, self._act.pipeline.name)
        if wanted not in ("", "*") and (route is None or wanted.strip('"') != str(route.epoch)):
            found = f"the route is of epoch {route.epoch}" if route else "there is no route"
            raise Stale(found, f"epoch {wanted[:40]}", "read the route again and decide anew")


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


async def _body(request: Request) -> bytes:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MOST_BYTES:
            raise InvalidRequest("a longer body", f"at most {MOST_BYTES:,} bytes", "send less", status=413)
    return body


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body) if body.strip() else {}
    except (ValueError, RecursionError):
        raise InvalidRequest("a body that is no JSON", "a JSON object", "mend it", status=400) from None


def _status(error: CtError) -> int:
    if isinstance(error, Stale):
        return 412
    if isinstance(error, InvalidRequest):
        return error.status
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 422)


def _refusal(error: CtError) -> Response:
    headers = {"www-authenticate": "Bearer"} if isinstance(error, Unauthenticated) else {}
    return JSONResponse(error.as_dict(), _status(error), headers=headers)


def _json(status: int, said: Any, act: Actor) -> Response:
    route = routes.current(act.journal, act.pipeline.name)
    return JSONResponse(said, status, headers={"etag": f'"{route.epoch}"'} if route else {})


async def _absent(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    told = NotFound(f"{request.method} {request.url.path[:200]}", "a door of docs/rollouts.md", "check the method and the path")
    return JSONResponse(told.as_dict(), status)
