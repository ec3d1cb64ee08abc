"""Files that hold secrets: written for their owner alone, and refused when anybody else may read them."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from ct.errors import InvalidSettings


def check(path: Path) -> None:
    """Refuse a file that others than its owner may read or write. Raises InvalidSettings, also when there is none."""
    try:
        found = path.stat()
    except OSError as error:
        raise InvalidSettings(f"{path} cannot be read: {error.strerror}", "a file", "check the path") from None
    if not stat.S_ISREG(found.st_mode):
        raise InvalidSettings(f"{path} is no file", "a file", "check the path")
    if mode := stat.S_IMODE(found.st_mode) & (stat.S_IRWXG | stat.S_IRWXO):
        raise InvalidSettings(
            f"others than its owner may open {path} (mode {stat.S_IMODE(found.st_mode):04o}, {mode:04o} too much)",
            "a secret that only its owner may read",
            f"chmod 600 {path}, and make a new secret if somebody may have read it",
        )


def read(path: Path) -> str:
    """The text of a secret's file, without the space around it. Raises InvalidSettings."""
    check(path)
    return path.read_text(encoding="utf-8").strip()


def write(path: Path, text: str) -> None:
    """Replace a file by one that only its owner may read; a reader sees the old text or the new one, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(beside, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
