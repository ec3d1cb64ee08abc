"""Content-addressed, immutable files. A manifest of hashes is the commit point of a set of files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from ct.errors import Corrupt, NotFound
from ct.ids import canonical, sha256
from ct.store.files import Files

_DIGEST = re.compile(r"[0-9a-f]{64}")


class Artifacts:
    """Files under their SHA-256 at one place: a folder, or s3://bucket/prefix. Writing is atomic and durable; reading verifies."""

    def __init__(self, place: str | Path) -> None:
        self._files = Files(str(place))

    def address(self, digest: str) -> str:
        """Where the file with `digest` lies, whether or not it exists. Raises NotFound for what is no SHA-256."""
        return self._files.address(_name(digest))

    def put(self, data: bytes) -> str:
        """Store `data` and return its digest. Storing the same bytes twice is a no-op. Raises Unavailable."""
        digest = sha256(data)
        if not self._files.exists(_name(digest)):
            self._files.put(_name(digest), data)
        return digest

    def get(self, digest: str) -> bytes:
        """The bytes with `digest`. Raises NotFound, Unavailable, or Corrupt when they are not what was stored."""
        try:
            data = self._files.get(_name(digest))
        except NotFound:
            place = self._files.uri
            raise NotFound(f"artifact {digest[:12]} is not in {place}", "a stored file", "restore it from a backup") from None
        if (found := sha256(data)) != digest:
            raise Corrupt(
                f"artifact {digest[:12]} has the hash {found[:12]}", "the bytes that were stored", "restore it from a backup"
            )
        return data

    def put_set(self, files: Mapping[str, bytes]) -> str:
        """Store named files and, last of all, the manifest {name: digest} that makes them a set. Returns the manifest's digest."""
        return self.put(canonical({name: self.put(data) for name, data in files.items()}).encode())

    def manifest(self, digest: str) -> dict[str, str]:
        """The {name: digest} of a set."""
        manifest = json.loads(self.get(digest))
        return {str(name): str(value) for name, value in manifest.items()}

    def get_set(self, digest: str) -> dict[str, bytes]:
        """All files of a set, every byte checked. Raises NotFound, Unavailable or Corrupt."""
        return {name: self.get(value) for name, value in self.manifest(digest).items()}


def _name(digest: str) -> str:
    if not _DIGEST.fullmatch(digest):
        raise NotFound(f"{digest!r} is not an artifact", "a SHA-256 in hex", "take it from the journal")
    return f"{digest[:2]}/{digest}"
