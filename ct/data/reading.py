"""Reads one untrusted file in a process of its own: limits on memory and time, plain pyarrow, primitive types only.

Run as a script, `reading.py SOCKET`, it forks a process for each file that it is asked for, which writes a clean Arrow IPC file or says why not.
Nothing of `ct` or Ray is imported here, so nothing in a file can reach Ray's own readers; pyarrow is imported once and not for every file.
"""

from __future__ import annotations

import json
import os
import re
import resource
import socket
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

MEMORY_BYTES = 4 << 30
CPU_SECONDS = 300
MAX_RATIO = 100
MAX_CELL_BYTES = 1 << 20
LARGEST = 1 << 53
REFUSED = 3
TIME = pa.timestamp("us", tz="UTC")
TYPES = {str(type_): type_ for type_ in (pa.bool_(), pa.int64(), pa.float64(), pa.string(), pa.date32(), TIME)}
"""The types of a contract by their spelling. Every column of a clean file has one of these, or null where it holds no value;
texts of few values come as dictionaries."""
_FREE_BYTES = 64 << 20
_CODE_BYTES = 3
_SAID_BYTES = 1 << 14
_THREADS = 4
_CSV_FAULT = re.compile(r"In CSV column #(\d+): CSV conversion error to ([^:]+): [^']*'(.*)'", re.DOTALL)


class Refused(Exception):
    """The file cannot be read; carries found, expected, remedy. `telling` where `found` may hold something that stood in the file."""

    def __init__(self, found: str, expected: str, remedy: str, *, telling: bool = True) -> None:
        super().__init__(found, expected, remedy)
        self.telling = telling


@dataclass(frozen=True)
class Asked:
    """How to read: the `types` of a text format's columns by their spelling, columns whose values may not be told (`hidden`), and
    whether nothing of the file may be told at all (`quiet`)."""

    types: Mapping[str, str]
    hidden: Collection[str] = ()
    quiet: bool = False

    @property
    def arrow(self) -> dict[str, pa.DataType]:
        """The types themselves."""
        return {name: TYPES[text] for name, text in self.types.items()}


def read(path: Path, asked: Asked) -> pa.Table:
    """The file's rows, its columns of TYPES. Raises Refused."""
    readers = {".parquet": _parquet, ".csv": _csv, ".jsonl": _jsonl}
    if path.stat().st_size == 0:
        raise Refused("the file is empty (0 bytes)", "a Parquet, CSV or JSON-lines file", "send it again", telling=False)
    if path.suffix not in readers:
        raise Refused(f"the file's name ends in {path.suffix!r}", f"one of {sorted(readers)}", "convert or rename it")
    try:
        table = readers[path.suffix](path, asked)
        table.validate()
        return _clean(table)
    except MemoryError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        said = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise Refused(f"the file is corrupt: {said}", "a whole, valid file", "send it again") from None


def _parquet(path: Path, asked: Asked) -> pa.Table:
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        for field in file.schema_arrow:
            _check_type(field)
        coded = _measured(file.metadata, file.schema_arrow, path.stat().st_size)
    with pq.ParquetFile(path, page_checksum_verification=True, read_dictionary=coded, memory_map=True) as file:
        return file.read()


