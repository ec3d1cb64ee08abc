"""Arrays and a JSON header as one string of bytes: versioned, compressed, and read without running anything that it holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ct.errors import Corrupt
from ct.ids import Json, canonical

_ALIGN = 64
_KINDS = "uif"
MAX_BYTES = 4 << 30
"""Plain size of the arrays at most: what a header promises is bounded before it is believed."""


def pack(magic: bytes, header: Json, arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """`magic`, the header as plain text, and the arrays, compressed. `unpack` gives them back."""
    shapes, body, size = [], [], 0
    for name, array in arrays.items():
        raw = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False)).tobytes()
        gap = -len(raw) % _ALIGN
        shapes.append([name, array.dtype.newbyteorder("<").str, list(array.shape)])
        body += [raw, bytes(gap)]
        size += len(raw) + gap
    head = canonical({"header": header, "arrays": shapes, "bytes": size}).encode()
    squeezed: bytes = pa.compress(b"".join(body), codec="zstd", asbytes=True)
    return magic + len(head).to_bytes(8, "little") + head + squeezed


def unpack(magic: bytes, data: bytes) -> tuple[Json, dict[str, NDArray[Any]]]:
    """The header and the arrays, which are read-only views. Raises Corrupt for bytes that `pack` did not write."""
    start = len(magic) + 8
    try:
        if data[: len(magic)] != magic:
            raise ValueError(f"they begin with {data[: len(magic)]!r}")
        stop = start + int.from_bytes(data[len(magic) : start], "little")
        head = json.loads(data[start:stop])
        if not 0 <= head["bytes"] <= MAX_BYTES:
            raise ValueError(f"they promise {head['bytes']} bytes")
        plain = pa.decompress(memoryview(data)[stop:], decompressed_size=head["bytes"], codec="zstd")
        return head["header"], _views(plain, head["arrays"])
    except (ValueError, KeyError, TypeError, OSError, pa.ArrowException) as error:
        raise Corrupt(
            f"{len(data)} bytes are no {magic.decode()}: {error}", "the bytes that were stored", "make it anew"
        ) from None


def _views(plain: pa.Buffer, shapes: list[list[Any]]) -> dict[str, NDArray[Any]]:
    views, at = {}, 0
    for name, spelled, shape in shapes:
        dtype = np.dtype(spelled)
        if dtype.kind not in _KINDS:
            raise ValueError(f"array {name!r} is of type {dtype}")
        count = int(np.prod(shape, dtype=np.int64))
        views[name] = np.frombuffer(plain, dtype, count, at).reshape(shape)
        at += count * dtype.itemsize
        at += -at % _ALIGN
    return views
