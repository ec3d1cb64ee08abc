"""Personal columns at the endpoint: dropped or hashed as ingest does it, before a request's rows are looked at, logged or pushed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from ct.data import personal
from ct.errors import InvalidRequest

Rows = Sequence[Mapping[str, Any]]


def veiled(rows: Rows, kinds: Mapping[str, str], key: bytes) -> Rows:
    """The rows [n] without raw values of the personal columns `kinds` ("dropped", "keyed" or "own").

    Raises InvalidRequest, which repeats nothing of the value, for what is neither text nor a number; and for any value of a column that is
    veiled by a part of the user's own, because no code is executed here for a request.
    """
    return [_row(at, row, kinds, key) if isinstance(row, Mapping) else row for at, row in enumerate(rows)]


def of_table(known: Mapping[str, Mapping[str, str]], table: str, rows: Rows) -> Rows:
    """The rows without what `known` says is personal in `table`, see `Live.personal`. Raises InvalidSettings without the secret it needs."""
    kinds = known.get(table)
    return veiled(rows, kinds, personal.secret() if "keyed" in kinds.values() else b"") if kinds else rows


def _row(at: int, row: Mapping[str, Any], kinds: Mapping[str, str], key: bytes) -> Mapping[str, Any]:
    made = {name: value for name, value in row.items() if kinds.get(name) != "dropped"}
    for name, kind in kinds.items():
        if kind != "dropped" and made.get(name) is not None:
            made[name] = _value(at, name, kind, made[name], key)
    return made


def _value(at: int, name: str, kind: str, value: Any, key: bytes) -> str | None:
    if kind != "keyed":
        raise InvalidRequest(
            f"field {name!r} of row {at} is personal and veiled by a part of your own",
            "null",
            "declare the column with ct.keyed or ct.dropped to send it",
            field=f"{at}.{name}",
        )
    if not isinstance(value, str | int | float):
        raise InvalidRequest(
            f"field {name!r} of row {at} is {type(value).__name__}",
            "a text or a number",
            "send the value alone",
            field=f"{at}.{name}",
        )
    # Numbers are spelled as in a shard, so that one person has one hash.
    text = value if isinstance(value, str) else pa.array([value]).cast(pa.string())[0].as_py()
    veiled_ = personal.keyed(name).veil([text], key)
    return None if veiled_ is None else veiled_[0]
