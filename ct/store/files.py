"""Files below one root: a folder on this machine, or a prefix of an object store (S3 API). Whole files only; what they mean is the caller's."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from typing import IO, Any, TypeVar
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

from ct.errors import CtError, InvalidSettings, NotFound, Unavailable

T = TypeVar("T")
REMOTE = "s3://"
CONNECT_SECONDS, REQUEST_SECONDS, DEADLINE_SECONDS, TRIES = 5.0, 20.0, 60.0, 3
"""An object store must take a connection, then send or take bytes, within these; after the last one nothing is tried again.

The client tries each request so often, for those who read through an open file; this module asks anew until the deadline.
"""

_ENVIRONMENT = (
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ACCESS_KEY_ID",
    "AWS_PROFILE",
)
_FINAL = (
    "ACCESS_DENIED",
    "NO_SUCH_BUCKET",
    "INVALID_ACCESS_KEY_ID",
    "SIGNATURE_DOES_NOT_MATCH",
    "INVALID_PARAMETER",
    "HTTP status 301",
)
_PIECE = 1 << 24


@dataclass(frozen=True)
class Entry:
    """One stored file: its name below the root, its bytes, and when it was last changed (seconds since 1970 UTC)."""

    name: str
    size: int
    changed: float


class Draft:
    """A file that is being written (a binary file object); it counts and hashes its bytes. `name` is what it shall be stored under."""

    closed = False

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._hash = file, hashlib.sha256()
        self.size, self.name = 0, ""

    def write(self, data: bytes) -> int:
        """Append bytes."""
        self._hash.update(data)
        self.size += len(data)
        return self._file.write(data)

    def tell(self) -> int:
        """How many bytes there are."""
        return self.size

    def flush(self) -> None:
        """Nothing: what counts is that it is synced in the end."""

    def close(self) -> None:
        """Nothing: the block that made it ends it."""

    @property
    def sha256(self) -> str:
        """The hash of all bytes so far, in hex."""
        return self._hash.hexdigest()


@dataclass(frozen=True)
class Files:
    """The files below `uri`: a path, a file:// or an s3:// URI. A file is visible whole or not at all; putting a name again replaces it.

    Credentials and the endpoint of an object store come from the AWS_ variables of the environment, never from the URI. What an object
    store does not answer is asked again, with growing and jittered pauses, until a deadline: putting the same bytes twice is harmless.
    """

    uri: str

    @cached_property
    def local(self) -> Path | None:
        """The folder, None for an object store."""
        found = urlsplit(self.uri)
        if found.scheme in ("", "file"):
            return _path(self.uri)
        if found.scheme != "s3" or not found.netloc:
            raise InvalidSettings(f"{self.uri!r}", "a path, or s3://bucket/prefix", "mend the setting")
        return None

    def address(self, name: str) -> str:
        """Where a file lies, whether or not it exists: a path, or an s3:// URI."""
        return str(self.local / name) if self.local is not None else f"{self.uri.rstrip('/')}/{name}"

    def put(self, name: str, data: bytes) -> str:
        """Store bytes under `name`, durably. Returns the address. Raises Unavailable when the store does not take them."""
        put(self.address(name), data)
        return self.address(name)

    @contextmanager
    def draft(self) -> Iterator[Draft]:
        """A file to write to. It is stored, whole and durable, when the block ends without an error, under the `name` it was given there.

        Raises Unavailable when the store does not take it.
        """
        if self.local is not None:
            with _local(str(self.local)), _replacing(self.local) as (file, finish):
                yield (draft := Draft(file))
                finish(draft.name)
            return
        with _local(tempfile.gettempdir()), tempfile.TemporaryFile() as file:
            yield (draft := Draft(file))
            _send(self.address(draft.name), file)

    def get(self, name: str) -> bytes:
        """The bytes under `name`. Raises NotFound or Unavailable."""
        return get(self.address(name))

    def exists(self, name: str) -> bool:
        """Is there a file of that name? Raises Unavailable when the store does not answer."""
        if self.local is not None:
            return (self.local / name).is_file()
        try:
            open_input(self.address(name)).close()
        except NotFound:
            return False
        return True

    def delete(self, name: str) -> None:
        """Remove a file; one that is not there is no fault. Raises Unavailable."""
        delete(self.address(name))

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """The files whose name begins with `prefix` (a folder's name), by name. What is kept is never found by listing, only what is lost."""
        if self.local is not None:
            base = self.local / prefix
            for path in sorted(base.rglob("*")) if base.is_dir() else ():
                if path.is_file() and not path.name.startswith("."):
                    stat = path.stat()
                    yield Entry(str(path.relative_to(self.local)), stat.st_size, stat.st_mtime)
            return
        root = _key(self.uri).rstrip("/")
        selector = pafs.FileSelector(f"{root}/{prefix}".rstrip("/"), recursive=True, allow_not_found=True)
        found = _asked(self.uri, lambda: client().get_file_info(selector))
        for info in sorted((info for info in found if info.type == pafs.FileType.File), key=lambda info: str(info.path)):
            yield Entry(str(PurePosixPath(info.path).relative_to(root)), info.size, info.mtime.timestamp())


def put(address: str, data: bytes) -> None:
    """Store bytes at an address of `Files`, durably, whole or not at all. Raises Unavailable."""
    if address.startswith(REMOTE):
        _send(address, pa.BufferReader(data))
        return
    target = _path(address)
    with _local(address), _replacing(target.parent) as (file, finish):
        file.write(data)
        finish(target.name)


