"""Files below one root: a folder on this machine, or a prefix of an object store (S3 API). Whole files only; what they mean is the caller's."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

from ct.errors import InvalidSettings, NotFound, Unavailable


@dataclass(frozen=True)
class Entry:
    """One stored file: its name below the root, its bytes, and when it was last changed (seconds since 1970 UTC)."""

    name: str
    size: int
    changed: float


@dataclass(frozen=True)
class Files:
    """The files below `uri`: a path, a file:// or an s3:// URI. A file is visible whole or not at all; putting a name again replaces it.

    Credentials and the endpoint of an object store come from the AWS_ variables of the environment, never from the URI.
    """

    uri: str

    @cached_property
    def local(self) -> Path | None:
        """The folder, None for an object store."""
        found = urlsplit(self.uri)
        if found.scheme in ("", "file"):
            return Path(found.path if found.scheme else self.uri)
        if found.scheme != "s3" or not found.netloc:
            raise InvalidSettings(f"{self.uri!r}", "a path, or s3://bucket/prefix", "mend the setting")
        return None

    def address(self, name: str) -> str:
        """Where a file lies, whether or not it exists: a path, or an s3:// URI."""
        return str(self.local / name) if self.local is not None else f"{self.uri.rstrip('/')}/{name}"

    def put(self, name: str, data: bytes) -> str:
        """Store bytes under `name`, durably. Returns the address. Raises Unavailable when the store does not take them."""
        if self.local is not None:
            return _put_local(self.local / name, data)
        with _told(self.address(name)), _remote().open_output_stream(_key(self.address(name))) as stream:
            stream.write(data)
        return self.address(name)

    def get(self, name: str) -> bytes:
        """The bytes under `name`. Raises NotFound or Unavailable."""
        with open_input(self.address(name)) as file:
            return bytes(file.read())

    def exists(self, name: str) -> bool:
        """Is there a file of that name?"""
        if self.local is not None:
            return (self.local / name).is_file()
        with _told(self.address(name)):
            return bool(_remote().get_file_info(_key(self.address(name))).type == pafs.FileType.File)

    def delete(self, name: str) -> None:
        """Remove a file; one that is not there is no fault."""
        if self.local is not None:
            (self.local / name).unlink(missing_ok=True)
            return
        with _told(self.address(name)):
            if self.exists(name):
                _remote().delete_file(_key(self.address(name)))

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """The files whose name begins with `prefix` (a folder's name), by name."""
        if self.local is not None:
            base = self.local / prefix
            for path in sorted(base.rglob("*")) if base.is_dir() else ():
                if path.is_file() and not path.name.startswith("."):
                    stat = path.stat()
                    yield Entry(str(path.relative_to(self.local)), stat.st_size, stat.st_mtime)
            return
        root = _key(self.uri).rstrip("/")
        with _told(self.uri):
            selector = pafs.FileSelector(f"{root}/{prefix}".rstrip("/"), recursive=True, allow_not_found=True)
            found = [info for info in _remote().get_file_info(selector) if info.type == pafs.FileType.File]
        for info in sorted(found, key=lambda info: str(info.path)):
            yield Entry(str(PurePosixPath(info.path).relative_to(root)), info.size, info.mtime.timestamp())


def open_input(address: str) -> pa.NativeFile:
    """A file of `Files.address` (or of a published shard) for reading at any place. Raises NotFound or Unavailable."""
    if not address.startswith("s3://"):
        path = address.removeprefix("file://")
        if not os.path.exists(path):
            raise NotFound(f"there is no file {path}", "a stored file", "restore it from a backup")
        return pa.memory_map(path)
    with _told(address):
        return _remote().open_input_file(_key(address))


def _put_local(target: Path, data: bytes) -> str:
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=target.parent, prefix=".part-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise
    sync_folder(target.parent)
    return str(target)


def sync_folder(folder: Path) -> None:
    """Make a folder's entries durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _key(address: str) -> str:
    return address.removeprefix("s3://")


def _remote() -> Any:
    options: dict[str, Any] = {"connect_timeout": 5, "request_timeout": 30}
    if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        found = urlsplit(endpoint)
        options |= {"endpoint_override": found.netloc, "scheme": found.scheme}
    if region := os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"):
        options["region"] = region
    return pafs.S3FileSystem(retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=5), **options)


class _told:
    """Turns what an object store says into our errors."""

    def __init__(self, address: str) -> None:
        self._address = address

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        if isinstance(error, FileNotFoundError):
            raise NotFound(f"there is no file {self._address}", "a stored file", "restore it from a backup") from None
        if isinstance(error, OSError):
            said = str(error).splitlines()[0][:200]
            raise Unavailable(f"{self._address}: {said}", "an object store that answers", "try again") from None
