"""Reads one untrusted file in a process of its own: limits on memory and time, plain pyarrow, primitive types only.

Run as `python -m ct.data.reading IN OUT`: writes a clean Arrow IPC file to OUT, or exits 3 with one JSON line {found, expected, remedy}.
Nothing of Ray is imported here, so nothing in a file can reach Ray's own readers.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

MEMORY_BYTES = 4 << 30
CPU_SECONDS = 300
MAX_RATIO = 200
MAX_CELL_BYTES = 1 << 20


class Refused(Exception):
    """The file cannot be read; carries found, expected, remedy."""


def read(path: Path) -> Any:
    """The file's rows as an Arrow table of primitive types. Raises Refused."""
    import pyarrow as pa

    if path.stat().st_size == 0:
        raise Refused("the file is empty (0 bytes)", "a Parquet, CSV or JSON-lines file", "send it again")
    readers = {".parquet": _parquet, ".csv": _csv, ".jsonl": _jsonl}
    if path.suffix not in readers:
        raise Refused(f"the file's name ends in {path.suffix!r}", f"one of {sorted(readers)}", "convert or rename it")
    try:
        table = readers[path.suffix](path)
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise Refused(
            f"the file is corrupt: {str(error).splitlines()[0][:200]}", "a whole, valid file", "send it again"
        ) from None
    return _primitive(table)


def _parquet(path: Path) -> Any:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        plain = sum(file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups))
        if plain > MAX_RATIO * path.stat().st_size + (64 << 20):
            raise Refused(f"the file unpacks to {plain:,} bytes", f"at most {MAX_RATIO} times its size", "split it")
        for field in file.schema_arrow:
            _check_type(field)
        return file.read(use_threads=False)


def _csv(path: Path) -> Any:
    import pyarrow.csv as csv

    return csv.read_csv(path)


def _jsonl(path: Path) -> Any:
    import pyarrow.json as json_

    return json_.read_json(path)


def _check_type(field: Any) -> None:
    import pyarrow as pa

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


def _primitive(table: Any) -> Any:
    """One spelling a type: text as string, times as microseconds UTC, unsigned and small numbers as they are."""
    import pyarrow as pa
    import pyarrow.compute as pc

    names = table.column_names
    if len(set(names)) != len(names):
        raise Refused("two columns have the same name", "distinct names", "rename one")
    fields, columns = [], []
    for field, column in zip(table.schema, table.columns, strict=True):
        _check_type(field)
        type_ = field.type
        if pa.types.is_dictionary(type_) or pa.types.is_large_string(type_):
            column = column.cast(pa.string())
        elif pa.types.is_timestamp(type_):
            if type_.tz is None:
                raise Refused(f"column {field.name!r} has times without a zone", "timestamps in UTC", "write the zone")
            column = column.cast(pa.timestamp("us", tz="UTC"), safe=False)
        if pa.types.is_string(column.type) and len(column) and (pc.max(pc.binary_length(column)).as_py() or 0) > MAX_CELL_BYTES:
            raise Refused(f"column {field.name!r} has a cell of over {MAX_CELL_BYTES:,} bytes", "short text", "leave it out")
        fields.append(pa.field(field.name, column.type))
        columns.append(column)
    return pa.table(columns, schema=pa.schema(fields))


def main(source: Path, target: Path) -> int:
    """The process's work; returns its exit code."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    import pyarrow as pa

    try:
        table = read(source)
    except (Refused, MemoryError) as refused:
        words = (
            refused.args if isinstance(refused, Refused) else ("the file needs too much memory", "a smaller file", "split it")
        )
        print(json.dumps(dict(zip(("found", "expected", "remedy"), words, strict=True))))
        return 3
    with pa.OSFile(str(target), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
