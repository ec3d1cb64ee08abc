"""The Open Inference Protocol v2: tensors in and out, as JSON and in its binary-data extension.

A request's columns are tensors of shape [n] or [n, 1]. Binary data follows the JSON, little-endian, in the order of the tensors; a text is its
length in four bytes and its UTF-8. https://github.com/kserve/open-inference-protocol
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from ct.errors import InvalidRequest
from ct.serving import bodies
from ct.serving.answers import Answer
from ct.serving.paths import BINARY

HEADER = "inference-header-content-length"
NUMBERS = {
    "BOOL": "?",
    "INT8": "i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "UINT8": "u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "FP32": "<f4",
    "FP64": "<f8",
}
_FIELDS = frozenset(("id", "parameters", "inputs", "outputs"))


@dataclass(frozen=True)
class Asked:
    """A request: its rows, its id, and which outputs it wants, all when None. `binary` names those to send as binary data."""

    rows: list[dict[str, Any]]
    id: str
    wanted: tuple[str, ...] | None
    binary: frozenset[str]
    all_binary: bool


def read(data: bytes, length: str | None, most: int) -> Asked:
    """A request of at most `most` rows; `length` is the header Inference-Header-Content-Length. Raises InvalidRequest."""
    if length is None:
        body, rest = bodies.read(data), None
    else:
        if not length.isdigit() or len(length) > 18 or int(length) > len(data):
            raise InvalidRequest(
                f"{HEADER} {length[:20]!r} of a body of {len(data):,} bytes", "the length of its JSON", "mend it", status=400
            )
        body, rest = bodies.read(data[: int(length)]), memoryview(data)[int(length) :]
    if unknown := sorted(set(body) - _FIELDS):
        raise InvalidRequest(
            f"the unknown field {unknown[0][:60]!r}", f"fields {sorted(_FIELDS)}", "leave it out", field=unknown[0][:100]
        )
    wanted, binary = _outputs(body)
    parameters = _parameters(body, "parameters")
    every = parameters.get("binary_data_output") is True
    return Asked(_rows(body.get("inputs"), rest, most), str(body.get("id", ""))[:200], wanted, binary, every)


def rows_of(columns: Mapping[str, list[Any]], most: int) -> list[dict[str, Any]]:
    """Columns of one length → rows. Raises InvalidRequest when the lengths differ or there are over `most` rows."""
    lengths = {len(values) for values in columns.values()}
    if len(lengths) != 1:
        raise InvalidRequest(f"tensors of {sorted(lengths)} values", "one length", "send one value a row", field="inputs")
    if max(lengths) > most:
        raise InvalidRequest(f"{max(lengths)} rows", f"at most {most}", "split the request", field="inputs")
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _rows(inputs: Any, rest: memoryview | None, most: int) -> list[dict[str, Any]]:
    if not isinstance(inputs, list) or not inputs or not all(isinstance(item, dict) for item in inputs):
        raise InvalidRequest(
            "inputs is missing or no list of tensors", "one tensor a column", "see the model's metadata", field="inputs"
        )
    columns: dict[str, list[Any]] = {}
    at = 0
    for number, item in enumerate(inputs):
        name, type_ = item.get("name"), item.get("datatype")
        if not isinstance(name, str) or name in columns:
            raise InvalidRequest(f"tensor {str(name)[:60]!r}", "a new name", "mend it", field=f"inputs.{number}.name")
        if type_ is not None and not (isinstance(type_, str) and (type_ == "BYTES" or type_ in NUMBERS)):
            known = ", ".join(sorted([*NUMBERS, "BYTES"]))
            raise InvalidRequest(f"datatype {str(type_)[:40]!r}", known, "convert it", field=f"inputs.{name}")
        size = _parameters(item, f"inputs.{name}").get("binary_data_size")
        if size is None:
            values = _plain(name, item.get("data"), type_)
        else:
            if rest is None or "data" in item or type(size) is not int or not 0 <= size <= len(rest) - at:
                raise InvalidRequest(
                    f"tensor {name!r} has binary_data_size {str(size)[:20]}",
                    f"that many bytes after the JSON, whose length {HEADER} tells, and no data beside them",
                    "mend it",
                    field=f"inputs.{name}",
                )
            values = binary_values(name, str(type_), rest[at : at + size])
            at += size
        check_shape(name, item.get("shape"), len(values))
        columns[name] = values
    if rest is not None and at != len(rest):
        raise InvalidRequest(f"{len(rest) - at} bytes too many", "the tensors' own", "mend the sizes", field="inputs")
    return rows_of(columns, most)


def _plain(name: str, given: Any, type_: str | None) -> list[Any]:
    """A JSON tensor's values; those of shape [n, 1] may be nested."""
    if not isinstance(given, list):
        raise InvalidRequest(f"tensor {name!r} has no data", "data as a list", "mend it", field=f"inputs.{name}")
    data: list[Any] = given
    if data and all(type(value) is list and len(value) == 1 for value in data):
        data = [value[0] for value in data]
    if type_ == "BOOL":
        return [int(value) if type(value) is bool else value for value in data]
    return data


