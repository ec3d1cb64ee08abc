"""Names of things: canonical JSON, content hashes, fingerprints of declared values. No I/O but reading a file to hash it."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import inspect
import json
import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from ct.errors import InvalidPipeline

Json = Any  # None, bool, int, float, str, list, dict: what json.loads returns

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


def canonical(value: object) -> str:
    """`value` as JSON with one spelling: sorted keys, no blanks, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256(data: bytes | str) -> str:
    """SHA-256 of `data` (text as UTF-8), in hex."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe(value: object) -> Json:
    """A declared value as plain JSON data. Dataclasses become `{"kind": class name, field: …}`; classes their qualified name and source hash.

    Raises InvalidPipeline for values without a stable form, such as a lambda's closure or an open file.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, enum.Enum):
        return describe(value.value)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields: dict[str, Json] = {"kind": type(value).__name__}
        for field in dataclasses.fields(value):
            if field.metadata.get("says") == "nothing":  # a remark: it changes nothing that is made
                continue
            fields[field.name] = describe(getattr(value, field.name))
        return fields
    if isinstance(value, Mapping):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [describe(item) for item in value]
    if isinstance(value, type) or inspect.isfunction(value):
        return {"name": f"{value.__module__}.{value.__qualname__}", "source": sha256(_source(value))}
    raise InvalidPipeline(
        f"{value!r} ({type(value).__name__}) has no stable form",
        "numbers, text, lists, frozen dataclasses, classes or functions in a file",
        "replace it by one of these, so that the pipeline can be fingerprinted",
    )


def _source(value: type | object) -> str:
    try:
        return inspect.getsource(value)  # type: ignore[arg-type]
    except (OSError, TypeError) as error:
        raise InvalidPipeline(f"the source of {value!r} cannot be read", "code in a file", "move it to a module") from error


def fingerprint(value: object) -> str:
    """SHA-256 over the described form of `value`: equal for equal declarations, whatever the process."""
    return sha256(canonical(describe(value)))


def check_name(name: object, what: str) -> str:
    """`name` if it may name a `what` (lower case letters, digits, `-`, `_`; 63 at most). Raises InvalidPipeline."""
    if isinstance(name, str) and _NAME.fullmatch(name):
        return name
    raise InvalidPipeline(
        f"{name!r} cannot name a {what}", "lower case letters, digits, '-' and '_', at most 63", f"rename the {what}"
    )
