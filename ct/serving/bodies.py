"""JSON bodies, strictly: what JSON readers usually let pass in silence (keys given twice, NaN, NUL, endless nesting) is refused by name."""

from __future__ import annotations

import json
import re
from typing import Any

import orjson

from ct.errors import InvalidRequest

MAX_DEPTH = 16
MAX_FIELDS = 10_000
# Each begins where no match before it could have: a body of a megabyte is looked through once, whatever stands in it.
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"?', re.DOTALL)
_NOT_FINITE = re.compile(rb"\b(?:NaN|Infinity)\b")
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
_COLON = re.compile(rb"(?<!\\)(?:\\\\)*\\u003[aA]")


def read(data: bytes) -> dict[str, Any]:
    """The posted JSON object. Raises InvalidRequest: 400 for what is no JSON or ambiguous, 422 for values that are not taken.

    Beyond parsing it costs one serialization: an object's keys are as many as its colons outside strings, so where the colons of the text and
    of what was understood differ in number, a key stood there twice.
    """
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise _not_json(data, error) from None
    if not isinstance(body, dict):
        raise InvalidRequest(f"the body is {_kind(body)}", "a JSON object", "send {'instances': [...]}")
    colons = data.count(b":")
    if colons > MAX_FIELDS or data.count(b"[") + data.count(b"{") > MAX_DEPTH:
        _check_shape(body)
    if b"\\u00" in data:
        if _NUL.search(data):
            raise InvalidRequest("a NUL character in a text", "text without NUL", "leave it out")
        # A colon written as an escape is one in what was understood, but none in the text.
        colons += len(_COLON.findall(data))
    if colons != orjson.dumps(body).count(b":"):
        raise InvalidRequest(
            "an object names a field twice", "each field once", "leave one out", status=400, field=_twice(data)
        )
    return body


def _not_json(data: bytes, error: orjson.JSONDecodeError) -> InvalidRequest:
    """The error for what does not parse; only here may a look take its time."""
    if "infinity" in str(error) or _NOT_FINITE.search(_STRING.sub(b'""', data)):
        return InvalidRequest("NaN, Infinity or a number beyond all bounds", "finite numbers", "null means missing")
    if "recursion" in str(error):
        return InvalidRequest("a body nested without end", f"at most {MAX_DEPTH} levels", "send flat rows", status=400)
    return InvalidRequest(f"the body is not JSON: {error}", "JSON in UTF-8", "null means missing", status=400)


def _check_shape(body: Any) -> None:
    """Raises InvalidRequest for an object deeper than MAX_DEPTH or with more than MAX_FIELDS fields."""
    level = [body]
    for _ in range(MAX_DEPTH):
        below = []
        for item in level:
            if type(item) is dict and len(item) > MAX_FIELDS:
                raise InvalidRequest(
                    f"an object of {len(item):,} fields", f"at most {MAX_FIELDS:,}", "send rows as a list", status=400
                )
            below += [value for value in (item.values() if type(item) is dict else item) if type(value) in (dict, list)]
        if not below:
            return
        level = below
    raise InvalidRequest(f"a body of over {MAX_DEPTH} levels", f"at most {MAX_DEPTH} levels", "send flat rows", status=400)


def _twice(data: bytes) -> str:
    """The first name that an object has twice."""
    found: list[str] = []

    def seen(pairs: list[tuple[str, Any]]) -> None:
        names: set[str] = set()
        for name, _ in pairs:
            if name in names:
                found.append(name)
            names.add(name)

    json.loads(data, object_pairs_hook=seen)
    return found[0][:100] if found else ""


def _kind(value: Any) -> str:
    return {list: "a list", str: "a text", bool: "true or false", type(None): "null"}.get(type(value), "a number")
