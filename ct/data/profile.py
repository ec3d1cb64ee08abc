"""Profile: statistics of each column that merge. Counts on frozen edges add up as integers, so merging in any order gives the same counts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from ct.data.columns import NO_TIME
from ct.errors import Corrupt
from ct.ids import canonical
from ct.roles import Columns

BINS = 32
TOP = 64


@dataclass(frozen=True)
class Numbers:
    """A numeric column. `edges` [b - 1] are inner edges frozen at the reference's quantiles; `counts` [b] rows between them.

    NaN and infinities count as missing. `m2` is the sum of squared distances from the mean.
    """

    count: int
    missing: int
    low: float
    high: float
    mean: float
    m2: float
    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Categories:
    """A text column: rows by value for the most frequent values, all others together."""

    count: int
    missing: int
    counts: Mapping[str, int]
    other: int


@dataclass(frozen=True)
class Profile:
    """Statistics of a table's columns over some rows."""

    rows: int
    columns: Mapping[str, Numbers | Categories]

    @staticmethod
    def of(rows: Columns, like: Profile | None = None) -> Profile:
        """The profile of columns [n]. With `like`, numbers are counted on its edges and texts by its values, so that both compare and merge."""
        count = len(next(iter(rows.values()))) if rows else 0
        made: dict[str, Numbers | Categories] = {}
        for name, values in rows.items():
            other = like.columns.get(name) if like else None
            if values.dtype == object:
                made[name] = _categories(values, other if isinstance(other, Categories) else None)
            elif values.dtype == np.int64:
                made[name] = _numbers(
                    np.where(values == NO_TIME, np.nan, values / 1e6), other if isinstance(other, Numbers) else None
                )
            else:
                made[name] = _numbers(values.astype(np.float64), other if isinstance(other, Numbers) else None)
        return Profile(count, made)

    def merge(self, other: Profile) -> Profile:
        """The profile of both row sets together. Counts come out the same in any order. Raises Corrupt when columns or edges differ."""
        if self.columns.keys() != other.columns.keys():
            raise Corrupt("profiles of different columns", "the same columns", "profile both like one reference")
        return Profile(self.rows + other.rows, {name: _merge(self.columns[name], other.columns[name]) for name in self.columns})

    def to_json(self) -> bytes:
        """One spelling of the profile."""
        columns = {
            name: {"kind": type(column).__name__, **{k: _plain(v) for k, v in asdict(column).items()}}
            for name, column in self.columns.items()
        }
        return canonical({"rows": self.rows, "columns": columns}).encode()

    @staticmethod
    def from_json(data: bytes) -> Profile:
        """The profile that `to_json` wrote."""
        found = json.loads(data)
        columns: dict[str, Numbers | Categories] = {}
        for name, fields in found["columns"].items():
            if fields.pop("kind") == "Categories":
                columns[name] = Categories(**fields)
            else:
                fields = {key: np.nan if value is None else value for key, value in fields.items()}
                columns[name] = Numbers(**{**fields, "edges": tuple(fields["edges"]), "counts": tuple(fields["counts"])})
        return Profile(found["rows"], columns)


def _plain(value: object) -> object:
    if isinstance(value, float) and np.isnan(value):
        return None
    return list(value) if isinstance(value, tuple) else value


def _numbers(values: NDArray[np.float64], like: Numbers | None) -> Numbers:
    present = values[np.isfinite(values)]
    edges = np.asarray(like.edges) if like is not None else _edges(present)
    # A value equal to an edge belongs to the bin below it.
    counts = np.bincount(np.searchsorted(edges, present, side="left"), minlength=len(edges) + 1)
    mean = float(present.mean()) if len(present) else np.nan
    return Numbers(
        count=len(present),
        missing=len(values) - len(present),
        low=float(present.min()) if len(present) else np.nan,
        high=float(present.max()) if len(present) else np.nan,
        mean=mean,
        m2=float(((present - mean) ** 2).sum()) if len(present) else 0.0,
        edges=tuple(float(edge) for edge in edges),
        counts=tuple(int(count) for count in counts),
    )


def _edges(present: NDArray[np.float64]) -> NDArray[np.float64]:
    """Inner edges at the quantiles k / BINS; a value that holds several quantiles gets a bin of its own, so that leaving it shows."""
    if not len(present):
        return np.empty(0)
    edges, held = np.unique(np.quantile(present, np.arange(1, BINS) / BINS, method="inverted_cdf"), return_counts=True)
    return np.unique(np.concatenate([edges, np.nextafter(edges[held > 1], -np.inf)]))


def _categories(values: NDArray[np.object_], like: Categories | None) -> Categories:
    found = Counter(value for value in values if value is not None)
    total = sum(found.values())
    if like is not None:
        kept = {value: found.get(value, 0) for value in like.counts}
    else:
        kept = dict(sorted(found.items(), key=lambda item: (-item[1], item[0]))[:TOP])
    kept = dict(sorted(kept.items()))
    return Categories(total, len(values) - total, kept, total - sum(kept.values()))


def _merge(a: Numbers | Categories, b: Numbers | Categories) -> Numbers | Categories:
    if isinstance(a, Categories) and isinstance(b, Categories):
        if a.counts.keys() != b.counts.keys():
            raise Corrupt("profiles that count different values", "the same values", "profile both like one reference")
        return Categories(
            a.count + b.count, a.missing + b.missing, {v: a.counts[v] + b.counts[v] for v in a.counts}, a.other + b.other
        )
    if isinstance(a, Numbers) and isinstance(b, Numbers) and a.edges == b.edges:
        count = a.count + b.count
        if not a.count or not b.count:
            full = a if a.count else b
            mean, m2, low, high = full.mean, full.m2, full.low, full.high
        else:
            shift = b.mean - a.mean
            mean = a.mean + shift * b.count / count
            m2 = a.m2 + b.m2 + shift * shift * a.count * b.count / count
            low, high = min(a.low, b.low), max(a.high, b.high)
        counts = tuple(x + y for x, y in zip(a.counts, b.counts, strict=True))
        return Numbers(count, a.missing + b.missing, low, high, mean, m2, a.edges, counts)
    raise Corrupt("profiles with different edges", "edges of one reference", "profile both like one reference")
