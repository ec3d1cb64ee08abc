"""The Prometheus text format: families of metrics, their samples, and the text of both. Knows no metric by name."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from ct.errors import InvalidRequest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
Kind = Literal["counter", "gauge", "histogram"]
Sample = tuple[str, dict[str, str], float]
"""A sample's name, its labels and its value. Plain data, so that it may travel between processes."""
_PARTS = ("_bucket", "_sum", "_count")


@dataclass(frozen=True)
class Family:
    """One metric: its name, what kind it is, and one sentence for people."""

    name: str
    kind: Kind
    help: str


def families(*rows: tuple[str, Kind, str]) -> dict[str, Family]:
    """Families by their names."""
    return {name: Family(name, kind, text) for name, kind, text in rows}


def text(known: Mapping[str, Family], samples: Iterable[Sample]) -> str:
    """All families with their HELP and TYPE lines, and the samples of each in the order given. Source: the Prometheus exposition formats.

    Raises InvalidRequest for a sample of a family that is not `known`, or one that stands there twice.
    """
    lines: dict[str, list[str]] = {name: [] for name in known}
    seen: set[str] = set()
    for name, labels, value in samples:
        family = family_of(known, name)
        if family is None:
            raise InvalidRequest(f"a sample of {name!r}", f"one of {sorted(known)}", "name its family")
        series = f"{name}{_braced(labels)}"
        if series in seen:
            raise InvalidRequest(f"{series} twice", "each series once", "give it another label")
        seen.add(series)
        lines[family.name].append(f"{series} {_number(value)}")
    parts = []
    for name, found in lines.items():
        parts += [f"# HELP {name} {_escaped(known[name].help)}", f"# TYPE {name} {known[name].kind}", *found]
    return "\n".join(parts) + "\n"


def family_of(known: Mapping[str, Family], name: str) -> Family | None:
    """The family a sample belongs to: a histogram's has three endings."""
    if name in known:
        return known[name] if known[name].kind != "histogram" else None
    for ending in _PARTS:
        family = known.get(name.removesuffix(ending)) if name.endswith(ending) else None
        if family is not None and family.kind == "histogram":
            return family
    return None


def histogram(name: str, labels: dict[str, str], bounds: tuple[float, ...], counts: list[int], total: float) -> list[Sample]:
    """A histogram's samples. `counts` has one more entry than `bounds`, for what lies above the last; `total` is the sum of all values."""
    assert all(low < high for low, high in pairwise(bounds)), "bounds ascend"
    made: list[Sample] = []
    running = 0
    for bound, count in zip((*bounds, math.inf), counts, strict=True):
        running += count
        made.append((f"{name}_bucket", {**labels, "le": _number(bound)}, running))
    return [*made, (f"{name}_sum", labels, total), (f"{name}_count", labels, running)]


def _braced(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_quoted(value)}"' for name, value in labels.items()) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n")


def _quoted(value: str) -> str:
    return _escaped(value).replace('"', r"\"")


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) and abs(value) < 1 << 53 else repr(float(value))
