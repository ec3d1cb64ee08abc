"""An arriving file: what it is called, what it is, and its rows, read by a child process that may die of them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from ct.data import catalog, reading
from ct.data.checks import Reason
from ct.data.tables import ShardFile
from ct.errors import InvalidShard
from ct.ids import fingerprint, sha256, sha256_file
from ct.pipeline import Table

READ_SECONDS = 300
SUFFIXES = (".parquet", ".csv", ".jsonl")
_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME", "TMPDIR", "VIRTUAL_ENV")


@dataclass(frozen=True)
class Arrived:
    """A file, the shard it would be, and the table it would belong to. `rules` names the table's declaration, `now` the moment (µs UTC)."""

    path: Path
    shard: str
    digest: str
    table: Table
    rules: str
    origin: str
    now: int

    @property
    def stream(self) -> str:
        """The table's stream in the journal."""
        return catalog.stream(self.table.name)

    @property
    def format(self) -> str:
        """How the file is written."""
        return self.path.suffix.lstrip(".")


class Refusal(Exception):
    """The file goes to quarantine: why, and its rows as far as they could be read, personal columns veiled."""

    def __init__(self, reasons: tuple[Reason, ...], rows: pa.Table | None = None) -> None:
        super().__init__(reasons)
        self.reasons, self.rows = reasons, rows


def fault(check: str, found: str, expected: str) -> Reason:
    """A reason that concerns the file as a whole."""
    return Reason(check, f"{found}; expected {expected}", 0)


def arrived(path: Path, table: Table, *, origin: str, now: int) -> Arrived:
    """The file at `path`. Raises InvalidShard when there is none or it cannot be read."""
    if not path.is_file():
        raise InvalidShard(f"{path} is no file", "a Parquet, CSV or JSON-lines file", "check the path")
    try:
        digest = sha256(os.readlink(path)) if path.is_symlink() else sha256_file(path)  # what a link points to is never opened
    except OSError as error:
        raise InvalidShard(f"{path} cannot be read: {error.strerror}", "a readable file", "check its permissions") from None
    shard = "".join(letter if letter.isprintable() else "?" for letter in path.stem)
    rules = fingerprint([table.keys, table.time, table.checks, table.policy, table.personal])
    return Arrived(path, shard, digest, table, rules, origin, now)


def check_name(file: Arrived, shards: tuple[ShardFile, ...]) -> None:
    """Raises Refusal for a file that is a link or whose name is taken or cannot be one."""
    if file.path.is_symlink():
        raise Refusal((fault("file", "a symbolic link", "the file itself"),))
    if file.shard != file.path.stem or len(file.shard) > 100:
        raise Refusal((fault("file", f"the name {file.shard[:40]!r}…", "at most 100 printable characters"),))
    if any(shard.shard == file.shard for shard in shards):
        found = f"shard {file.shard!r} is published already, with other bytes"
        raise Refusal((fault("file", found, "a new name for new rows"),))


def read(file: Arrived, contract: pa.Schema | None, reader: Reader) -> pa.Table:
    """The file's rows as they came. Raises Refusal, or InvalidShard when somebody writes to the file meanwhile."""
    personal = {part.column for part in file.table.personal}
    types = {field.name: str(field.type) for field in contract or () if field.name not in personal}
    if file.path.suffix == ".csv":
        types |= dict.fromkeys(personal, "string")
    asked = {"types": types, "hidden": [*file.table.keys, *personal], "quiet": bool(personal)}
    with _nameless() as target:
        before = file.path.stat()
        code, said = reader.ask(file.path, target, asked)
        after = file.path.stat()
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise InvalidShard(
                f"{file.path.name} changed while it was read", "a finished file", "rename files into place once whole"
            )
        if code == reading.REFUSED:
            why = json.loads(said)
            raise Refusal((fault("readable", why["found"], f"{why['expected']}; {why['remedy']}"),))
        if code != 0:
            found = f"the process that read it ended with code {code}"
            raise Refusal((fault("readable", found, "a file that is read within the limits of memory and time"),))
        try:
            with pa.memory_map(f"/dev/fd/{target}") as source:
                rows = pa.ipc.open_file(source).read_all()
            rows.validate(full=True)
        except (pa.ArrowException, OSError):
            raise Refusal((fault("readable", "the file is corrupt: its values are not valid", "valid UTF-8 text"),)) from None
    return rows


class Reader:
    """Has files read by processes that may die of them: one a file, each forked from one that has imported what it needs. Close it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._asking: socket.socket | None = None

    def ask(self, path: Path, target: int, asked: dict[str, object]) -> tuple[int, str]:
        """The exit code of the process that read `path` into the open file `target`, and what it says. Raises Refusal after READ_SECONDS."""
        line = json.dumps({**asked, "path": str(path.resolve())}).encode() + b"\n"
        with self._lock:
            asking = self._asking or self._start()
            try:
                asking.settimeout(READ_SECONDS)
                sent = socket.send_fds(asking, [line], [target])
                asking.sendall(line[sent:])
                answer = b""
                while not answer.endswith(b"\n"):
                    if not (part := asking.recv(1 << 16)):
                        raise ConnectionResetError
                    answer += part
            except TimeoutError:
                self._stop()
                raise Refusal((Reason("readable", f"reading took over {READ_SECONDS} s", 0),)) from None
            except OSError:
                self._stop()
                return -signal.SIGKILL, ""
            except BaseException:
                self._stop()
                raise
        found = json.loads(answer)
        return int(found["code"]), str(found["said"])

    def _start(self) -> socket.socket:
        self._asking, theirs = socket.socketpair()
        # -P keeps this package's folder, whose modules are called like some of Python's own, off the process's path.
        command = [sys.executable, "-P", reading.__file__, str(theirs.fileno())]
        environ = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ} | {"OMP_NUM_THREADS": "1"}
        nothing = subprocess.DEVNULL
        with theirs:
            self._process = subprocess.Popen(
                command,
                stdin=nothing,
                stdout=nothing,
                stderr=nothing,
                env=environ,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        return self._asking

    def _stop(self) -> None:
        if self._asking is not None:
            self._asking.close()
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process = self._asking = None

    def close(self) -> None:
        """End the processes."""
        with self._lock:
            self._stop()


@contextmanager
def _nameless() -> Iterator[int]:
    """A file without a name, in memory where the system can: what a killed ingest has read is gone with it."""
    if hasattr(os, "memfd_create"):
        handle = os.memfd_create("shard")
        try:
            yield handle
        finally:
            os.close(handle)
    else:
        with tempfile.TemporaryFile() as file:
            yield file.fileno()
