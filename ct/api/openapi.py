"""The control API's OpenAPI description, made from the table of doors."""

from __future__ import annotations

import re
from typing import Any

from ct.api import verbs
from ct.api.doors import DOORS, FIELDS, NEEDED, Door
from ct.registry import flags

JSON = "application/json"
Schema = dict[str, Any]
TEXT: Schema = {"type": "string"}
PERCENT: Schema = {"type": "integer", "minimum": 0, "maximum": 100}
_PARTS: dict[str, Schema] = {
    "endpoint": {"type": "string", "description": "The pipeline's name"},
    "rollout": {"type": "string", "pattern": "^r[0-9]+$"},
    "flag": {"type": "string", "description": f"{', '.join(flags.BUILT_IN)}, or {flags.OWN}NAME"},
}
_ERRORS = {
    "400": "What was sent cannot be read",
    "401": "No valid token",
    "403": "The token's role may not, or a web page asks",
    "404": "There is none of that name",
    "405": "Another method is meant",
    "421": "Another host is meant",
    "500": "The control API failed",
    "503": "The database or the endpoint does not answer; see Retry-After",
}
_CHANGING = {
    "408": "The body came too slowly",
    "409": "Another rollout is in progress, this one has ended, or the key came with another request",
    "412": "The route is of another epoch than If-Match says",
    "413": "The body is too large",
    "415": "The body is of another type",
    "422": "A value is wrong; `field` says which",
}
_FIELDS: dict[str, Schema] = {
    "versions": {"type": "array", "items": TEXT | {"minLength": 1, "maxLength": verbs.LONGEST}, "minItems": 1},
    "override": TEXT | {"maxLength": verbs.LONGEST, "description": "Why a gate is overruled; needs the role admin"},
    "apart": {"type": "boolean", "description": "Run it in an application of its own"},
    "full": {"type": "boolean", "description": "Make the candidate stable, whatever steps are left"},
    "version": TEXT | {"maxLength": verbs.LONGEST, "description": "Which of several candidates becomes stable"},
    "percent": PERCENT,
    "weights": {
        "type": "object",
        "additionalProperties": PERCENT,
        "minProperties": 1,
        "description": "Percent by version or arm; who is not named keeps theirs",
    },
    "value": {"description": "true or false; durable or fast for log; any JSON for an own flag"},
    "reason": TEXT | {"maxLength": verbs.LONGEST},
    "to": TEXT | {"maxLength": verbs.LONGEST, "description": "The version to go back to; the previous stable one when empty"},
}


