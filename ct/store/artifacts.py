"""Content-addressed, immutable files. A manifest of hashes is the commit point of a set of files."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

from ct.errors import Corrupt, NotFound
from ct.ids import canonical, sha256, sha256_file
from ct.store.files import sync_folder

_DIGEST = re.compile(r"[0-9a-f]{64}")


class Artifacts:
    """Files under their SHA-256 in one folder. Writing is atomic and durable; reading verifies."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, digest: str) -> Path:
        """Where the file with `digest` lies, whether or not it exists. Raises NotFound for what is no SHA-256."""
        if not _DIGEST.fullmatch(digest):
            raise NotFound(f"{digest!r} is not an artifact", "a SHA-256 in hex", "take it from the journal")
        return self.folder / digest[:2] / digest

    def put(self, data: bytes) -> str:
        """Store `data` and return its digest. Storing the same bytes twice is a no-op."""
        digest = sha256(data)
        target = self.path(digest)
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=target.parent, prefix=".part-")
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, target)
            sync_folder(target.parent)
        return digest

    def put_file(self, source: Path) -> str:
        """Store a file's bytes and return its digest."""
        return self.put(source.read_bytes())

    def get(self, digest: str) -> bytes:
        """The bytes with `digest`. Raises NotFound, or Corrupt when they are not what was stored."""
        return self.verified(digest).read_bytes()

    def verified(self, digest: str) -> Path:
        """The path of the file with `digest`, its bytes checked. Raises NotFound or Corrupt."""
        target = self.path(digest)
        if not target.is_file():
            raise NotFound(f"artifact {digest[:12]} is not in {self.folder}", "a stored file", "restore it from a backup")
        if (found := sha256_file(target)) != digest:
            raise Corrupt(
                f"artifact {digest[:12]} has the hash {found[:12]}", "the bytes that were stored", "restore it from a backup"
            )
        return target

    def put_set(self, files: Mapping[str, bytes]) -> str:
        """Store named files and, last of all, the manifest {name: digest} that makes them a set. Returns the manifest's digest."""
        return self.put(canonical({name: self.put(data) for name, data in files.items()}).encode())

    def manifest(self, digest: str) -> dict[str, str]:
        """The {name: digest} of a set."""
        manifest = json.loads(self.get(digest))
        return {str(name): str(value) for name, value in manifest.items()}

    def get_set(self, digest: str) -> dict[str, bytes]:
        """All files of a set, every byte checked. Raises NotFound or Corrupt."""
        return {name: self.get(value) for name, value in self.manifest(digest).items()}