def binary_values(name: str, type_: str, data: memoryview | bytes) -> list[Any]:
    """A binary tensor's values. Raises InvalidRequest naming it."""
    field = f"inputs.{name}"
    if type_ == "BYTES":
        return texts_of(name, _texts(field, data))
    if type_ not in NUMBERS:
        raise InvalidRequest(f"tensor {name!r} has no datatype", "one for binary data", "name it", field=field)
    kind = np.dtype(NUMBERS[type_])
    if len(data) % kind.itemsize:
        raise InvalidRequest(f"{len(data)} bytes of {type_}", f"a multiple of {kind.itemsize}", "mend it", field=field)
    if type_ == "BOOL":
        return list(np.frombuffer(data, "u1").astype(bool).astype(int).tolist())
    return list(np.frombuffer(data, kind).tolist())


def texts_of(name: str, values: Iterable[bytes | memoryview]) -> list[str]:
    """Texts from their UTF-8. Raises InvalidRequest naming the tensor."""
    field = f"inputs.{name}"
    try:
        made = [bytes(value).decode() for value in values]
    except UnicodeDecodeError:
        raise InvalidRequest(f"a text of tensor {name!r} is not UTF-8", "UTF-8", "convert it", field=field) from None
    if any("\0" in text for text in made):
        raise InvalidRequest("a NUL character in a text", "text without NUL", "leave it out", field=field)
    return made


def _texts(field: str, data: memoryview | bytes) -> Iterator[memoryview | bytes]:
    at = 0
    while at < len(data):
        size = struct.unpack_from("<I", data, at)[0] if at + 4 <= len(data) else len(data)
        at += 4
        if at + size > len(data):
            raise InvalidRequest(
                f"a text of {size} bytes where {max(0, len(data) - at)} are left",
                "its length in 4 bytes, then it",
                "mend it",
                field=field,
            )
        yield data[at : at + size]
        at += size


def check_shape(name: str, shape: Any, count: int) -> None:
    """Raises InvalidRequest unless `shape` is that of `count` rows; None is any."""
    if shape is not None and shape not in ([count], [count, 1]):
        raise InvalidRequest(
            f"tensor {name!r} has shape {str(shape)[:60]} and {count} values",
            f"shape [{count}]",
            "mend it",
            field=f"inputs.{name}",
        )


def _parameters(item: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    found = item.get("parameters")
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise InvalidRequest("parameters that are no object", "an object", "mend it", field=where)
    return found


def _outputs(body: Mapping[str, Any]) -> tuple[tuple[str, ...] | None, frozenset[str]]:
    """The names of the outputs that are wanted, None for all, and those of them to send as binary data."""
    asked = body.get("outputs")
    if not asked and isinstance(asked, list | None):
        return None, frozenset()
    if not isinstance(asked, list) or not all(isinstance(item, dict) and isinstance(item.get("name"), str) for item in asked):
        raise InvalidRequest("outputs is no list of names", "[{'name': …}]", "leave it out for all", field="outputs")
    binary = (item["name"] for item in asked if _parameters(item, "outputs").get("binary_data") is True)
    return tuple(item["name"] for item in asked), frozenset(binary)


def write(model: str, asked: Asked, answer: Answer) -> tuple[bytes, dict[str, str]]:
    """The answer's body and headers. Raises InvalidRequest for an output that the model does not have."""
    told = {item["name"]: item for item in answer.tensors()}
    for name in asked.wanted or ():
        if name not in told:
            raise InvalidRequest(f"there is no output {name[:60]!r}", ", ".join(told), "check its name", field="outputs")
    parts: list[bytes] = []
    outputs = []
    for name in dict.fromkeys(asked.wanted or told):
        item = dict(told[name])
        if asked.all_binary or name in asked.binary:
            data = binary_data(item["datatype"], item.pop("data"))
            item["parameters"] = {**item.get("parameters", {}), "binary_data_size": len(data)}
            parts.append(data)
        outputs.append(item)
    body = orjson.dumps(
        {
            "model_name": model,
            "model_version": answer.version,
            "id": asked.id,
            "parameters": {"arm": answer.arm, "epoch": answer.epoch},
            "outputs": outputs,
        }
    )
    if not parts:
        return body, {}
    return b"".join((body, *parts)), {HEADER: str(len(body)), "content-type": BINARY}


def binary_data(type_: str, values: list[Any]) -> bytes:
    """An output's values as binary data."""
    if type_ == "BYTES":
        texts = [value.encode() for value in values]
        return b"".join(struct.pack("<I", len(text)) + text for text in texts)
    assert type_ in NUMBERS, type_
    return np.array([math.nan if value is None else value for value in values], dtype=NUMBERS[type_]).tobytes()