def describe(endpoint: str) -> Schema:
    """The description, OpenAPI 3.1."""
    described: Schema = {}
    for door in DOORS:
        described.setdefault(door.path, {})[door.method.lower()] = _operation(door)
    return {
        "openapi": "3.1.0",
        "info": {"title": f"ct control API of {endpoint}", "version": "1"},
        "paths": described,
        "components": {
            "schemas": {"Error": _error(), "Rollout": _rollout(), "Route": _route(), "Flags": _flags()},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(door: Door) -> Schema:
    status = "202" if door.name in ("start", "retry") else "200"
    told = _ERRORS | (_CHANGING if door.changes else {})
    made: Schema = {
        "operationId": door.name,
        "summary": door.summary,
        "responses": {
            status: {"description": "What is so now", "content": _answer(door), "headers": _headers(door)},
            **{code: _refused(code, text) for code, text in told.items()},
        },
    }
    if door.role:
        made["security"], made["x-ct-role"] = [{"token": []}], door.role
    given = [
        {"name": name, "in": "path", "required": True, "schema": _PARTS[name]} for name in re.findall(r"{(\w+)}", door.path)
    ]
    if door.changes:
        key = {"type": "string", "pattern": "^[!-~]{1,128}$", "description": "The same key and body are done once"}
        given += [
            _header("Idempotency-Key", key),
            _header("If-Match", TEXT | {"description": "The route's epoch, as ETag said it"}),
        ]
        made["requestBody"] = {
            "required": door.name in NEEDED or door.name == "set_weight",
            "content": {JSON: {"schema": _body(door)}},
        }
    if given:
        made["parameters"] = given
    return made


def _body(door: Door) -> Schema:
    fields = {name: _FIELDS[name] for name in FIELDS.get(door.name, {})}
    needed = [NEEDED[door.name]] if door.name in NEEDED else []
    one = {"oneOf": [{"required": [name]} for name in fields]} if door.name == "set_weight" else {}
    return _object(fields, *needed) | one


def _header(name: str, schema: Schema) -> Schema:
    return {"name": name, "in": "header", "required": False, "schema": schema}


def _headers(door: Door) -> Schema:
    own = {"ETag": {"description": "The route's epoch", "schema": TEXT}} if "{endpoint}" in door.path else {}
    return {"x-request-id": {"description": "The request's id, yours if you sent one", "schema": TEXT}, **own}


def _refused(code: str, text: str) -> Schema:
    content: Schema = {JSON: {"schema": {"$ref": "#/components/schemas/Error"}}}
    if code == "400":  # what is no HTTP at all is answered by the server, in plain text
        content["text/plain"] = {"schema": TEXT}
    return {"description": text, "content": content}


def _answer(door: Door) -> Schema:
    rollout, route, events = _named("Rollout"), _named("Route"), {"type": "array", "items": {"type": "object"}}
    match door.name:
        case "metrics":
            return {"text/plain": {"schema": TEXT}}
        case "live":
            schema = _object({"live": {"type": "boolean"}}, "live")
        case "openapi":
            schema = {"type": "object"}
        case "rollouts":
            schema = _object({"rollouts": {"type": "array", "items": rollout}}, "rollouts")
        case "rollout":
            schema = {"allOf": [rollout, {"type": "object", "properties": {"events": events}, "required": ["events"]}]}
        case "start" | "retry":
            schema = rollout
        case "history":
            entry = {"type": "object", "properties": {"at": TEXT, "cause": TEXT}, "required": ["at", "cause"]}
            schema = _object({"history": {"type": "array", "items": {"allOf": [entry, route]}}}, "history")
        case "flags" | "set_flag":
            schema = _named("Flags")
        case _:
            schema = _object({"done": TEXT, "route": route, "rollout": rollout}, "done", "route")
    return {JSON: {"schema": schema}}


def _named(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(properties: Schema, *required: str) -> Schema:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def _rollout() -> Schema:
    going = ["Pending", "Warming", "Shadowing", "Progressing", "Paused", "Holding", "Baking", "Promoting", "RollingBack"]
    texts = {"type": "array", "items": TEXT}
    maybe = {"type": ["string", "null"], "format": "date-time"}
    fields: Schema = {
        "id": TEXT,
        "version": TEXT,
        "others": texts,
        "baseline": TEXT,
        "state": {"type": "string", "enum": [*going, "Succeeded", "RolledBack", "Failed"]},
        "phase": {"type": "string", "enum": ["progressing", "paused", "holding", "promoting", "rolling_back", "ended"]},
        "outcome": {"type": "string", "enum": ["", "promoted", "rolled_back", "aborted", "failed"]},
        "cause": TEXT,
        "step": {"type": "integer", "minimum": -1, "description": "The plan's step, from 0; -1 before the first"},
        "first_epoch": {"type": "integer"},
        "started": {"type": "string", "format": "date-time"},
        "ended": maybe,
        "evidence": {"type": "array", "items": {"type": "object"}, "description": "Counts, e-values and limits by metric"},
        "apart": {"type": "boolean"},
    }
    return {"type": "object", "properties": fields, "required": list(fields)}


def _route() -> Schema:
    arm = {"type": "object", "properties": {"version": TEXT, "manifest": TEXT, "app": TEXT}, "required": ["version"]}
    weights = {"type": "object", "additionalProperties": {"type": "integer", "minimum": 0, "maximum": 10_000}}
    fields: Schema = {
        "endpoint": TEXT,
        "epoch": {"type": "integer", "minimum": 1},
        "stable": arm,
        "candidates": {"type": "array", "items": {"type": "object"}},
        "shares": weights | {"description": "By arm, in hundredths of a percent"},
    }
    return {"type": "object", "properties": fields, "required": list(fields)}


def _flags() -> Schema:
    switch = {"type": "boolean"}
    fields: Schema = {"canary": switch, "shadow": switch, "batching": switch, "log": {"enum": ["durable", "fast"]}}
    return {"type": "object", "properties": fields, "required": list(fields)}


def _error() -> Schema:
    told = {name: TEXT for name in ("error", "found", "expected", "remedy", "field", "request_id")}
    return _object({"code": {"type": "integer"}, **told}, "code", *told)
