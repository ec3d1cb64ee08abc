"""What a run's labels are: how many there are of each class, and what stands in the label's column and is no label. Nothing is changed."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ct.control.place import Place
from ct.control.rows import Rows
from ct.data.shards import opened
from ct.pipeline import Label

MOST = 10
"""So many different texts that are no class are named."""


def counted(place: Place, data: Rows) -> dict[str, Any]:
    """`rows`, of them `labelled`; `foreign`: rows whose label's column holds no label, the most frequent texts named, with their sum
    `foreign_rows`; for classes `classes`: the rows that train, by class."""
    label = place.pipeline.label
    strange: Counter[str] = Counter()
    if label.objective.kind != "binary":
        for shard in data.shards.get(place.pipeline.table.name, ()):
            with opened(shard, coded=[label.column] if label.classes else []) as reader:
                strange.update(_foreign(label, reader.read((label.column,))[label.column]))
    found: dict[str, Any] = {
        "rows": len(data.label),
        "labelled": int((~np.isnan(data.label)).sum()),
        "foreign": dict(sorted(strange.items(), key=lambda item: (-item[1], item[0]))[:MOST]),
        "foreign_rows": sum(strange.values()),
    }
    if label.classes:
        trained = np.bincount(data.label[data.split.train].astype(np.int64), minlength=len(label.classes))
        found["classes"] = dict(zip(label.classes, trained.tolist(), strict=True))
    return found


def strange(counts: dict[str, Any]) -> str:
    """What a person should know of these counts, empty when there is nothing."""
    said = []
    if counts["foreign_rows"]:
        named = ", ".join(f"{text!r} in {rows:,}" for text, rows in counts["foreign"].items())
        said.append(f"{counts['foreign_rows']:,} of {counts['rows']:,} rows have no label because theirs is none: {named}")
    if unseen := [name for name, rows in counts.get("classes", {}).items() if not rows]:
        said.append(f"no training row of {', '.join(map(repr, unseen))}: the model cannot learn to tell it")
    return "; ".join(said)


def _foreign(label: Label, column: pa.ChunkedArray) -> dict[str, int]:
    """Texts that are no class, or infinite numbers, with their rows."""
    found = {str(item["values"]): int(item["counts"]) for item in pc.value_counts(_strange(label, column)).to_pylist()}
    return {text: rows for text, rows in found.items() if text not in label.classes}


def _strange(label: Label, column: pa.ChunkedArray) -> pa.ChunkedArray:
    if label.classes:
        return column.drop_null()
    numbers = column.cast(pa.float64()).drop_null()
    return numbers.filter(pc.is_inf(numbers))
