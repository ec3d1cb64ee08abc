"""Content-addressed, immutable files. A manifest of hashes is the commit point of a set of files; a signature beside it says whose it is."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ct.errors import Corrupt, NotFound, Untrusted
from ct.ids import canonical, sha256
from ct.store import signing
from ct.store.files import Files
from ct.store.signing import Keys

_DIGEST = re.compile(r"[0-9a-f]{64}")


class Artifacts:
    """Files under their SHA-256 at one place: a folder, or s3://bucket/prefix. Writing is atomic and durable; reading verifies.

    `keys` say whose signatures count for signed sets.
    """

    def __init__(self, place: str | Path, keys: Keys | None = None) -> None:
        self._files = Files(str(place))
        self.keys = keys or Keys()

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

    def sign(self, digest: str) -> None:
        """Put a signature beside the manifest `digest`, unless a trusted one is there. Raises Untrusted without a private key."""
        found = self.signatures(digest)
        try:
            self.keys.verify(digest, found)
        except Untrusted:
            self._files.put(_signature(digest), b"\n".join([*found, self.keys.sign(digest)]) + b"\n")

    def signatures(self, digest: str) -> tuple[bytes, ...]:
        """What lies beside a manifest as its signatures, unread. Raises Unavailable."""
        try:
            return tuple(signing.lines(self._files.get(_signature(digest))))
        except NotFound:
            return ()

    def signed_by(self, digest: str) -> str:
        """The id of the trusted key that signed the manifest `digest`. Raises Untrusted, having parsed nothing of the set."""
        return self.keys.verify(digest, self.signatures(digest))

    def keep(self, digest: str, files: Mapping[str, bytes], signatures: Sequence[bytes]) -> None:
        """Store the set `digest` that another place gave, with what lies beside it there; damaged bytes are replaced. Raises Corrupt or Unavailable."""
        manifest = canonical({name: sha256(data) for name, data in files.items()}).encode()
        if (found := sha256(manifest)) != digest:
            raise Corrupt(f"the files are those of {found[:12]}", f"the set {digest[:12]}", "read them again")
        for data in (*files.values(), manifest):
            self._files.put(_name(sha256(data)), data)
        self._files.put(_signature(digest), b"\n".join(signatures) + b"\n")

    def get_signed(self, digest: str) -> dict[str, bytes]:
        """As `get_set`, after the signature was verified. Raises Untrusted, NotFound, Unavailable or Corrupt."""
        try:
            self.signed_by(digest)
        except Untrusted:
            self.get(digest)  # what is not there, or is other bytes, is said to be that
            raise
        return self.get_set(digest)


def _signature(digest: str) -> str:
    return f"{_name(digest)}.sig"


def _name(digest: str) -> str:
    if not _DIGEST.fullmatch(digest):
        raise NotFound(f"{digest!r} is not an artifact", "a SHA-256 in hex", "take it from the journal")
    return f"{digest[:2]}/{digest}"
