"""Names of things: canonical JSON, content hashes, fingerprints of declared values. No I/O but reading a file to hash it."""

from __future__ import annotations

import dataclasses
import dis
import enum
import hashlib
import inspect
import json
import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from types import CellType, CodeType, FunctionType
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
    """A declared value as plain JSON data. Dataclasses become `{"kind": class name, field: …}`; classes their qualified name and source hash;
    functions that of what they take from around them as well, see `_uses`.

    Raises InvalidPipeline for values without a stable form, such as an open file.
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
    if isinstance(value, partial):
        return {"partial": describe(value.func), "arguments": describe(value.args), "named": describe(value.keywords)}
    if isinstance(value, Mapping):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [describe(item) for item in value]
    if isinstance(value, type) or inspect.isfunction(value):
        uses = _uses(value, ()) if inspect.isfunction(value) else {}
        return {
            "name": f"{value.__module__}.{value.__qualname__}",
            "source": sha256(_source(value)),
            **({"uses": uses} if uses else {}),
        }
    raise InvalidPipeline(
        f"{value!r} ({type(value).__name__}) has no stable form",
        "numbers, text, lists, frozen dataclasses, classes or functions in a file",
        "replace it by one of these, so that the pipeline can be fingerprinted",
    )


def _uses(function: FunctionType, seen: tuple[FunctionType, ...]) -> dict[str, Json]:
    """What decides a function's result beside its own source: constants, and the functions, classes and modules of its file's folder."""
    code = function.__code__
    cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
    held = {name: cell.cell_contents for name, cell in cells if cell != CellType()}
    around = {name: function.__globals__[name] for name in _names(code) if name in function.__globals__} | held
    folder, made = Path(code.co_filename).parent, dict[str, Json]()
    for name, value in sorted(around.items()):
        inner = getattr(value, "function", value)  # @ct.feature keeps the function that it stands above
        if inspect.isfunction(inner):
            if Path(inner.__code__.co_filename).parent == folder and inner not in (*seen, function):
                made[name] = [sha256(_source(inner)), _uses(inner, (*seen, function))]
        elif inspect.ismodule(value) or isinstance(value, type):
            file = Path(getattr(inspect.getmodule(value), "__file__", None) or "/")
            if file.parent == folder:
                made[name] = sha256_file(file) if inspect.ismodule(value) else sha256(_source(value))
        else:
            try:
                made[name] = _constant(value)
            except InvalidPipeline:
                if name in held:
                    raise
    return made


def _names(code: CodeType) -> set[str]:
    """The global names that code and the functions within it look up."""
    own = {str(step.argval) for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return own.union(*(_names(part) for part in code.co_consts if isinstance(part, CodeType)))


def _constant(value: Any) -> Json:
    if isinstance(value, (set, frozenset)):
        return sorted(canonical(describe(item)) for item in value)
    if isinstance(value, re.Pattern):
        return [value.pattern, value.flags]
    if hasattr(value, "tobytes") and hasattr(value, "dtype"):
        return [str(value.dtype), list(value.shape), sha256(value.tobytes())]
    return repr(value) if isinstance(value, float) else describe(value)


def _source(value: type | object) -> str:
    try:
        return inspect.getsource(value)  # type: ignore[arg-type]
    except (OSError, TypeError) as error:
        raise InvalidPipeline(f"the source of {value!r} cannot be read", "code in a file", "move it to a module") from error


def fingerprint(value: object) -> str:
    """SHA-256 over the described form of `value`: equal for equal declarations, whatever the process.

    Raises InvalidPipeline for what cannot be described, and for numbers that are not finite.
    """
    told = describe(value)
    try:
        return sha256(canonical(told))
    except ValueError:
        raise InvalidPipeline(
            f"a number that is not finite in {value!r}"[:300], "finite numbers", "write a large number, or leave it out"
        ) from None


def check_name(name: object, what: str) -> str:
    """`name` if it may name a `what` (lower case letters, digits, `-`, `_`; 63 at most). Raises InvalidPipeline."""
    if isinstance(name, str) and _NAME.fullmatch(name):
        return name
    raise InvalidPipeline(
        f"{name!r} cannot name a {what}", "lower case letters, digits, '-' and '_', at most 63", f"rename the {what}"
    )
