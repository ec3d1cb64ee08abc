"""The endpoint's OpenAPI description, made from the table of paths and from the model that is in force."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ct.objectives import Objective
from ct.serving import answers, oip, paths
from ct.serving.paths import ARROW, BINARY, JSON, Path

ANY: dict[str, Any] = {"type": "object"}
_ERRORS = {
    "400": "What was sent cannot be read",
    "401": "No valid token",
    "403": "The token's role may not",
    "404": "There is none of that name",
    "405": "Another method is meant",
    "408": "The body came too slowly",
    "409": "Somebody else was first",
    "413": "The body is too large",
    "415": "The body is of another type",
    "421": "Another host is meant",
    "422": "A value is wrong; `field` says which",
    "500": "The endpoint failed",
    "503": "Not ready, or too busy; see Retry-After",
    "504": "The deadline has passed",
}
_CELLS: dict[str, dict[str, Any]] = {
    "number": {"type": ["number", "null"]},
    "text": {"type": ["string", "null"]},
    "time": {"type": "string", "format": "date-time", "description": "RFC 3339 with a zone"},
}


def describe(endpoint: str, kinds: Mapping[str, str] | None, objective: Objective | None, most: int) -> dict[str, Any]:
    """The description, OpenAPI 3.1. `kinds` are the request's columns and `objective` what is answered, None before the first version."""
    described: dict[str, Any] = {}
    for door in paths.PATHS:
        for method in door.methods:
            if method != "HEAD":
                operation = _operation(door, method, kinds, objective, most)
                described.setdefault(door.template, {})[method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": f"ct endpoint {endpoint}", "version": "1"},
        "paths": described,
        "components": {
            "schemas": {"Error": _error(), "Row": _row(kinds), "Tensor": _tensor()},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(
    door: Path, method: str, kinds: Mapping[str, str] | None, objective: Objective | None, most: int
) -> dict[str, Any]:
    version = "_of_version" if "{version}" in door.template else ""
    alias = "_at_healthz" if door.template == "/healthz" else ""
    made: dict[str, Any] = {
        "operationId": f"{door.name.replace('-', '_')}{version}{alias}",
        "summary": door.summary,
        "responses": {
            "200": {"description": "The answer", "content": _answers(door, objective)},
            **{code: _refused(code, text) for code, text in _ERRORS.items()},
        },
    }
    if door.role:
        made["security"] = [{"token": []}]
        made["x-ct-role"] = door.role
    given = [_parameter(name, pattern) for name, pattern in paths.PARTS.items() if f"{{{name}}}" in door.template]
    if door.role == "predict":
        given += [_header("x-session-id", {"type": "string", "maxLength": 200})]
        given += [_header("x-request-timeout-seconds", {"type": "number", "exclusiveMinimum": 0})]
    if given:
        made["parameters"] = given
    if door.takes:
        made["requestBody"] = {"required": True, "content": _bodies(door, most)}
    return made


def _parameter(name: str, pattern: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "pattern": f"^{pattern}$"}}


def _header(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "schema": schema}


def _refused(code: str, text: str) -> dict[str, Any]:
    content: dict[str, Any] = {JSON: {"schema": {"$ref": "#/components/schemas/Error"}}}
    if code == "400":  # what is no HTTP at all is answered by the server, in plain text
        content["text/plain"] = {"schema": {"type": "string"}}
    return {"description": text, "content": content}


def _bodies(door: Path, most: int) -> dict[str, Any]:
    binary = {"schema": {"type": "string", "format": "binary"}}
    row: dict[str, Any] = {"$ref": "#/components/schemas/Row"}
    match door.name:
        case "predict":
            rows = _object({"instances": {"type": "array", "items": row, "minItems": 1, "maxItems": most}}, "instances")
            return {JSON: {"schema": {"anyOf": [rows, row]}}, ARROW: binary}
        case "infer":
            tensors = {"type": "array", "items": {"$ref": "#/components/schemas/Tensor"}, "minItems": 1}
            named = {"type": "array", "items": {"type": "object", "required": ["name"]}}
            asked = _object({"id": {"type": "string"}, "parameters": ANY, "inputs": tensors, "outputs": named}, "inputs")
            return {JSON: {"schema": asked}, BINARY: binary}
        case "labels":
            label = _object({"prediction_id": {"type": "string"}, "value": {}, "time": {"type": "string"}}, "prediction_id")
            return {JSON: {"schema": _object({"labels": {"type": "array", "items": label}}, "labels")}}
        case _:
            return {JSON: {"schema": _object({"rows": {"type": "array", "items": ANY}}, "rows")}}


def _answers(door: Path, objective: Objective | None) -> dict[str, Any]:
    binary = {"schema": {"type": "string", "format": "binary"}}
    text = {"type": "string"}
    match door.name:
        case "metrics":
            return {"text/plain": {"schema": text}}
        case "predict":
            parts = [item["name"] for item in answers.outputs(objective)] if objective is not None else ["prediction_id"]
            one = {"type": "object", "required": parts, "properties": {"prediction_id": text}}
            who = {"model_version": text, "arm": text, "epoch": {"type": "integer"}}
            whole = _object({"predictions": {"type": "array", "items": one}, **who}, "predictions", *who)
            return {JSON: {"schema": whole}, ARROW: binary}
        case "infer":
            tensors = {"type": "array", "items": {"$ref": "#/components/schemas/Tensor"}}
            told: dict[str, Any] = {
                "model_name": text,
                "model_version": text,
                "id": text,
                "parameters": ANY,
                "outputs": tensors,
            }
            return {JSON: {"schema": _object(told, *told)}, BINARY: binary}
        case _:
            return {JSON: {"schema": ANY}}


def _object(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def _row(kinds: Mapping[str, str] | None) -> dict[str, Any]:
    if kinds is None:
        return {"type": "object", "description": "The columns are known once a version is in force"}
    return _object({name: _CELLS[kind] for name, kind in kinds.items()}, *kinds)


def _tensor() -> dict[str, Any]:
    shape = {"type": "array", "items": {"type": "integer", "minimum": 0}}
    types = {"type": "string", "enum": [*sorted(oip.NUMBERS), "BYTES"]}
    given = {"name": {"type": "string"}, "shape": shape, "datatype": types, "parameters": ANY, "data": {"type": "array"}}
    return _object(given, "name")


def _error() -> dict[str, Any]:
    text = {"type": "string"}
    told = {name: text for name in ("error", "found", "expected", "remedy", "field", "request_id")}
    return _object({"code": {"type": "integer"}, **told}, "code", *told)
