"""Writes what one snapshot of somebody else's table added as one Parquet file, in a process of its own: the rows are untrusted bytes too.

Run as a module, `python -m ct.data.sources.extract MODULE SPEC POSITION ROOT TARGET`. The same rows in the same order give the same bytes:
row groups of a fixed length whatever the batches were, no metadata but names and types, one thread, one codec.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from ct import errors
from ct.data.reading import CPU_SECONDS, MEMORY_BYTES, REFUSED

GROUP_ROWS = 131_072
SECONDS = 900
FILE_BYTES = 4 << 30
_ENVIRONMENT = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "LD_LIBRARY_PATH",
    "PYTHONPATH",
    "PYTHONHOME",
    "TMPDIR",
    "VIRTUAL_ENV",
    "SSL_CERT_FILE",
)
_PREFIXES = ("AWS_", "PYICEBERG_")


class Extractable(Protocol):
    """A source whose shards are made out of a table's rows. A frozen dataclass of plain values."""

    def rows(self, position: str, root: Path) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
        """What the snapshot at `position` brought, always in the same order."""
        ...


def extract(source: Any, position: str, root: Path, target: Path) -> Path:
    """Let a child process write the rows of `source` at `position` to `target`. Raises what the child raised, or InvalidShard when it died."""
    spec = json.dumps(asdict(source))
    command = [
        sys.executable,
        "-m",
        __name__,
        type(source).__module__,
        type(source).__name__,
        spec,
        position,
        str(root),
        str(target),
    ]
    environ = {name: value for name, value in os.environ.items() if name in _ENVIRONMENT or name.startswith(_PREFIXES)}
    try:
        child = subprocess.run(command, capture_output=True, timeout=SECONDS, env=environ, check=False)
    except subprocess.TimeoutExpired:
        raise errors.Unavailable(
            f"{source.explain()} took over {SECONDS} s to read", "a source that answers", "look again"
        ) from None
    if child.returncode == REFUSED:
        said = json.loads(child.stdout)
        raise getattr(errors, said["error"])(said["found"], said["expected"], said["remedy"])
    if child.returncode != 0:
        last = child.stderr.decode(errors="replace").strip().rpartition("\n")[2][:200]
        raise errors.InvalidShard(
            f"{source.explain()}: the process that read {position} ended with code {child.returncode} ({last})",
            f"rows that are read within {MEMORY_BYTES >> 30} GiB of memory and make a file of {FILE_BYTES >> 30} GiB at most",
            "export them by hand, `ct ingest` the files, then go on with `ct ingest TABLE --new --after`",
        )
    return target


def write(schema: pa.Schema, batches: Iterator[pa.RecordBatch], target: Path) -> None:
    """The rows as a Parquet file whose bytes depend on names, types and values alone."""
    plain = pa.schema([pa.field(field.name, field.type, field.nullable) for field in schema])
    held: list[pa.RecordBatch] = []
    count = 0
    with pq.ParquetWriter(target, plain, compression="zstd", store_schema=False) as writer:
        for batch in batches:
            held.append(pa.RecordBatch.from_arrays(batch.columns, schema=plain))
            count += batch.num_rows
            if count >= GROUP_ROWS:
                table = pa.Table.from_batches(held)
                whole = count - count % GROUP_ROWS
                writer.write_table(table.slice(0, whole), row_group_size=GROUP_ROWS)
                held, count = table.slice(whole).to_batches(), count - whole
        writer.write_table(pa.Table.from_batches(held, schema=plain), row_group_size=GROUP_ROWS)


def main(module: str, name: str, spec: str, position: str, root: str, target: str) -> int:
    """The process's work; returns its exit code."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        source: Extractable = getattr(import_module(module), name)(**json.loads(spec))
        write(*source.rows(position, Path(root)), Path(target))
    except errors.CtError as error:
        print(json.dumps(error.as_dict()))
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
