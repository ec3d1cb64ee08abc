"""Bytes to rows and answers to bytes: JSON bodies, the Open Inference Protocol v2, errors. Pure; no sockets, no models."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from ct.errors import Conflict, CtError, InvalidRequest, NotFound, Unavailable
from ct.serving.answer import Answer

_DATATYPES = {"number": "FP64", "text": "BYTES", "time": "BYTES"}
_NUMBERS = {"FP64", "FP32", "FP16", "INT64", "INT32", "INT16", "INT8", "UINT64", "UINT32", "UINT16", "UINT8"}


def parse(body: bytes) -> dict[str, Any]:
    """A request's body as an object. Raises InvalidRequest: 422 for NaN and Infinity, 400 for anything else that is not JSON."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        found = next((word for word in (b"NaN", b"Infinity") if word in body), None)
        if found:
            raise InvalidRequest(
                f"the body holds {found.decode()}", "finite numbers", "send null for a missing value", status=422, field="body"
            ) from None
        raise InvalidRequest(f"the body is not JSON: {error}", "a JSON object in UTF-8", "", status=400, field="body") from None
    if not isinstance(value, dict):
        raise InvalidRequest(f"the body is a {type(value).__name__}", "an object", "", field="body")
    return value


def instances(body: Mapping[str, Any], name: str = "instances") -> Sequence[Mapping[str, Any]]:
    """The rows of `{"instances": [...]}`, or of one flat object. Raises InvalidRequest."""
    if name not in body and name == "instances":
        return [body]
    rows = body.get(name)
    if not isinstance(rows, list) or set(body) != {name}:
        raise InvalidRequest(f"fields {sorted(body)}", f'{{"{name}": [row, …]}}', "", field=name)
    if not all(isinstance(row, dict) for row in rows):
        raise InvalidRequest("a row that is no object", "objects of fields", "send one object a row", field=name)
    return rows


def tensors(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of an Open Inference Protocol request: one input tensor of shape [n] or [n, 1] a column. Raises InvalidRequest."""
    inputs = body.get("inputs")
    if not isinstance(inputs, list) or not inputs:
        raise InvalidRequest("no inputs", "one input tensor a column", "send {'inputs': [...]}", field="inputs")
    columns: dict[str, list[Any]] = {}
    for index, tensor in enumerate(inputs):
        name, data = _tensor(index, tensor)
        if name in columns:
            raise InvalidRequest(f"two inputs named {name!r}", "one a column", "", field=f"inputs.{index}")
        columns[name] = data
    counts = {len(data) for data in columns.values()}
    if len(counts) != 1:
        raise InvalidRequest(f"inputs of {sorted(counts)} rows", "as many rows in each", "", field="inputs")
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _tensor(index: int, tensor: Any) -> tuple[str, list[Any]]:
    where = f"inputs.{index}"
    if not isinstance(tensor, dict) or not {"name", "shape", "datatype", "data"} <= set(tensor):
        raise InvalidRequest(f"input {index} is incomplete", "name, shape, datatype and data", "", field=where)
    name, shape, datatype, data = tensor["name"], tensor["shape"], tensor["datatype"], tensor["data"]
    if not isinstance(name, str) or not isinstance(data, list) or not isinstance(shape, list):
        raise InvalidRequest(f"input {index} has the wrong types", "a name, a list shape, a list of data", "", field=where)
    flat = [value for row in data for value in row] if data and all(isinstance(row, list) for row in data) else data
    whole = all(isinstance(size, int) and not isinstance(size, bool) and size >= 0 for size in shape)
    if not whole or len(shape) not in (1, 2) or (len(shape) == 2 and shape[1] != 1) or math.prod(shape) != len(flat):
        raise InvalidRequest(
            f"input {name!r} has shape {shape} and {len(flat)} values", "shape [rows] or [rows, 1]", "", field=f"{where}.shape"
        )
    if datatype not in _NUMBERS and datatype not in ("BYTES", "BOOL"):
        raise InvalidRequest(
            f"datatype {datatype!r}", f"BYTES, BOOL or one of {sorted(_NUMBERS)}", "", field=f"{where}.datatype"
        )
    return name, [float(value) if isinstance(value, bool) else value for value in flat] if datatype == "BOOL" else flat


def describe_model(name: str, versions: Iterable[str], kinds: Mapping[str, str]) -> dict[str, Any]:
    """Model metadata as the protocol wants it."""
    return {
        "name": name,
        "versions": list(versions),
        "platform": "onnx_onnxruntime",
        "inputs": [{"name": column, "datatype": _DATATYPES[kind], "shape": [-1]} for column, kind in kinds.items()],
        "outputs": [{"name": n, "datatype": t, "shape": [-1]} for n, t in _OUTPUTS],
    }


_OUTPUTS = (("score", "FP64"), ("label", "INT64"), ("prediction_id", "BYTES"))


def to_tensors(answer: Answer, model: str, request_id: str) -> dict[str, Any]:
    """An answer as the protocol wants it."""
    data = {"score": answer.scores, "label": answer.labels, "prediction_id": answer.ids}
    outputs = [{"name": n, "datatype": t, "shape": [len(answer.ids)], "data": list(data[n])} for n, t in _OUTPUTS]
    parameters = {"arm": answer.arm, "epoch": answer.epoch}
    return {
        "model_name": model,
        "model_version": answer.version,
        "id": request_id,
        "parameters": parameters,
        "outputs": outputs,
    }


def to_json(answer: Answer) -> dict[str, Any]:
    """An answer of /predict."""
    rows = zip(answer.ids, answer.scores, answer.labels, strict=True)
    return {
        "predictions": [{"prediction_id": name, "score": score, "label": label} for name, score, label in rows],
        "model_version": answer.version,
        "arm": answer.arm,
        "epoch": answer.epoch,
    }


def failure(error: Exception, request_id: str) -> tuple[int, dict[str, Any]]:
    """Status and body of an error. What went wrong inside is not told, only its request id."""
    match error:
        case InvalidRequest():
            status, body = error.status, {**error.as_dict(), "field": error.field}
        case NotFound():
            status, body = 404, error.as_dict()
        case Conflict():
            status, body = 409, error.as_dict()
        case Unavailable():
            status, body = 503, error.as_dict()
        case _:
            inside = CtError("the request failed inside", "an answer", "look for the request id in the replica's log")
            status, body = 500, {**inside.as_dict(), "error": "InternalError"}
    return status, {"field": "", **body, "request_id": request_id}
