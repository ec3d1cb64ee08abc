"""Looking for a text in the bytes of files: raw, and in the decoded values of Parquet, Arrow and Avro files. Nothing found is ever shown."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ct.data import needles
from ct.errors import Corrupt, NotFound
from ct.store.files import Files, open_input

SHORT = 6
"""Texts of fewer bytes turn up in compressed bytes by chance: they are looked for in decoded columns of the given names only."""
_PIECE = 1 << 22


@dataclass(frozen=True)
class Wanted:
    """A text, the names of columns that may hold it whole, and rows it stands for: (column, value) pairs that hold together.

    `others` are longer texts that may stay: where one of them is, it is no trace (of "customer-1" that there is a "customer-10").
    """

    text: str
    columns: tuple[str, ...]
    row: tuple[tuple[str, Any], ...]
    others: tuple[str, ...] = ()

    @property
    def needles(self) -> tuple[bytes, ...]:
        """The text as bytes, plain and as JSON may spell it."""
        return tuple(sorted(_spellings(self.text)))

    @cached_property
    def longer(self) -> tuple[bytes, ...]:
        """The other texts likewise."""
        return tuple(sorted({spelling for other in self.others for spelling in _spellings(other)}))

    def within(self, data: bytes) -> bool:
        """Is the text in these bytes?"""
        return needles.within(data, self.needles, self.longer)

    @property
    def short(self) -> bool:
        """Is it too short to be looked for in raw bytes?"""
        return len(self.text.encode()) < SHORT


def _spellings(text: str) -> set[bytes]:
    return {text.encode(), json.dumps(text)[1:-1].encode(), json.dumps(text, ensure_ascii=False)[1:-1].encode()}


@dataclass(frozen=True)
class Searched:
    """What was looked through, and the addresses of files that hold the text with what part of them does."""

    files: int
    size: int
    hits: tuple[tuple[str, str], ...]


def search(places: Iterable[Files], wanted: Wanted, *, closed: str = "") -> Searched:
    """Look through every file below `places`, hidden ones too; of those below the address `closed` only raw bytes, nothing is decoded.

    A file that goes meanwhile is no fault.
    """
    count, size, hits, seen = 0, 0, [], set()
    for place in places:
        for address in _addresses(place):
            if address not in seen:
                seen.add(address)
                found, read = look(address, wanted, decode=not (closed and address.startswith(f"{closed}/")))
                count, size = count + 1, size + read
                if found:
                    hits.append((address, found))
    return Searched(count, size, tuple(hits))


def _addresses(place: Files) -> Iterator[str]:
    if place.local is None:
        yield from (place.address(entry.name) for entry in place.list())
    elif place.local.is_dir():
        yield from (str(path) for path in sorted(place.local.rglob("*")) if path.is_file() and not path.is_symlink())


def look(address: str, wanted: Wanted, *, decode: bool = True) -> tuple[str, int]:
    """What part of a file holds the text ("" when none does), and the file's size."""
    try:
        if "://" not in address and needles.is_sqlite(address):
            size = Path(address).stat().st_size
            return ("bytes" if not wanted.short and needles.holds_apart(address, wanted.needles, wanted.longer) else ""), size
        with _opened(address) as file:
            size, head = file.size(), file.read(8)
            if not wanted.short and _raw(file, wanted):
                return "bytes", size
            if not decode:
                return "", size
            file.seek(0)
            try:
                if head[:4] == b"PAR1":
                    return _tables(_parquet(file), wanted), size
                if head[:6] == b"ARROW1":
                    return _tables(_arrow(file), wanted), size
                if head[:4] == b"Obj\x01" and not wanted.short:
                    return ("values" if any(map(wanted.within, _avro(file.read()))) else ""), size
            except (pa.ArrowException, OSError, Corrupt):
                return "", size  # half a file: its raw bytes were looked at
            return "", size
    except (FileNotFoundError, NotFound):
        return "", 0


@contextmanager
def _opened(address: str) -> Iterator[pa.NativeFile]:
    if "://" not in address and not Path(address).stat().st_size:
        with pa.BufferReader(b"") as empty:
            yield empty
        return
    with open_input(address) as file:
        yield file


def _raw(file: pa.NativeFile, wanted: Wanted) -> bool:
    """Is the text in the file's bytes?"""
    file.seek(0)
    return needles.holds(file.read, wanted.needles, wanted.longer, _PIECE)


def _parquet(file: pa.NativeFile) -> Iterator[pa.Table]:
    opened = pq.ParquetFile(file)
    for group in range(opened.num_row_groups):
        yield opened.read_row_group(group)


def _arrow(file: pa.NativeFile) -> Iterator[pa.Table]:
    opened = pa.ipc.open_file(file)
    for at in range(opened.num_record_batches):
        yield pa.Table.from_batches([opened.get_batch(at)])


def _tables(tables: Iterable[pa.Table], wanted: Wanted) -> str:
    for table in tables:
        if wanted.row and all(name in table.column_names for name, _ in wanted.row) and _row(table, wanted):
            return "rows"
        for name in table.column_names:
            if _holds(table[name], name, wanted):
                return f"column {name}"
    return ""


def _row(table: pa.Table, wanted: Wanted) -> bool:
    mask = None
    for name, value in wanted.row:
        column = table[name]
        column = column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
        try:
            equal = pc.equal(column, pa.scalar(value).cast(column.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            return False
        mask = equal if mask is None else pc.and_(mask, equal)
    return bool(pc.any(mask).as_py())


def _holds(column: pa.ChunkedArray, name: str, wanted: Wanted) -> bool:
    type_ = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_binary(type_)):
        return False
    for chunk in column.chunks:
        values = chunk.dictionary if pa.types.is_dictionary(chunk.type) else chunk
        if wanted.short:
            if name in wanted.columns and pc.any(pc.equal(values.cast(pa.large_string()), wanted.text)).as_py():
                return True
        else:
            data = values.cast(pa.large_binary())
            for needle in wanted.needles:
                if any(map(wanted.within, data.filter(pc.match_substring(data, needle)).unique().to_pylist())):
                    return True
    return False


def _avro(data: bytes) -> Iterator[bytes]:
    """The blocks of an Avro object container file, inflated. See the Avro specification 1.11, "Object Container Files"."""
    at, codec = 4, b"null"
    while count := _long(data, at):
        entries, at = count
        if not entries:
            break
        if entries < 0:  # a size in bytes follows
            entries, at = -entries, _long(data, at)[1]
        for _ in range(entries):
            key, at = _bytes(data, at)
            value, at = _bytes(data, at)
            codec = value if key == b"avro.codec" else codec
    at += 16
    while at < len(data):
        _, at = _long(data, at)
        block, at = _bytes(data, at)
        yield zlib.decompress(block, -15) if codec == b"deflate" else block
        at += 16


def _bytes(data: bytes, at: int) -> tuple[bytes, int]:
    size, at = _long(data, at)
    if size < 0 or at + size > len(data):
        raise Corrupt("an Avro file that ends early", "a whole file", "look at it")
    return data[at : at + size], at + size


def _long(data: bytes, at: int) -> tuple[int, int]:
    """A zigzag number of variable length."""
    value, shift = 0, 0
    while at < len(data):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return (value >> 1) ^ -(value & 1), at
        shift += 7
    raise Corrupt("an Avro file that ends early", "a whole file", "look at it")
