"""Flights and weather many times over, for benchmarks: each copy has names of its own and its dates are shifted by some minutes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import shards

NAMED = {
    "flights": ("flight_id", "carrier", "tailnum", "origin", "dest"),
    "weather": ("origin",),
}
SHIFTED = {"flights": ("scheduled_departure", "arrival_time"), "weather": ("observed_at",)}
ORDER = {"flights": ("scheduled_departure", "flight_id"), "weather": ("observed_at", "origin")}


def copy(rows: pa.Table, table: str, number: int) -> pa.Table:
    """Copy `number` of the rows: `~number` behind every name, every time `number` minutes later. Copy 0 is the rows themselves."""
    if number == 0:
        return rows
    for name in NAMED[table]:
        rows = rows.set_column(rows.column_names.index(name), name, pc.binary_join_element_wise(rows[name], f"~{number}", ""))
    shift = pa.scalar(number * 60_000_000, pa.duration("us"))
    for name in SHIFTED[table]:
        rows = rows.set_column(rows.column_names.index(name), name, pc.add(rows[name], shift))
    return rows


def write(folder: Path, rows: int, *, months: int = 12) -> Mapping[str, list[Path]]:
    """About `rows` flights of the year's first months, and the weather to them: one file a month and table, ordered by time and key."""
    source = shards.write(folder / "source")
    total = sum(pq.read_metadata(source["flights"][month]).num_rows for month in range(1, months + 1))
    copies = max(1, round(rows / total))
    made: dict[str, list[Path]] = {}
    for table, files in source.items():
        for month in range(1, months + 1):
            path = folder / f"{table}-{copies}" / f"{table}-2013-{month:02}.parquet"
            made.setdefault(table, []).append(path)
            if path.exists():
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            one = pq.read_table(files[month])
            many = pa.concat_tables([copy(one, table, number) for number in range(copies)])
            many = many.sort_by([(name, "ascending") for name in ORDER[table]])
            part = path.with_suffix(".part")
            pq.write_table(many, part, compression="zstd", row_group_size=131_072)
            part.rename(path)
    return made