def _measured(footer: pq.FileMetaData, schema: pa.Schema, size: int) -> list[str]:
    """The texts of few values, which are read as dictionaries. Raises Refused for what would unpack to too much, before it is read."""
    groups = [footer.row_group(at) for at in range(footer.num_row_groups)]
    plain = sum(group.total_byte_size for group in groups)
    if plain > min(MAX_RATIO * size + _FREE_BYTES, MEMORY_BYTES // 2):
        most = f"at most {MAX_RATIO} times its size and {MEMORY_BYTES // 2:,} bytes"
        raise Refused(f"the file unpacks to {plain:,} bytes", most, "split it", telling=False)
    coded = []
    for at, field in enumerate(schema):
        chunks = [group.column(at) for group in groups]
        if any(chunk.total_uncompressed_size > chunk.num_values * MAX_CELL_BYTES + 4096 for chunk in chunks):
            raise _long(field.name)
        text = pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
        # A dictionary keeps few values few: one long text named by a million rows is read once.
        if text and all(chunk.total_uncompressed_size <= chunk.num_values * _CODE_BYTES + 65_536 for chunk in chunks):
            coded.append(field.name)
    return coded


def _csv(path: Path, asked: Asked) -> pa.Table:
    import pyarrow.csv as pa_csv

    # Only an empty cell is a missing one: "NA" may be a country.
    options = pa_csv.ConvertOptions(column_types=asked.arrow, null_values=[""], strings_can_be_null=True)
    try:
        rows = pa_csv.read_csv(path, convert_options=options)
        if not (codes := _codes(path, [field for field in rows.schema if field.name not in asked.arrow])):
            return rows
        options.column_types = {**asked.arrow, **dict.fromkeys(codes, pa.string())}
        return pa_csv.read_csv(path, convert_options=options)
    except pa.ArrowInvalid as error:
        if fault := _CSV_FAULT.search(str(error)):
            names = pa_csv.open_csv(path, convert_options=pa_csv.ConvertOptions(column_types=_texts(path))).schema.names
            raise _wrong(names[int(fault[1])], fault[3], fault[2], asked.hidden) from None
        # The rest of the sentence is the row itself.
        raise ValueError(re.sub(r"(Expected \d+ columns, got \d+).*", r"\1", str(error), flags=re.DOTALL)) from None


def _texts(path: Path) -> dict[str, pa.DataType]:
    import pyarrow.csv as pa_csv

    with path.open("rb") as file:
        header = pa_csv.read_csv(pa.py_buffer(file.readline(MAX_CELL_BYTES)))
    return dict.fromkeys(header.column_names, pa.string())


def _wrong(name: str, value: str, kind: str, hidden: Collection[str]) -> Refused:
    told = "" if name in hidden else f": {value[:40]!r}"
    expected = "times with a zone, such as 2013-04-01T10:00:00Z" if kind.startswith("timestamp") else f"values of type {kind}"
    return Refused(f"column {name!r} has a value that cannot be read as {kind}{told}", expected, "mend the column")


def _jsonl(path: Path, asked: Asked) -> pa.Table:
    # pyarrow's JSON reader takes a time without a zone for UTC, so times are read as text and converted here.
    types = asked.arrow
    wanted = {name: pa.string() if type_ == TIME else type_ for name, type_ in types.items()}
    table = _json_lines(path, wanted)
    if guessed := [field.name for field in table.schema if pa.types.is_timestamp(field.type)]:
        table = _json_lines(path, {**wanted, **dict.fromkeys(guessed, pa.string())})
    for at, name in enumerate(table.column_names):
        if types.get(name) == TIME:
            table = table.set_column(at, name, _times(table[name], name, asked.hidden))
        elif name not in types and pa.types.is_string(table[name].type):
            try:  # a column of nothing but zoned times is one, as in CSV
                table = table.set_column(at, name, table[name].cast(TIME))
            except pa.ArrowInvalid:
                continue
    return _without_absent(table, path, types)


def _times(column: pa.ChunkedArray, name: str, hidden: Collection[str]) -> pa.ChunkedArray:
    try:
        return column.cast(TIME)
    except pa.ArrowInvalid as error:
        said = re.search(r"'(.*?)'", str(error))
        raise _wrong(name, said[1] if said else "", str(TIME), hidden) from None


def _json_lines(path: Path, types: Mapping[str, pa.DataType]) -> pa.Table:
    import pyarrow.json as pa_json

    return pa_json.read_json(path, parse_options=pa_json.ParseOptions(explicit_schema=pa.schema(list(types.items()))))


def _without_absent(table: pa.Table, path: Path, types: Mapping[str, pa.DataType]) -> pa.Table:
    """Without the columns that no line names: an explicit schema makes pyarrow add them, full of nulls."""
    empty = [name for name in types if table[name].null_count == table.num_rows]
    named = set(_json_lines(path, {}).column_names) if empty else set()
    return table.drop_columns([name for name in empty if name not in named])


def _check_type(field: pa.Field) -> None:
    type_ = field.type
    if isinstance(type_, pa.BaseExtensionType) or (field.metadata and b"ARROW:extension:name" in field.metadata):
        raise Refused(f"column {field.name!r} has the extension type {type_}", "primitive types", "store plain values")
    checks = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_string, pa.types.is_large_string)
    plain = any(check(type_) for check in (*checks, pa.types.is_timestamp, pa.types.is_date, pa.types.is_null))
    if not plain and not (pa.types.is_dictionary(type_) and pa.types.is_string(type_.value_type)):
        raise Refused(
            f"column {field.name!r} has the type {type_}",
            "numbers, booleans, text, dates or timestamps",
            "leave it out or flatten it",
        )
    if pa.types.is_timestamp(type_) and type_.tz is None:
        raise Refused(f"column {field.name!r} has times without a zone", "timestamps in UTC", "write the zone")


