"""Ed25519 signatures over manifests: who may sign, whose signature counts, and where private keys lie, which is never the workspace."""

from __future__ import annotations

import base64
import json
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ct.errors import Conflict, Untrusted
from ct.ids import canonical, sha256

DOMAIN = b"ct signed manifest 1\n"
"""Stands before what is signed, so that a signature made for something else never counts here."""
VARIABLE = "CT_SIGNING_KEY"
OWN = "own"
_KIND = "ed25519:"
_LENGTH = 32


@dataclass(frozen=True)
class Keys:
    """Whose signatures count: the public keys `trusted`, written as `public` writes them.

    Without any, only this user's own key counts, which is made on the first signature: for a laptop, not for a cluster. A private key is
    the one that CT_SIGNING_KEY holds or names a file of, else one in the folder of keys: see `folder`.
    """

    trusted: tuple[str, ...] = ()

    def sign(self, digest: str) -> bytes:
        """A signature over a manifest's digest, as the text that lies beside it. Raises Untrusted without a private key of a trusted one."""
        private = self._private()
        made = private.sign(DOMAIN + digest.encode())
        return canonical({"key": public(private), "signature": base64.b64encode(made).decode()}).encode()

    def ready(self) -> None:
        """Could `sign` sign now? To be asked before long work whose end it is. Raises what it would."""
        self._private()

    def verify(self, digest: str, signatures: Sequence[bytes]) -> str:
        """The id of the trusted key that signed `digest`. Raises Untrusted when none of the signatures is one."""
        from cryptography.exceptions import InvalidSignature

        trusted, reasons = self.counted(), []
        for text in signatures:
            key, signature = _read(text)
            if key not in trusted:
                reasons.append(f"the key {key_id(key)} is not trusted" if key else "its signature cannot be read")
                continue
            try:
                _public(key).verify(signature, DOMAIN + digest.encode())
            except InvalidSignature:
                reasons.append(f"the signature by {key_id(key)} is wrong")
                continue
            return key_id(key)
        raise Untrusted(
            f"the files {digest[:12]} are not signed by a trusted key: {'; '.join(reasons) or 'there is no signature'}",
            f"a signature by {' or '.join(key_id(key) for key in trusted) or 'a trusted key, of which there is none'}",
            "train again; or, if you know where they come from, sign them with `ct sign VERSION`, or add the key to trusted_keys",
        )

    def counted(self) -> tuple[str, ...]:
        """The public keys whose signatures count now."""
        if self.trusted:
            return self.trusted
        if os.environ.get(VARIABLE):
            return (public(_given()),)
        file = folder() / f"{OWN}.pub"
        return (file.read_text(encoding="utf-8").strip(),) if file.is_file() else ()

    def _private(self) -> Any:
        if os.environ.get(VARIABLE):
            found = _given()
        elif not self.trusted:
            make(OWN)
            found = _stored(OWN)
        else:
            found = next((_stored(key_id(key)) for key in self.trusted if (folder() / key_id(key)).is_file()), None)
        if found is None or (self.trusted and public(found) not in self.trusted):
            raise Untrusted(
                "this machine holds no private key of trusted_keys",
                f"one in {folder()}, or {VARIABLE}",
                "train where the key is, or make one with `ct init` and add its public key to ct.toml",
            )
        return found


def without_key(environ: Mapping[str, str]) -> dict[str, str]:
    """An environment without the private key, for processes that sign nothing."""
    return {name: value for name, value in environ.items() if name != VARIABLE}


def folder() -> Path:
    """Where this user's keys lie: $XDG_CONFIG_HOME/ct/keys, ~/.config/ct/keys by default."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config").absolute() / "ct" / "keys"


def make(name: str = "") -> str:
    """Make a pair of keys in the folder of keys and return the public one. A pair of that name is left as it is.

    `name` is the key's id where it is empty. The private key can be read by its owner alone.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    place = folder()
    fresh = Ed25519PrivateKey.generate()
    private = place / (name or key_id(public(fresh)))
    told = private.with_name(f"{private.name}.pub")
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not private.is_file():
            _write_once(private, base64.b64encode(fresh.private_bytes_raw()).decode() + "\n")
        key = public(_stored(private.name))  # who came first has made it
        if not told.is_file():
            _write_once(told, key + "\n")
    except OSError as error:
        raise Untrusted(
            f"no key can be kept in {place}: {error.strerror}",
            "a folder that this user can write",
            f"set {VARIABLE}, or XDG_CONFIG_HOME to another folder",
        ) from error
    return key


def public(private: Any) -> str:
    """The public key of a private one, as ct.toml has it."""
    return _KIND + base64.b64encode(private.public_key().public_bytes_raw()).decode()


def key_id(key: str) -> str:
    """The short name of a public key: the beginning of its SHA-256."""
    return sha256(key)[:16]


def sound(key: str) -> bool:
    """Is this a public key as `public` writes it?"""
    try:
        return key.startswith(_KIND) and len(base64.b64decode(key[len(_KIND) :], validate=True)) == _LENGTH
    except ValueError:
        return False


def _public(key: str) -> Any:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    return Ed25519PublicKey.from_public_bytes(base64.b64decode(key[len(_KIND) :]))


def _given() -> Any:
    """The private key of CT_SIGNING_KEY: the key itself, or a file that holds it."""
    said = os.environ[VARIABLE].strip()
    found = _parsed(said)
    if found is not None:
        return found
    try:
        file = Path(said).expanduser()
        there = file.is_file()
    except (OSError, RuntimeError):  # such as a name too long for a file's
        there = False
    if not there:  # what it holds may be half a key, so it is not shown
        raise Untrusted(f"{VARIABLE} is neither a private key nor a file", "one of both", "mend the variable") from None
    return _from_file(file)


def _stored(name: str) -> Any:
    return _from_file(folder() / name)


def _from_file(file: Path) -> Any:
    if file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise Conflict(
            f"others can read the private key {file}", "mode 0600", f"chmod 600 {file}; if it was seen, make another one"
        )
    try:
        found = _parsed(file.read_bytes().decode(errors="replace").strip())
    except OSError as error:
        raise Untrusted(
            f"the private key {file} cannot be read: {error.strerror}",
            "a file of this user",
            f"see its owner, or set {VARIABLE}",
        ) from error
    if found is None:
        raise Untrusted(f"{file} holds no private key", "32 bytes in base64", "restore it, or make another one with `ct init`")
    return found


def _parsed(text: str) -> Any:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    try:
        raw = base64.b64decode(text, validate=True)
    except ValueError:
        return None
    return Ed25519PrivateKey.from_private_bytes(raw) if len(raw) == _LENGTH else None


def _read(text: bytes) -> tuple[str, bytes]:
    """The key and the signature that a text holds; empty for what is none. It comes from storage, so it may be anything."""
    try:
        said = json.loads(text)
        key, signature = str(said["key"]), base64.b64decode(said["signature"], validate=True)
    except (ValueError, KeyError, TypeError, RecursionError):
        return "", b""
    return (key, signature) if sound(key) else ("", b"")


def _write_once(target: Path, text: str) -> None:
    """A file of mode 0600, whole or not at all; one that is there stays."""
    handle, part = tempfile.mkstemp(dir=target.parent, prefix=".part-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(part, target)
        except FileExistsError:
            return
    finally:
        Path(part).unlink(missing_ok=True)


def lines(data: bytes) -> Iterator[bytes]:
    """The signatures of a file, one a line."""
    yield from (line for line in data[:65_536].splitlines() if line.strip())
