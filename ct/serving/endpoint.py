"""What stands behind each path: a small ASGI application over one replica's work. Limits and access are layers around it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ct.errors import CtError, InvalidRequest, NotFound
from ct.serving import arrow, bodies, oip, openapi, paths, replies
from ct.serving.answers import Answer
from ct.serving.paths import ARROW
from ct.serving.replica import Replica
from ct.serving.replies import Receive, Scope, Send

Reply = tuple[int, Any, dict[str, str]]
EXTENSIONS = ["binary_tensor_data"]


class Endpoint:
    """The ASGI application."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            return
        name = replies.request_id(scope["headers"])
        try:
            status, body, extra = await self._route(scope, receive)
        except Exception as error:  # a stack trace never leaves the process
            if not isinstance(error, CtError):
                self._replica.telemetry.fault(type(error).__name__)
            status, body, extra = replies.refusal(error, name)
        self._replica.telemetry.answered(status)
        await replies.answer(scope, send, status, body, {"x-request-id": name, **extra})

    async def _route(self, scope: Scope, receive: Receive) -> Reply:
        method, path = scope["method"], scope["path"]
        known = paths.found(path)
        if known is None:
            there = ", ".join(dict.fromkeys(door.template for door in paths.PATHS))
            raise NotFound(f"there is no path {path[:100]!r}", there, "check the spelling")
        door, match = known
        if method not in door.methods:
            raise InvalidRequest(f"method {method[:20]}", " or ".join(door.methods), "see /openapi.json", status=405)
        parts = match.groupdict()
        if parts.get("model", self._replica.endpoint) != self._replica.endpoint:
            raise NotFound(f"there is no model {parts['model']!r}", f"{self._replica.endpoint!r}", "check the path")
        if door.takes:
            headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
            return await self._post(door.name, parts, headers, await _body(receive))
        if door.name == "metrics":
            return 200, await self._replica.metrics(), {"content-type": "text/plain; version=0.0.4"}
        return self._get(door.name, parts)

    def _get(self, name: str, parts: Mapping[str, str]) -> Reply:
        replica = self._replica
        version = parts.get("version")
        if version and version not in replica.slots.loaded:
            raise NotFound(f"version {version!r} is not loaded", f"one of {sorted(replica.slots.loaded)}", "check it")
        match name:
            case "live":
                return 200, {"live": True}, {}
            case "ready":
                live = replica.slots.live is not None
                return (200, {"ready": True}, {}) if live else (503, {"ready": False}, {"retry-after": "1"})
            case "server":
                return 200, {"name": "ct", "version": "1", "extensions": EXTENSIONS}, {}
            case "model-ready":
                replica.slots.require()
                return 200, {"name": replica.endpoint, "ready": True}, {}
            case "openapi":
                live_ = replica.slots.live
                model = live_.stable.predictor if live_ is not None else None
                kinds, objective = (model.spec.request, model.objective) if model is not None else (None, None)
                return 200, openapi.describe(replica.endpoint, kinds, objective, replica.settings.max_rows), {}
            case _:
                return 200, replica.metadata(), {}

    async def _post(self, name: str, parts: Mapping[str, str], headers: Mapping[str, str], data: bytes) -> Reply:
        replica = self._replica
        given = {"unit": headers.get("x-session-id", "")[:200], "force": headers.get("x-canary", "")}
        match name:
            case "predict" if headers.get("content-type", "").lower().startswith(ARROW):
                kinds = replica.slots.require().stable.predictor.spec.request
                answer = await replica.predict(arrow.read(data, kinds, replica.settings.max_rows), **given)
                return 200, arrow.write(answer), {"content-type": ARROW, **_headers(answer)}
            case "predict":
                body = bodies.read(data)
                rows = body["instances"] if set(body) == {"instances"} else [body]
                if not isinstance(rows, list):
                    raise InvalidRequest(
                        "instances is no list", "a list of objects", "send {'instances': [{...}]}", field="instances"
                    )
                answer = await replica.predict(rows, **given)
                return 200, answer.plain(), _headers(answer)
            case "labels":
                return 200, {"accepted": await replica.label(_only(bodies.read(data), "labels"))}, {}
            case "observe":
                return 200, {"stored": await replica.observe(parts["table"], _only(bodies.read(data), "rows"))}, {}
            case _:
                asked = oip.read(data, headers.get(oip.HEADER), replica.settings.max_rows)
                answer = await replica.predict(asked.rows, **given, version=parts.get("version") or "")
                written, extra = oip.write(replica.endpoint, asked, answer)
                return 200, written, {**extra, **_headers(answer)}


async def _body(receive: Receive) -> bytes:
    """The whole body. How long it may be and take is the limits' layer to say."""
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise InvalidRequest("the client went away", "a whole request", "", status=400)
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


def _only(body: Mapping[str, Any], name: str) -> Any:
    if set(body) != {name}:
        raise InvalidRequest(
            f"the body has the fields {sorted(body)[:20]}", f"the field {name!r}", f"send {{'{name}': [...]}}", field=name
        )
    return body[name]


def _headers(answer: Answer) -> dict[str, str]:
    return {"x-model-version": answer.version, "x-rollout-arm": answer.arm, "x-rollout-epoch": str(answer.epoch)}


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