def get(address: str) -> bytes:
    """The bytes at an address of `Files`. Raises NotFound or Unavailable."""
    if not address.startswith(REMOTE):
        with open_input(address) as file:
            return bytes(file.read())

    def read() -> bytes:
        with client().open_input_file(_key(address)) as file:
            return bytes(file.read())

    return _asked(address, read)


def delete(address: str) -> None:
    """Remove the file at an address of `Files`; one that is not there is no fault. Raises Unavailable."""
    if not address.startswith(REMOTE):
        with _local(address):
            _path(address).unlink(missing_ok=True)
        return
    try:
        _asked(address, lambda: client().delete_file(_key(address)))
    except NotFound:
        return


def open_input(address: str) -> pa.NativeFile:
    """A file of `Files.address` (or of a published shard) for reading at any place. Raises NotFound or Unavailable."""
    if address.startswith(REMOTE):
        return _asked(address, lambda: client().open_input_file(_key(address)))
    with _local(address):
        return pa.memory_map(str(_path(address)))


def digest(address: str) -> str:
    """SHA-256 of the bytes at an address of `Files`, in hex, read in pieces. Raises NotFound or Unavailable."""
    if not address.startswith(REMOTE):
        with _local(address), _path(address).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def read() -> str:
        found = hashlib.sha256()
        with client().open_input_stream(_key(address)) as stream:
            while piece := stream.read(_PIECE):
                found.update(piece)
        return found.hexdigest()

    return _asked(address, read)


def digest_once(address: str) -> str:
    """As `digest`, but a file that has not been written since this process read it is not read again."""
    if address.startswith(REMOTE):
        with open_input(address) as file:
            return _digest(address, str(sorted(file.metadata().items())), 0, 0)
    with _local(address):
        stat = _path(address).stat()
    return _digest(address, str(stat.st_size), stat.st_mtime_ns, stat.st_ino)


@lru_cache(maxsize=4096)
def _digest(address: str, _version: str, _changed: int, _place: int) -> str:
    return digest(address)


def sync_folder(folder: Path) -> None:
    """Make a folder's entries durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _replacing(folder: Path) -> Iterator[tuple[IO[bytes], Callable[[str], None]]]:
    """A file in `folder`, and the function that syncs it and puts it at a name. Left without that call, it is gone."""
    folder.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=folder, prefix=".part-")

    def finish(name: str) -> None:
        file.flush()
        os.fsync(file.fileno())
        os.replace(part, folder / name)
        sync_folder(folder)

    try:
        with os.fdopen(handle, "wb") as file:
            yield file, finish
    finally:
        Path(part).unlink(missing_ok=True)


@contextmanager
def _local(address: str) -> Iterator[None]:
    """Turns what the operating system says of a file into our errors."""
    try:
        yield
    except CtError:
        raise
    except FileNotFoundError:
        raise NotFound(f"there is no file {address}", "a stored file", "restore it from a backup") from None
    except OSError as error:
        raise _refused(address, error) from None


def _refused(address: str, error: OSError) -> Unavailable:
    name = errno.errorcode.get(error.errno or 0, "OSError")
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return Unavailable(f"no space left for {address} ({name})", "room on the disk", "free some, then run it again")
    said = (error.strerror or str(error)).splitlines()[0][:200]
    return Unavailable(f"{address}: {said} ({name})", "a disk that reads and writes", "mend it, then run it again")


def _send(address: str, source: Any) -> None:
    """All bytes of a seekable file as one object."""

    def write() -> None:
        source.seek(0)
        with client().open_output_stream(_key(address)) as stream:
            while piece := source.read(_PIECE):
                stream.write(piece)

    _asked(address, write)


def _asked(address: str, call: Callable[[], T]) -> T:
    """What an object store answers. Raises NotFound, or Unavailable when it refuses for good or its deadline has passed."""
    begun, pause = time.monotonic(), 0.1
    while True:
        try:
            return call()
        except FileNotFoundError:
            raise NotFound(f"there is no file {address}", "a stored file", "restore it from a backup") from None
        except OSError as error:
            said = str(error).splitlines()[0][:300]
            late = time.monotonic() - begun + pause > DEADLINE_SECONDS
            if late or any(word in said for word in _FINAL):
                raise Unavailable(
                    f"{address}: {said}", "an object store that answers", "see to it, then run it again"
                ) from None
        time.sleep(random.uniform(pause / 2, pause))
        pause = min(2 * pause, 5.0)


def _path(address: str) -> Path:
    return Path(address.removeprefix("file://"))


def _key(address: str) -> str:
    return address.removeprefix(REMOTE)


def client() -> Any:
    """The object store's client (pyarrow's S3FileSystem) for the environment as it is now, made once in each process."""
    return _client(os.getpid(), TRIES, CONNECT_SECONDS, REQUEST_SECONDS, *(os.environ.get(name, "") for name in _ENVIRONMENT))


@lru_cache(maxsize=8)
def _client(
    _process: int, tries: int, connect: float, request: float, s3: str, endpoint: str, region: str, fallback: str, *_: str
) -> Any:
    # A small file is one request, not the three of an upload in parts.
    options: dict[str, Any] = {"connect_timeout": connect, "request_timeout": request, "allow_delayed_open": True}
    if place := s3 or endpoint:
        found = urlsplit(place)
        options |= {"endpoint_override": found.netloc, "scheme": found.scheme}
    if place or region or fallback:
        options["region"] = region or fallback or "us-east-1"
    return pafs.S3FileSystem(retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=tries), **options)
