"""Reads one untrusted file in a process of its own: limits on memory and time, plain pyarrow, primitive types only.

Run as a script, `reading.py IN OUT CONTRACT`: writes a clean Arrow IPC file to OUT, or exits 3 with one JSON line {found, expected, remedy}.
Nothing of `ct` or Ray is imported here, so nothing in a file can reach Ray's own readers, and the process starts in a fraction of a second.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.json as pa_json
import pyarrow.parquet as pq

MEMORY_BYTES = 4 << 30
CPU_SECONDS = 300
MAX_RATIO = 200
MAX_CELL_BYTES = 1 << 20
REFUSED = 3
TIME = pa.timestamp("us", tz="UTC")
TYPES = {str(type_): type_ for type_ in (pa.bool_(), pa.int64(), pa.float64(), pa.string(), pa.date32(), TIME)}
"""The types of a contract by their spelling. Every column of a clean file has one of these, or null where it holds no value."""


class Refused(Exception):
    """The file cannot be read; carries found, expected, remedy."""


def read(path: Path, contract: Mapping[str, str]) -> pa.Table:
    """The file's rows, its columns of TYPES. `contract` {column: type} says how to read text formats. Raises Refused."""
    readers = {".parquet": _parquet, ".csv": _csv, ".jsonl": _jsonl}
    if path.stat().st_size == 0:
        raise Refused("the file is empty (0 bytes)", "a Parquet, CSV or JSON-lines file", "send it again")
    if path.suffix not in readers:
        raise Refused(f"the file's name ends in {path.suffix!r}", f"one of {sorted(readers)}", "convert or rename it")
    types = {name: TYPES[text] for name, text in contract.items()}
    try:
        table = readers[path.suffix](path, types)
        table.validate(full=True)
        return _clean(table)
    except (pa.ArrowException, OSError, ValueError) as error:
        said = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise Refused(f"the file is corrupt: {said}", "a whole, valid file", "send it again") from None


def _parquet(path: Path, types: Mapping[str, pa.DataType]) -> pa.Table:
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        plain = sum(file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups))
        if plain > MAX_RATIO * path.stat().st_size + (64 << 20):
            raise Refused(f"the file unpacks to {plain:,} bytes", f"at most {MAX_RATIO} times its size", "split it")
        for field in file.schema_arrow:
            _check_type(field)
        return file.read(use_threads=False)


def _csv(path: Path, types: Mapping[str, pa.DataType]) -> pa.Table:
    # Only an empty cell is a missing one: "NA" may be a country.
    options = pa_csv.ConvertOptions(column_types=dict(types), null_values=[""], strings_can_be_null=True)
    return pa_csv.read_csv(path, convert_options=options)


def _jsonl(path: Path, types: Mapping[str, pa.DataType]) -> pa.Table:
    # pyarrow's JSON reader takes a time without a zone for UTC, so times are read as text and converted here.
    asked = {name: pa.string() if type_ == TIME else type_ for name, type_ in types.items()}
    table = _json_lines(path, asked)
    if guessed := [field.name for field in table.schema if pa.types.is_timestamp(field.type)]:
        table = _json_lines(path, {**asked, **dict.fromkeys(guessed, pa.string())})
    for at, name in enumerate(table.column_names):
        if types.get(name) == TIME:
            table = table.set_column(at, name, table[name].cast(TIME))
        elif name not in types and pa.types.is_string(table[name].type):
            try:  # a column of nothing but zoned times is one, as in CSV
                table = table.set_column(at, name, table[name].cast(TIME))
            except pa.ArrowInvalid:
                continue
    return _without_absent(table, path, types)


def _json_lines(path: Path, types: Mapping[str, pa.DataType]) -> pa.Table:
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
    """One spelling a type: int64, double, string, microseconds UTC. Raises Refused, or ArrowInvalid for what does not fit."""
    names = table.column_names
    if len(set(names)) != len(names):
        raise Refused("two columns have the same name", "distinct names", "rename one")
    columns = []
    for field, column in zip(table.schema, table.columns, strict=True):
        _check_type(field)
        column = _spelled(column)
        if pa.types.is_string(column.type) and (pc.max(pc.binary_length(column)).as_py() or 0) > MAX_CELL_BYTES:
            raise Refused(f"column {field.name!r} has a cell of over {MAX_CELL_BYTES:,} bytes", "short text", "leave it out")
        columns.append(column)
    return pa.table(columns, names=names)


def _spelled(column: pa.ChunkedArray) -> pa.ChunkedArray:
    type_ = column.type
    if pa.types.is_dictionary(type_) or pa.types.is_large_string(type_):
        return column.cast(pa.string())
    if pa.types.is_integer(type_):
        return column.cast(pa.int64())
    if pa.types.is_floating(type_):
        return column.cast(pa.float64())
    if pa.types.is_date(type_):
        return column.cast(pa.date32())
    if pa.types.is_timestamp(type_):
        # Nanoseconds are cut off; a time too large for microseconds is an error.
        return column.cast(TIME, safe=type_.unit != "ns")
    return column


def main(source: Path, target: Path, contract: Mapping[str, str]) -> int:
    """The process's work; returns its exit code."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        table = read(source, contract)
        with pa.OSFile(str(target), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    except (Refused, MemoryError) as refused:
        words = (
            refused.args if isinstance(refused, Refused) else ("the file needs too much memory", "a smaller file", "split it")
        )
        print(json.dumps(dict(zip(("found", "expected", "remedy"), words, strict=True))))
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])))
