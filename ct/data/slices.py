"""Which of the rows that may train do train: the newest with a sample of older ones, those of tagged shards, those of some segments.

Pure: times, hashes, segments and tags in, a mask out; of several selectors, all must choose a row. The same rows are chosen in whatever order, and by however many workers, they come.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ct.clock import duration
from ct.errors import InvalidPipeline
from ct.roles import Offered, Selector

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Newest:
    """All rows of the last `span` of event time, and of older rows a replay sample: the share `older`, or so many of them where it is a
    whole number, the same share in each stratum of `by`."""

    span: str
    older: float
    by: tuple[str, ...]

    def segments(self) -> tuple[str, ...]:
        """The strata's segments."""
        return self.by

    def chosen(self, rows: Offered) -> Mask:
        """The last span counts back from the newest row offered. A stratum gives its rows of the smallest hashes of key and time."""
        if not len(rows.times):
            return np.zeros(0, dtype=np.bool_)
        reach = int(duration(self.span).total_seconds() * 1e6)
        newest: Mask = rows.times > rows.times.max() - reach
        if not self.older:
            return newest
        old = np.flatnonzero(~newest)
        strata = _strata([rows.segments[name][old] for name in self.by], len(old))
        share = self.older if self.older < 1 else min(1.0, self.older / max(1, len(old)))
        newest[old[_smallest(rows.keys[old], strata, share)]] = True
        return newest

    def explain(self) -> str:
        """The span and the share."""
        if not self.older:
            return f"the last {self.span}"
        strata = f" by {', '.join(self.by)}" if self.by else ""
        sample = f"{self.older:.4g} of older rows" if self.older < 1 else f"about {self.older:,.0f} older rows"
        return f"the last {self.span} and {sample}{strata}"


@dataclass(frozen=True)
class Tagged:
    """Rows of shards that carry all these tags; several values allow any of them."""

    tags: tuple[tuple[str, tuple[Any, ...]], ...]

    def segments(self) -> tuple[str, ...]:
        """None."""
        return ()

    def chosen(self, rows: Offered) -> Mask:
        """True for every row of a shard that fits."""
        fits = np.array([self._fits(tags) for tags in rows.tags], dtype=np.bool_)
        return fits[rows.shards] if len(fits) else np.zeros(len(rows.shards), dtype=np.bool_)

    def _fits(self, tags: Mapping[str, Any]) -> bool:
        every = {**tags.get("slices", {}), **tags}
        return all(any(_fits(name, every.get(name), value) for value in allowed) for name, allowed in self.tags)

    def explain(self) -> str:
        """The tags and their values."""
        return "shards with " + ", ".join(f"{name} {_either(values)}" for name, values in self.tags)


@dataclass(frozen=True)
class Only:
    """Rows whose segments have one of the named values; None stands for a missing one."""

    values: tuple[tuple[str, tuple[str | None, ...]], ...]

    def segments(self) -> tuple[str, ...]:
        """The segments named."""
        return tuple(name for name, _ in self.values)

    def chosen(self, rows: Offered) -> Mask:
        """True where every segment named has one of its values."""
        mask = np.ones(len(rows.times), dtype=np.bool_)
        for name, allowed in self.values:
            found = pa.array(rows.segments[name], pa.string())
            mask &= np.asarray(pc.is_in(found, value_set=pa.array(allowed, pa.string())))
        return mask

    def explain(self) -> str:
        """The segments and their values."""
        return "rows with " + ", ".join(f"{name} {_either(values)}" for name, values in self.values)