def _clean(table: pa.Table) -> pa.Table:
    """One spelling a type: int64, double, string, microseconds UTC. Raises Refused for what does not fit."""
    names = table.column_names
    if len(set(names)) != len(names):
        raise Refused("two columns have the same name", "distinct names", "rename one", telling=False)
    columns = []
    for field, column in zip(table.schema, table.columns, strict=True):
        _check_type(field)
        try:
            columns.append(_spelled(column))
        except pa.ArrowInvalid:
            limit = (
                "times within a microsecond and the years 1 to 9999" if pa.types.is_timestamp(field.type) else "64-bit numbers"
            )
            found = f"column {field.name!r} has values of type {field.type} that would change"
            raise Refused(found, limit, "round them, or store text") from None
        if any(_longest(chunk) > MAX_CELL_BYTES for chunk in columns[-1].chunks):
            raise _long(field.name)
        if pa.types.is_integer(columns[-1].type) and _largest(columns[-1]) > LARGEST:
            found = f"column {field.name!r} has whole numbers beyond 2^53, which features and checks would round"
            raise Refused(found, "numbers that a double holds", "send ids and codes as text")
    return pa.table(columns, names=names).unify_dictionaries()


def _largest(column: pa.ChunkedArray) -> int:
    import pyarrow.compute as pc

    return max((abs(value) for value in pc.min_max(column).as_py().values() if value is not None), default=0)


def _codes(path: Path, fields: list[pa.Field]) -> list[str]:
    """Columns that look like numbers and are not: 00501 is a code, and as a number it would be 501."""
    import pyarrow.compute as pc
    import pyarrow.csv as pa_csv

    numbers = [field.name for field in fields if pa.types.is_integer(field.type) or pa.types.is_floating(field.type)]
    if not numbers:
        return []
    options = pa_csv.ConvertOptions(column_types=dict.fromkeys(numbers, pa.string()), include_columns=numbers)
    texts = pa_csv.read_csv(path, convert_options=options)
    return [name for name in numbers if pc.any(pc.match_substring_regex(texts[name], r"^[+-]?0[0-9]")).as_py()]


def _longest(chunk: pa.Array) -> int:
    values = chunk.dictionary if pa.types.is_dictionary(chunk.type) else chunk
    if not pa.types.is_string(values.type) or not len(values):
        return 0
    bounds = np.frombuffer(values.buffers()[1], dtype=np.int32)[values.offset : values.offset + len(values) + 1]
    return int(np.diff(bounds).max())


def _long(name: str) -> Refused:
    return Refused(f"column {name!r} has a cell of over {MAX_CELL_BYTES:,} bytes", "short text", "leave it out")


def _spelled(column: pa.ChunkedArray) -> pa.ChunkedArray:
    type_ = column.type
    if pa.types.is_dictionary(type_):
        return column.cast(pa.dictionary(pa.int32(), pa.string()))
    wanted = {
        pa.types.is_large_string: pa.string(),
        pa.types.is_integer: pa.int64(),
        pa.types.is_floating: pa.float64(),
        pa.types.is_date: pa.date32(),
        pa.types.is_timestamp: TIME,
    }
    return next((column.cast(target) for fits, target in wanted.items() if fits(type_)), column)


def serve(handle: int) -> None:
    """Answer what is asked over a socket, one line of JSON and a file to write to at a time, until the one that asks is gone."""
    with socket.socket(fileno=handle) as asking:
        while True:
            line, targets, _, _ = socket.recv_fds(asking, 1 << 16, 1)
            while line and not line.endswith(b"\n"):
                line += asking.recv(1 << 16)
            if not line:
                return
            code, said = _forked(asking, targets[0], json.loads(line))
            asking.sendall(json.dumps({"code": code, "said": said.decode(errors="replace")}).encode() + b"\n")


def _forked(asking: socket.socket, target: int, asked: dict[str, Any]) -> tuple[int, bytes]:
    """The exit code of the process that read the file, and what it says."""
    source, sink = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            asking.close()
            os.close(source)
            code = main(Path(asked.pop("path")), f"/dev/fd/{target}", sink, Asked(**asked))
        finally:
            os._exit(code)
    os.close(sink)
    os.close(target)
    with os.fdopen(source, "rb") as words:
        said = words.read(_SAID_BYTES)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said


def main(source: Path, target: str, sink: int, asked: Asked) -> int:
    """One file's work; returns the exit code. Why it is refused is written to `sink` as {found, expected, remedy}."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pa.set_cpu_count(min(os.cpu_count() or 1, _THREADS))
    try:
        table = read(source, asked)
        with pa.OSFile(target, "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    except (Refused, MemoryError) as refused:
        words = dict(zip(("found", "expected", "remedy"), _words(refused, asked.quiet), strict=True))
        os.write(sink, json.dumps(words).encode())
        return REFUSED
    return 0


def _words(refused: Refused | MemoryError, quiet: bool) -> tuple[Any, ...]:
    if isinstance(refused, MemoryError):
        return "the file needs too much memory", "a smaller file", "split it"
    if quiet and refused.telling:
        return (
            "the file cannot be read, and has personal columns, so that nothing of it is told",
            "a valid file",
            "look at it at its source",
        )
    return refused.args


if __name__ == "__main__":
    serve(int(sys.argv[1]))
