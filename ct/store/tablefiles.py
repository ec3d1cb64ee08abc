"""How pyiceberg reads and writes the files of a table: durably on a local disk, with the same patience as `Files` on an object store."""

from __future__ import annotations

import io
from types import TracebackType
from typing import Any

from pyiceberg.io import InputFile, InputStream, OutputFile, OutputStream
from pyiceberg.io.pyarrow import PyArrowFile, PyArrowFileIO

from ct.errors import NotFound
from ct.store import files


class TableFiles(PyArrowFileIO):
    """pyiceberg's files, whose metadata and manifests are put whole or not at all. Named to the catalogue by its path, never imported."""

    def _initialize_fs(self, scheme: str, netloc: str | None = None) -> Any:
        return files.client() if scheme == "s3" else super()._initialize_fs(scheme, netloc)

    def new_input(self, location: str) -> PyArrowFile:
        """One file for reading."""
        return _as_ours(super().new_input(location))

    def new_output(self, location: str) -> PyArrowFile:
        """One file for writing."""
        return _as_ours(super().new_output(location))

    def delete(self, location: str | InputFile | OutputFile) -> None:
        """Remove a file; one that another process has removed is no fault."""
        files.delete(location if isinstance(location, str) else location.location)


def _as_ours(file: PyArrowFile) -> PyArrowFile:
    return _TableFile(file.location, file._path, file._filesystem, file._buffer_size)


class _TableFile(PyArrowFile):
    def open(self, seekable: bool = True) -> InputStream:
        try:
            return files.open_input(self.location)  # type: ignore[no-any-return]
        except NotFound:  # what pyiceberg looks for
            raise FileNotFoundError(self.location) from None

    def create(self, overwrite: bool = False) -> OutputStream:
        # No look whether it exists: every name holds a fresh unique id.
        return _Whole(self.location)


class _Whole(io.BytesIO):
    """Bytes that are put when it is closed, unless it is left by an error."""

    def __init__(self, location: str) -> None:
        super().__init__()
        self._location = location

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            super().close()

    def close(self) -> None:
        if not self.closed:
            files.put(self._location, self.getvalue())
            super().close()