def newest(span: str, *, older: float = 0.0, by: str | Sequence[str] = ()) -> Newest:
    """All training rows of the last `span` and a replay sample of earlier ones, stratified by the segments `by`.

    `older` is their share, as 0.1, or about how many, as 20_000; with a number the work of a run stays the same as data grows. The sample is
    drawn by the rows' hashes: the same rows again and again. Raises InvalidPipeline for a span that is none or another `older`.
    """
    duration(span)
    whole = isinstance(older, int) and not isinstance(older, bool) and older >= 1
    if not whole and (isinstance(older, bool) or not isinstance(older, (int, float)) or not 0 <= older < 1):
        raise InvalidPipeline(
            f"newest(older={older!r})", "a share from 0 to below 1, or a number of rows", "write for example older=0.10"
        )
    return Newest(span, float(older), (by,) if isinstance(by, str) else tuple(by))


def tagged(**tags: Any) -> Tagged:
    """Training rows of the shards that carry these tags, such as `source="parquet"` or one of your own; a list allows any of its values.

    A slice's column fits shards that have a row with that value; `freshness="6h"` those whose newest row was at most so old on arrival.
    """
    if isinstance(limit := tags.get("freshness"), str):
        duration(limit)
    if not tags:
        raise InvalidPipeline("tagged() names no tag", "at least one, such as source='parquet'", "name the tags")
    return Tagged(tuple((name, _several(value)) for name, value in sorted(tags.items())))


def only(**values: Any) -> Only:
    """Training rows whose segments have these values: `only(carrier=["B6", "AA"])`. None stands for a missing value."""
    if not values:
        raise InvalidPipeline("only() names no segment", "at least one, such as carrier=['B6']", "name the segments")
    return Only(tuple((name, _several(value)) for name, value in sorted(values.items())))


def chosen(selectors: Sequence[Selector], rows: Offered) -> Mask:
    """True where a row trains: where every selector says so. Raises InvalidPipeline when one of them gives no mask."""
    mask = np.ones(len(rows.times), dtype=np.bool_)
    for part in selectors:
        found = np.asarray(part.chosen(rows))
        if found.shape != mask.shape or found.dtype != np.bool_:
            raise InvalidPipeline(
                f"selector {part!r} gives {found.dtype} of shape {found.shape}", f"truth values [{len(mask)}]", "mend chosen()"
            )
        mask &= found
    return mask


def _several(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (list, tuple, set, frozenset)) else (value,)


def _either(values: Sequence[Any]) -> str:
    return " or ".join(map(repr, values))


def _fits(name: str, found: Any, wanted: Any) -> bool:
    """Does a tag hold the value? A slice's column holds each value that the shard has; freshness is at most the span named."""
    if name == "freshness" and isinstance(wanted, str):
        return found is not None and bool(found <= duration(wanted).total_seconds() * 1e6)
    if isinstance(found, (list, tuple, Mapping)):
        return wanted in found
    return isinstance(found, bool) == isinstance(wanted, bool) and bool(found == wanted)


def _strata(columns: Sequence[NDArray[Any]], count: int) -> NDArray[np.int64]:
    """A number for each row, equal where all columns are; a missing value is a value of its own."""
    strata = np.zeros(count, dtype=np.int64)
    for column in columns:
        coded = pa.array(column, pa.string()).dictionary_encode(null_encoding="encode")
        codes = coded.indices.to_numpy().astype(np.int64)
        strata = np.unique(strata * (len(coded.dictionary) + 1) + codes, return_inverse=True)[1].astype(np.int64)
    return strata


def _smallest(keys: NDArray[np.int64], strata: NDArray[np.int64], share: float) -> Mask:
    """In each stratum of m rows, the round(share · m) of the smallest keys, halves rounded up. Rows with one key go together."""
    mask = np.zeros(len(keys), dtype=np.bool_)
    if not len(keys):
        return mask
    order = np.lexsort((keys, strata))
    starts = np.flatnonzero(np.diff(strata[order], prepend=strata[order[0]] - 1))
    for start, stop in zip(starts, [*starts[1:], len(order)], strict=True):
        wanted = math.floor(share * (stop - start) + 0.5)
        if wanted:
            rows = order[start:stop]
            mask[rows] = keys[rows] <= keys[rows[wanted - 1]]
    return mask
