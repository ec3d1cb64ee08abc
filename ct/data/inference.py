"""A first declaration of a table, learned from one file: Python text that people then own. The same rows give the same text."""

from __future__ import annotations

import json
import keyword
import math
import sys
from collections.abc import Iterator
from contextlib import closing
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa

from ct.clock import Clock, SystemClock
from ct.data import arriving
from ct.data.columns import Rows, codes, count, kind_of, missing
from ct.data.hashing import row_hash
from ct.data.rules.unique import repeated
from ct.errors import InvalidShard
from ct.pipeline import Table

MOST_VALUES, ROWS_A_VALUE = 20, 20
_DAY = 86_400_000_000


def infer(path: Path, name: str, *, clock: Clock | None = None) -> str:
    """The declaration of table `name` that its first file shows, read as ingest would read it. Raises InvalidShard."""
    now = round((clock or SystemClock()).now().timestamp() * 1e6)
    file = arriving.arrived(path, Table(name, key="key", time="time"), origin="", now=now)
    try:
        arriving.check_name(file, ())
        with closing(arriving.Reader()) as reader:
            rows = arriving.read(file, None, reader)
    except arriving.Refusal as refused:
        raise InvalidShard(f"{path.name}: {refused.reasons[0].found}", "", "mend the file") from None
    return declaration(name, rows, now)


def declaration(name: str, table: pa.Table, now: int) -> str:
    """A module that declares the table `name` as `table`, its first shard, shows it, arriving at `now` (microseconds UTC).

    Ranges are those seen, widened by half of what lies between the 1st and the 99th percentile; sets those of few values, each often seen.
    Raises InvalidShard when no column can be the event time, or no columns the key.
    """
    rows = Rows(table.drop_columns([field.name for field in table.schema if pa.types.is_null(field.type)]))
    if not count(rows):
        raise InvalidShard(f"the file for table {name!r} has no rows", "a first shard with rows", "choose another file")
    kinds = {field.name: kind_of(field.type) for field in rows.table.schema}
    full = [column for column in kinds if not missing(rows, column).any()]
    time = _time(name, rows, kinds, full)
    key = _key(name, rows, kinds, full, time)
    types = ", ".join(
        f"{field.name if field.name.isidentifier() else _text(field.name)} {_type(field.type)}" for field in rows.table.schema
    )
    lines = [
        f'"""The table {name}, as its first file shows it. Look at each line: from now on it is yours."""',
        "",
        "import ct",
        "",
        f"# Columns, as the first shard will set them: {types}",
        f"{_variable(name)} = ct.Table(",
        f"    {_text(name)},",
        f"    key={_text(key[0]) if len(key) == 1 else '(' + ', '.join(map(_text, key)) + ')'},",
        f"    time={_text(time)},",
        '    owner="",',
        "    checks=[",
        *(f"        {line}," for line in _checks(rows, kinds, full, key, time, now)),
        "    ],",
        ")",
    ]
    return "\n".join(lines) + "\n"


def _checks(rows: Rows, kinds: dict[str, str], full: list[str], key: tuple[str, ...], time: str, now: int) -> Iterator[str]:
    yield f"ct.Unique({', '.join(map(_text, key))})"
    if guarded := [column for column in full if column not in (*key, time)]:
        yield f"ct.NotNull({', '.join(map(_text, guarded))})"
    for column, kind in kinds.items():
        if column in key or column == time:
            continue
        if kind == "number" and not pa.types.is_boolean(rows.table.schema.field(column).type):
            yield from _within(rows, column)
        elif kind == "text":
            yield from _one_of(rows, column)
    size = count(rows)
    yield f"ct.warn(ct.RowCount({max(1, _rounded(size / 3, down=True)):.0f}, {_rounded(size * 3, down=False):.0f}))"
    at = rows[time]
    within = _days(now - int(at.min()), times=2)
    yield f'ct.warn(ct.Fresh({_text(time)}, within="{within}d", ahead="{_days(int(at.max()) - now, times=2)}d"))'


def _within(rows: Rows, column: str) -> Iterator[str]:
    values = rows[column]
    values = values[np.isfinite(values)]
    if not len(values):
        return
    first, last = (float(value) for value in np.quantile(values, [0.01, 0.99], method="nearest"))
    low, high = float(values.min()), float(values.max())
    wider = 0.5 * (last - first) or 0.5 * max(abs(low), abs(high), 1.0)
    bottom = low - wider if low < 0 else max(0.0, low - wider)
    top = high + wider if high > 0 else min(0.0, high + wider)
    yield f"ct.Within({_text(column)}, {_rounded(bottom, down=True):.17g}, {_rounded(top, down=False):.17g})"


def _one_of(rows: Rows, column: str) -> Iterator[str]:
    index, values = codes(rows.table[column])
    often = np.bincount(index[index >= 0], minlength=len(values))
    if 0 < len(values) <= MOST_VALUES and often.min() >= ROWS_A_VALUE:
        yield f"ct.OneOf({_text(column)}, [{', '.join(_text(value) for value in sorted(values))}])"


def _time(name: str, rows: Rows, kinds: dict[str, str], full: list[str]) -> str:
    found = [column for column, kind in kinds.items() if kind == "time" and column in full]
    stamps = [column for column in found if pa.types.is_timestamp(rows.table.schema.field(column).type)]
    if not found:
        raise InvalidShard(
            f"no column of the file for table {name!r} has a time in each row",
            "an event time",
            "write one, in UTC with its zone",
        )
    return (stamps or found)[0]


def _key(name: str, rows: Rows, kinds: dict[str, str], full: list[str], time: str) -> tuple[str, ...]:
    """The columns that tell all rows apart: one alone, best one that is called so, else two or three of them."""
    able = [column for column in full if kinds[column] == "text" or pa.types.is_integer(rows.table.schema.field(column).type)]
    called = sorted(able, key=lambda column: not column.lower().endswith(("id", "key", "uuid")))
    several = [pair for size in (2, 3) for pair in combinations([*able, time], size)]
    for columns in [*((column,) for column in called), *several]:
        hashes = row_hash(rows, columns)
        if not repeated(rows, columns, hashes, np.sort(hashes)).any():
            return columns
    raise InvalidShard(
        f"no three columns of the file for table {name!r} tell its rows apart", "a key", "add a column that names each row"
    )


def _rounded(value: float, *, down: bool) -> float:
    """Two significant digits, away from what was seen."""
    most = sys.float_info.max
    step = 10.0 ** (math.floor(math.log10(abs(value))) - 1) if 1e-290 < abs(value) < most else 0.0
    if not step:
        return max(-most, min(value, most))
    return max(-most, min(float(f"{(math.floor if down else math.ceil)(value / step) * step:.12g}"), most))


def _days(microseconds: int, times: int) -> int:
    """At least `times` the span, as 1, 2 or 5 times a power of ten days, so that a day more or less gives the same text."""
    asked = max(1, math.ceil(times * microseconds / _DAY))
    steps: list[int] = [step * 10**power for power in range(12) for step in (1, 2, 5)]
    return next(step for step in steps if step >= asked)


def _type(type_: pa.DataType) -> str:
    return str(type_.value_type if pa.types.is_dictionary(type_) else type_)


def _variable(name: str) -> str:
    made = name.replace("-", "_")
    return made if made.isidentifier() and not keyword.iskeyword(made) and made != "ct" else f"table_{made}"


def _text(value: str) -> str:
    # JSON writes a letter beyond 16 bits as two, which Python would not join again.
    return json.dumps(value, ensure_ascii=False) if value.isprintable() else ascii(value)
