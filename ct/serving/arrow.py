"""Batches as Arrow IPC streams, in and out. Bytes from outside are never trusted: plain columns only, nothing compressed, every offset checked."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ct.data.columns import kind_of
from ct.errors import InvalidRequest, InvalidShard
from ct.serving.answers import Answer

_EXTENSION = b"ARROW:extension:name"


def read(data: bytes, kinds: Mapping[str, str], most: int) -> list[dict[str, Any]]:
    """A stream's rows, at most `most`, as JSON would give them. `kinds` are the model's own columns ("number", "text" or "time").

    Raises InvalidRequest: 400 for what is no whole stream, 415 for compressed buffers, 422 for columns of another type.
    """
    try:
        for message in _messages(data):
            _check_plain(message)
        with pa.ipc.open_stream(pa.py_buffer(data)) as stream:
            _check_schema(stream.schema, kinds)
            batches, count = [], 0
            for batch in stream:
                count += batch.num_rows
                if count > most:
                    raise InvalidRequest(f"over {most} rows", f"at most {most}", "split the request")
                batch.validate(full=True)
                batches.append(batch)
            table = pa.Table.from_batches(batches, stream.schema)
    except (pa.ArrowException, OSError, struct.error, UnicodeDecodeError) as error:
        said = str(error).splitlines()[0][:150] if str(error) else "it ends too early"
        raise InvalidRequest(f"the body is no Arrow stream: {said}", "a whole stream", "mend it", status=400) from None
    columns = {name: _plain(name, table[name]) for name in table.column_names}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def write(answer: Answer) -> bytes:
    """The answer as a stream of one batch: a column for each part; those with a value for each class or quantile are several."""
    columns: dict[str, Any] = {}
    for item in answer.tensors():
        if len(item["shape"]) == 1:
            columns[item["name"]] = pa.array(item["data"])
            continue
        wide = np.array(item["data"]).reshape(item["shape"])
        for at, name in enumerate(item["parameters"]["columns"]):
            columns[f"{item['name']} {name}"] = pa.array(wide[:, at])
    told = {"model_version": answer.version, "arm": answer.arm, "epoch": str(answer.epoch)}
    table = pa.table(columns).replace_schema_metadata(told)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return bytes(sink.getvalue().to_pybytes())


def _check_schema(schema: pa.Schema, kinds: Mapping[str, str]) -> None:
    for field in schema:
        if field.name not in kinds:
            raise InvalidRequest(
                f"the unknown column {field.name[:60]!r}", f"columns {sorted(kinds)}", "leave it out", field=field.name[:100]
            )
        extended = isinstance(field.type, pa.BaseExtensionType) or _EXTENSION in (field.metadata or {})
        try:
            kind = "an extension type" if extended or pa.types.is_dictionary(field.type) else kind_of(field.type)
        except InvalidShard:
            kind = "no plain type"
        if kind == "time" and (not pa.types.is_timestamp(field.type) or field.type.tz is None):
            kind = "a time without a zone"
        if kind != kinds[field.name]:
            raise InvalidRequest(
                f"column {field.name!r} of type {str(field.type)[:60]}: {kind}",
                {"time": "a timestamp with a time zone"}.get(kinds[field.name], f"a plain {kinds[field.name]} type"),
                "convert it",
                field=field.name,
            )
    names = schema.names
    if lacking := sorted(set(kinds) - set(names)):
        raise InvalidRequest(f"the column {lacking[0]!r} is missing", f"columns {sorted(kinds)}", "add it", field=lacking[0])
    if len(set(names)) != len(names):
        raise InvalidRequest("a column's name stands there twice", "each once", "leave one out", status=400)


def _plain(name: str, column: pa.ChunkedArray) -> list[Any]:
    """A column's values as JSON has them; missing ones are None. Raises InvalidRequest for NaN, infinities and NUL."""
    if pa.types.is_timestamp(column.type):
        return _times(name, column)
    if pa.types.is_boolean(column.type):
        return list(column.cast(pa.int8()).to_pylist())
    if pa.types.is_floating(column.type) and pc.all(pc.is_finite(column.cast(pa.float64()))).as_py() is False:
        raise InvalidRequest(f"column {name!r} holds NaN or an infinity", "finite numbers or null", "use null", field=name)
    values = list(column.to_pylist())
    if any(isinstance(value, str) and "\0" in value for value in values):
        raise InvalidRequest("a NUL character in a text", "text without NUL", "leave it out", field=name)
    return values


def _times(name: str, column: pa.ChunkedArray) -> list[str | None]:
    finer = column.type.unit == "ns"  # what is below a microsecond is cut off, as it is everywhere
    try:
        values = column.cast(pa.timestamp("us", tz="UTC"), safe=not finer).to_pylist()
    except (pa.ArrowException, OverflowError, ValueError):
        raise InvalidRequest(
            f"column {name!r} holds a time that no calendar has", "years 1 to 9999", "mend it", field=name
        ) from None
    return [None if value is None else value.isoformat() for value in values]


def _messages(data: bytes) -> Iterator[memoryview]:
    """The metadata of each message of a stream. Layout: https://arrow.apache.org/docs/format/Columnar.html#encapsulated-message-format"""
    at, view = 0, memoryview(data)
    while at + 8 <= len(data):
        mark, size = struct.unpack_from("<Ii", data, at)
        if mark != 0xFFFFFFFF:
            raise pa.ArrowInvalid("a message of an old format, or none")
        if size == 0:
            return
        if size < 0 or at + 8 + size > len(data):
            raise pa.ArrowInvalid("a message longer than the body")
        message = view[at + 8 : at + 8 + size]
        yield message
        length = _scalar(message, _root(message), 3, "<q")
        if length < 0 or length > len(data):
            raise pa.ArrowInvalid("a message longer than the body")
        at += 8 + size + length
    if at != len(data):
        raise pa.ArrowInvalid("a body that ends in the middle of a message")


def _check_plain(message: memoryview) -> None:
    """Raises InvalidRequest for a batch of compressed buffers: what they would grow to is known only by letting them."""
    root = _root(message)
    kind = _scalar(message, root, 1, "<B")
    if kind not in (1, 3):
        raise InvalidRequest("a message that is neither schema nor batch", "plain columns", "send no dictionaries", field="")
    header = _offset(message, root, 2)
    if kind == 3 and header and _offset(message, header, 3):
        raise InvalidRequest("compressed buffers", "a plain stream", "write it without compression", status=415)


# A flatbuffer table begins with the way back to its list of fields: [size, size of table, place of field 0, 1, …], two bytes each, 0 for absent.


def _root(data: memoryview) -> int:
    return int(struct.unpack_from("<I", data, 0)[0])


def _place(data: memoryview, table: int, number: int) -> int:
    fields = table - int(struct.unpack_from("<i", data, table)[0])
    if fields < 0 or 4 + 2 * number >= int(struct.unpack_from("<H", data, fields)[0]):
        return 0
    found = int(struct.unpack_from("<H", data, fields + 4 + 2 * number)[0])
    return table + found if found else 0


def _scalar(data: memoryview, table: int, number: int, kind: str) -> int:
    place = _place(data, table, number)
    return int(struct.unpack_from(kind, data, place)[0]) if place else 0


def _offset(data: memoryview, table: int, number: int) -> int:
    place = _place(data, table, number)
    return place + int(struct.unpack_from("<I", data, place)[0]) if place else 0
