"""The HTTP endpoint: routes, limits, JSON in and out, errors as JSON. A small ASGI application over one replica's work."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

import orjson

from ct.errors import Conflict, CtError, InvalidRequest, NotFound, Unavailable
from ct.serving import paths
from ct.serving.answers import Answer
from ct.serving.replica import Replica

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Reply = tuple[int, Any, dict[str, str]]

_STATUS = {NotFound: 404, Conflict: 409, Unavailable: 503}


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
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        request_id = headers.get("x-request-id", "")[:64] or secrets.token_hex(8)
        try:
            status, body, extra = await self._route(scope["method"], scope["path"], headers, receive)
        except InvalidRequest as error:
            status, body, extra = error.status, {**error.as_dict(), "field": error.field, "request_id": request_id}, {}
        except CtError as error:
            status, extra = _STATUS.get(type(error), 500), {}
            body = {**error.as_dict(), "field": "", "request_id": request_id}
        except Exception as error:  # a stack trace never leaves the process
            self._replica.telemetry.fault(type(error).__name__)
            status, extra = 500, {}
            said = {
                "error": "InternalError",
                "found": "the endpoint failed",
                "expected": "",
                "remedy": "try again; see /metrics",
            }
            body = {**said, "field": "", "request_id": request_id}
        self._replica.telemetry.answered(status)
        if status == 503:
            extra["retry-after"] = "1"
        await _send(send, status, body, {"x-request-id": request_id, **extra})

    async def _route(self, method: str, path: str, headers: Mapping[str, str], receive: Receive) -> Reply:
        known = paths.found(path)
        if known is None:
            there = ", ".join(dict.fromkeys(door.template for door in paths.PATHS))
            raise NotFound(f"there is no path {path[:100]!r}", there, "check the spelling")
        door, match = known
        if method not in door.methods:
            raise InvalidRequest(f"method {method[:20]}", " or ".join(door.methods), "see /openapi.json", status=405)
        parts = match.groupdict()
        if "model" in parts:
            self._model(parts["model"])
        if "POST" in door.methods:
            return await self._post(door.name, parts, headers, await self._body(headers, receive))
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
                return (200 if live else 503), {"ready": live}, {}
            case "server":
                return 200, {"name": "ct", "version": "1", "extensions": []}, {}
            case "model-ready":
                replica.slots.require()
                return 200, {"name": replica.endpoint, "ready": True}, {}
            case _:
                return 200, replica.metadata(), {}

    async def _post(self, name: str, parts: Mapping[str, str], headers: Mapping[str, str], body: dict[str, Any]) -> Reply:
        replica = self._replica
        unit, force = headers.get("x-session-id", "")[:200], headers.get("x-canary", "")
        match name:
            case "predict":
                rows = body["instances"] if set(body) == {"instances"} else [body]
                if not isinstance(rows, list):
                    raise InvalidRequest(
                        "instances is no list", "a list of objects", "send {'instances': [{...}]}", field="instances"
                    )
                answer = await replica.predict(rows, unit=unit, force=force)
                return 200, answer.plain(), _headers(answer)
            case "labels":
                return 200, {"accepted": await replica.label(_only(body, "labels"))}, {}
            case "observe":
                return 200, {"stored": await replica.observe(parts["table"], _only(body, "rows"))}, {}
            case _:
                version = parts.get("version") or ""
                answer = await replica.predict(_tensors(body), unit=unit, force=force, version=version)
                return 200, _inferred(replica.endpoint, body, answer), _headers(answer)

    def _model(self, name: str) -> None:
        if name != self._replica.endpoint:
            raise NotFound(f"there is no model {name!r}", f"{self._replica.endpoint!r}", "check the path")

    async def _body(self, headers: Mapping[str, str], receive: Receive) -> dict[str, Any]:
        """The posted JSON object. The size is checked before a byte is parsed."""
        most = self._replica.settings.max_body_bytes
        length = headers.get("content-length", "0")
        too_large = InvalidRequest(f"a body of over {most:,} bytes", f"at most {most:,} bytes", "split the request", status=413)
        if not length.isdigit() or int(length) > most:
            raise too_large
        if headers.get("content-type", "application/json").partition(";")[0].strip() != "application/json":
            raise InvalidRequest(f"content-type {headers['content-type'][:60]!r}", "application/json", "send JSON", status=415)
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise InvalidRequest("the client went away", "a whole request", "", status=400)
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > most:
                raise too_large
            if not message.get("more_body", False):
                break
        try:
            body = orjson.loads(b"".join(parts))
        except orjson.JSONDecodeError as error:
            raise InvalidRequest(
                f"the body is not JSON: {error}", "JSON; NaN and Infinity are not", "null means missing", status=400
            ) from None
        if not isinstance(body, dict):
            raise InvalidRequest(f"the body is {type(body).__name__}", "a JSON object", "send {'instances': [...]}")
        return body


def _only(body: Mapping[str, Any], name: str) -> Any:
    if set(body) != {name}:
        raise InvalidRequest(
            f"the body has the fields {sorted(body)}", f"the field {name!r}", f"send {{'{name}': [...]}}", field=name
        )
    return body[name]


def _tensors(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of an Open Inference Protocol request: one tensor of shape [n] a column."""
    inputs = body.get("inputs")
    if not isinstance(inputs, list) or not inputs or not all(isinstance(item, dict) for item in inputs):
        raise InvalidRequest(
            "inputs is missing or no list of tensors", "one tensor a column", "see the model's metadata", field="inputs"
        )
    columns: dict[str, list[Any]] = {}
    for item in inputs:
        name, data, shape = item.get("name"), item.get("data"), item.get("shape")
        if not isinstance(name, str) or not isinstance(data, list) or name in columns:
            raise InvalidRequest(f"tensor {str(name)[:60]!r}", "a new name and data as a list", "mend it", field="inputs")
        if shape is not None and shape not in ([len(data)], [len(data), 1]):
            raise InvalidRequest(
                f"tensor {name!r} has shape {shape} and {len(data)} values",
                f"shape [{len(data)}]",
                "mend it",
                field=f"inputs.{name}",
            )
        columns[name] = data
    lengths = {len(data) for data in columns.values()}
    if len(lengths) != 1:
        raise InvalidRequest(f"tensors of {sorted(lengths)} values", "one length", "send one value a row", field="inputs")
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _inferred(model: str, body: Mapping[str, Any], answer: Answer) -> dict[str, Any]:
    return {
        "model_name": model,
        "model_version": answer.version,
        "id": str(body.get("id", "")),
        "parameters": {"arm": answer.arm, "epoch": answer.epoch},
        "outputs": answer.tensors(),
    }


def _headers(answer: Answer) -> dict[str, str]:
    return {"x-model-version": answer.version, "x-rollout-arm": answer.arm, "x-rollout-epoch": str(answer.epoch)}


async def _send(send: Send, status: int, body: Any, headers: Mapping[str, str]) -> None:
    data = body.encode() if isinstance(body, str) else orjson.dumps(body)
    given = {"content-type": "application/json", "content-length": str(len(data)), **headers}
    raw = [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in given.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": data})


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
