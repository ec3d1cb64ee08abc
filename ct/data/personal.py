"""Personal columns: dropped, or replaced by a keyed hash, before anything else sees a shard's rows. The key is a secret of the project."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ct.data.columns import codes
from ct.errors import InvalidPipeline, InvalidSettings
from ct.roles import Personal

VARIABLE = "CT_PERSONAL_KEY"
_BYTES = 32


@dataclass(frozen=True)
class _Dropped:
    column: str

    def veil(self, values: Sequence[Any], key: bytes) -> None:
        return None


@dataclass(frozen=True)
class _Keyed:
    column: str

    def veil(self, values: Sequence[Any], key: bytes) -> list[str | None]:
        # 128 bits of the hash: two of 10^15 persons share one with a chance of 10^-9.
        return [
            None if value is None else hmac.new(key, str(value).encode(), hashlib.sha256).hexdigest()[:32] for value in values
        ]


def dropped(column: str) -> Personal:
    """The column is personal: it is never stored."""
    return _Dropped(column)


def keyed(column: str) -> Personal:
    """The column is personal: HMAC-SHA256 of its values with the project's secret is stored, 32 hex digits.

    The same value has the same hash in every table, so that rows of one person still meet; without the secret nobody can test a guess.
    The secret is the environment variable CT_PERSONAL_KEY, 64 hex digits or more.
    """
    return _Keyed(column)


def kind(part: Personal) -> str:
    """What a part does, as data that a model can carry: "dropped", "keyed", or "own" for a part of the user's own."""
    return {_Dropped: "dropped", _Keyed: "keyed"}.get(type(part), "own")


def secret(environ: Mapping[str, str] | None = None) -> bytes:
    """The project's secret. Raises InvalidSettings when there is none, or one too short; the message holds nothing of it."""
    text = (os.environ if environ is None else environ).get(VARIABLE, "")
    expected = f"{VARIABLE} in the environment, {2 * _BYTES} hex digits or more"
    remedy = "make one with `python -c 'import secrets; print(secrets.token_hex(32))'` and keep it where secrets are kept"
    try:
        key = bytes.fromhex(text)
    except ValueError:
        raise InvalidSettings(f"{VARIABLE} is not hex", expected, remedy) from None
    if len(key) < _BYTES:
        raise InvalidSettings(
            f"{VARIABLE} has {len(key)} bytes" if text else "personal columns and no secret", expected, remedy
        )
    return key


def veiled(rows: pa.Table, personal: Sequence[Personal], key: bytes) -> pa.Table:
    """The rows without what is dropped, and with hashes for what is keyed. Each distinct value is veiled once."""
    for part in personal:
        if part.column not in rows.column_names:
            continue
        at = rows.column_names.index(part.column)
        column = rows[part.column]
        text = column if pa.types.is_dictionary(column.type) else column.cast(pa.string())
        index, distinct = codes(text)
        stored = part.veil(distinct, key)
        if stored is None:
            rows = rows.remove_column(at)
            continue
        if len(stored) != len(distinct):
            found = f"{part!r} gives {len(stored)} values for {len(distinct)}"
            raise InvalidPipeline(found, "one text or None for each value", "mend its veil()")
        encoded = pa.array([*stored, None], pa.string()).take(pa.array(np.where(index < 0, len(stored), index)))
        rows = rows.set_column(at, part.column, encoded)
    return rows
