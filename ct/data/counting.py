"""Counts a table's rows once, in blocks: per column and slice the rows by bin, the moments, the distinct values. No Python object a row.

Blocks are of fixed size whatever the Arrow chunks, so that the same rows give the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ct.data import distinct
from ct.data.columns import NO_TIME, kind_of
from ct.roles import Columns

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Codes = NDArray[np.uint8]

BLOCK = 1 << 16
SAMPLE = 1 << 16
"""Edges and frequent values are those of all rows up to so many, else of a fixed sample of so many."""
BINS = 32
TOP = 64
KNOWN = 1000
"""A text column's values are kept by name, without counts, up to so many."""
OTHER, MISSING = "(other)", "(missing)"
EMPTY = (np.nan, np.nan, np.nan, 0.0)
"""Low, high, mean and m2 of no rows."""


@dataclass(frozen=True)
class Layout:
    """How a column is counted. A number's `edges` are inner edges; a text's `values` have a bin each, before that of all others.

    `known` are all values that the rows held, None where they are too many, or where each names one row.
    """

    name: str
    text: bool
    edges: tuple[float, ...] = ()
    values: tuple[str, ...] = ()
    known: frozenset[str] | None = frozenset()

    @property
    def bins(self) -> int:
        """Bins of present values; one more counts the missing."""
        return len(self.values) + 1 if self.text else len(self.edges) + 1


@dataclass(frozen=True)
class Frame:
    """Rows of either form, read in blocks: Arrow, whose text stays Arrow, or numpy columns."""

    rows: Columns | pa.Table

    @property
    def names(self) -> tuple[str, ...]:
        """The columns."""
        return tuple(self.rows.column_names if isinstance(self.rows, pa.Table) else self.rows)

    @property
    def count(self) -> int:
        """The rows."""
        if isinstance(self.rows, pa.Table):
            return int(self.rows.num_rows)
        return len(next(iter(self.rows.values()))) if self.rows else 0

    def is_text(self, name: str) -> bool:
        """Whether the column holds text. Raises InvalidShard for a column of another type than numbers, text and times."""
        if isinstance(self.rows, pa.Table):
            return kind_of(self.rows.schema.field(name).type) == "text"
        return bool(self.rows[name].dtype == object)

    def numbers(self, name: str, start: int, stop: int) -> Floats:
        """Rows [start, stop) of a column of numbers or times: float64, times in seconds; NaN is missing."""
        if not isinstance(self.rows, pa.Table):
            values = self.rows[name][start:stop]
            return _seconds(values) if values.dtype == np.int64 else values.astype(np.float64, copy=False)
        part = _one(self.rows[name].slice(start, stop - start))
        if kind_of(part.type) == "time":
            stamps = part.cast(pa.timestamp("us", tz="UTC")).cast(pa.int64())
            return _seconds(stamps.fill_null(NO_TIME).to_numpy(zero_copy_only=False))
        found: Floats = part.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        return found

    def texts(self, name: str, start: int, stop: int) -> pa.Array:
        """Rows [start, stop) of a text column, null where missing."""
        if not isinstance(self.rows, pa.Table):
            return pa.array(self.rows[name][start:stop], pa.string(), from_pandas=True)
        return _one(self.rows[name].slice(start, stop - start))

    def blocks(self) -> Iterator[tuple[int, int]]:
        """The bounds of each block."""
        for start in range(0, self.count, BLOCK):
            yield start, min(start + BLOCK, self.count)

    def sampled_numbers(self, name: str) -> Floats:
        """The column, or SAMPLE rows of it: one out of each of SAMPLE equal runs of rows, the same for every table of this size."""
        if self.count <= SAMPLE:
            return self.numbers(name, 0, self.count)
        return np.concatenate([self.numbers(name, start, stop)[rows] for start, stop, rows in self._sample()])

    def sampled_texts(self, name: str) -> pa.ChunkedArray:
        """As `sampled_numbers`, of a text column."""
        if self.count <= SAMPLE:
            return pa.chunked_array([self.texts(name, 0, self.count).cast(pa.string())], pa.string())
        parts = [self.texts(name, start, stop).take(pa.array(rows)).cast(pa.string()) for start, stop, rows in self._sample()]
        return pa.chunked_array(parts)

    def _sample(self) -> Iterator[tuple[int, int, Ints]]:
        for start, stop in self.blocks():
            yield start, stop, self._drawn[np.searchsorted(self._drawn, start) : np.searchsorted(self._drawn, stop)] - start

    @cached_property
    def _drawn(self) -> Ints:
        rows = ((np.arange(SAMPLE) + np.random.default_rng(0).random(SAMPLE)) * (self.count / SAMPLE)).astype(np.int64)
        # A row at the border of two runs may be drawn by both; counted twice, it would look like a text of several rows.
        drawn: Ints = rows[np.diff(rows, prepend=-1) > 0]
        return drawn


def _one(column: pa.ChunkedArray) -> pa.Array:
    return (
        column.chunk(0)
        if column.num_chunks == 1
        else pa.concat_arrays(column.chunks)
        if column.num_chunks
        else pa.array([], column.type)
    )


def _seconds(stamps: Ints) -> Floats:
    seconds = stamps / 1e6
    seconds[stamps == NO_TIME] = np.nan
    return seconds


def layout_of(frame: Frame, name: str) -> Layout:
    """How to count a column that nothing was counted of before."""
    if not frame.is_text(name):
        values = frame.sampled_numbers(name)
        return Layout(name, text=False, edges=tuple(edges_of(values[np.isfinite(values)]).tolist()))
    found = pc.value_counts(frame.sampled_texts(name).drop_null())
    order = pc.select_k_unstable(
        pa.table({"value": found.field("values"), "rows": found.field("counts")}),
        TOP,
        [("rows", "descending"), ("value", "ascending")],
    )
    top = found.take(order)
    if len(found) > TOP and top.field("counts")[0].as_py() == 1:
        return Layout(name, text=True, known=None)  # every value names one row: there is nothing to count
    return Layout(name, text=True, values=tuple(sorted(top.field("values").to_pylist())))


def edges_of(present: Floats) -> Floats:
    """Inner edges at the quantiles k / BINS; a value that holds several quantiles gets a bin of its own, so that leaving it shows."""
    if not len(present):
        return np.empty(0)
    edges, held = np.unique(np.quantile(present, np.arange(1, BINS) / BINS, method="inverted_cdf"), return_counts=True)
    return np.unique(np.concatenate([edges, np.nextafter(edges[held > 1], -np.inf)]))


def joined(count: Ints, moments: Floats, more: Ints, others: Floats) -> Floats:
    """Low, high, mean and m2 of two sets of `count` and `more` rows, shapes [...] and [..., 4] (Chan, Golub, LeVeque 1979)."""
    total = np.maximum(count + more, 1)
    with np.errstate(invalid="ignore", over="ignore"):
        shift = others[..., 2] - moments[..., 2]
        both = np.stack(
            [
                np.fmin(moments[..., 0], others[..., 0]),
                np.fmax(moments[..., 1], others[..., 1]),
                moments[..., 2] + shift * (more / total),
                moments[..., 3] + others[..., 3] + shift * shift * (count / total * more),
            ],
            axis=-1,
        )
    full = np.where((count > 0)[..., None], moments, others)
    return np.where(((count > 0) & (more > 0))[..., None], both, full)


@dataclass(frozen=True)
class Cut:
    """One block's rows by the groups of one slice column: `group` [n], and `order` that sorts rows by it. Groups begin at `first`."""

    group: Ints
    order: Ints
    first: int
    groups: int


@dataclass
class Tally:
    """What was counted of one column: row 0 over all rows, then a row a slice. `counts` has the bins of the layout, missing last."""

    layout: Layout
    slices: int
    counts: Ints = field(init=False)
    moments: Floats = field(init=False)
    whole: distinct.Registers = field(init=False)
    parts: distinct.Registers = field(init=False)
    known: set[str] | None = field(init=False)

    def __post_init__(self) -> None:
        self.counts = np.zeros((1 + self.slices, self.layout.bins + 1), np.int64)
        self.moments = np.tile(EMPTY, (1 + self.slices, 1))
        self.whole = np.zeros(distinct.WHOLE, np.uint8)
        self.parts = np.zeros((self.slices, distinct.PART), np.uint8)
        self.known = None if self.layout.known is None else set()

    def add(self, frame: Frame, start: int, stop: int, cuts: Sequence[Cut]) -> None:
        """Count rows [start, stop) of the column, by each of `cuts` too."""
        if self.layout.text:
            self._texts(frame.texts(self.layout.name, start, stop), cuts)
        else:
            self._numbers(frame.numbers(self.layout.name, start, stop), cuts)

    def _numbers(self, values: Floats, cuts: Sequence[Cut]) -> None:
        finite = np.isfinite(values)
        here = np.count_nonzero(finite)
        present = values if here == len(values) else values[finite]
        code = _binned(values, self.layout.edges)
        if here < len(values):
            code[~finite] = self.layout.bins
        if here:
            hashes = distinct.of_numbers(present)
            distinct.observe(self.whole, hashes)
            before = self.counts[:1, :-1].sum(axis=-1)
            found = _moments(present, np.zeros(1, np.int64), np.array([here]))
            self.moments[:1] = joined(before, self.moments[:1], np.array([here]), found)
        for cut in cuts:
            group = cut.group if here == len(values) else cut.group[finite]
            order = cut.order if here == len(values) else np.argsort(group.astype(np.uint16), kind="stable")
            if here:
                distinct.observe(self.parts[cut.first : cut.first + cut.groups], hashes, group)
                self._slice_moments(present[order], group, cut)
        self._count(code, cuts)

    def _slice_moments(self, ordered: Floats, group: Ints, cut: Cut) -> None:
        held = np.bincount(group, minlength=cut.groups)
        live = np.flatnonzero(held)
        at = live + cut.first + 1
        found = _moments(ordered, (np.cumsum(held) - held)[live], held[live])
        self.moments[at] = joined(self.counts[at, :-1].sum(axis=-1), self.moments[at], held[live], found)

    def _texts(self, values: pa.Array, cuts: Sequence[Cut]) -> None:
        unnamed = not self.layout.values and self.known is None  # every value names one row: looking for repetitions is in vain
        index, held = _numbered(values) if unnamed else _encoded(values)
        kept = pa.array(self.layout.values, pa.string())
        place = pc.index_in(held, value_set=kept).fill_null(len(kept)).to_numpy()
        hashes = distinct.of_texts(held)
        distinct.observe(self.whole, hashes)
        if self.known is not None:
            self.known = self.known.union(held.to_pylist()) if len(held) <= KNOWN else None
            self.known = None if self.known is None or len(self.known) > KNOWN else self.known
        for cut in cuts:
            rows = np.flatnonzero(index < len(held)) if values.null_count else slice(None)
            distinct.observe(self.parts[cut.first : cut.first + cut.groups], hashes[index[rows]], cut.group[rows])
        self._count(np.append(place, self.layout.bins).astype(np.uint8)[index], cuts)

    def _count(self, code: Codes, cuts: Sequence[Cut]) -> None:
        width = self.layout.bins + 1
        self.counts[0] += np.bincount(code, minlength=width)
        for cut in cuts:
            found = np.bincount(cut.group * width + code, minlength=cut.groups * width)
            self.counts[1 + cut.first : 1 + cut.first + cut.groups] += found.reshape(cut.groups, width)


def _encoded(values: pa.Array) -> tuple[Ints, pa.Array]:
    """The place of each text among the different ones, and these; a missing one's place is behind them."""
    coded = values.dictionary_encode()
    held = coded.dictionary.cast(pa.string())
    index = coded.indices.fill_null(len(held)).to_numpy()
    if pa.types.is_dictionary(values.type):  # it may know texts that no row here has
        used = np.flatnonzero(np.bincount(index, minlength=len(held) + 1)[: len(held)])
        place = np.full(len(held) + 1, len(used))
        place[used] = np.arange(len(used))
        index, held = place[index], held.take(pa.array(used))
    return index, held


def _numbered(values: pa.Array) -> tuple[Ints, pa.Array]:
    """As `_encoded`, every present text counting as different."""
    held = values.drop_null().cast(pa.string())
    there = values.is_valid().to_numpy(zero_copy_only=False)
    return np.where(there, np.cumsum(there) - 1, len(held)), held


def _binned(values: Floats, edges: Sequence[float]) -> Codes:
    """The bin of each value: the number of edges below it, so that a value equal to an edge belongs to the bin below.

    A comparison an edge beats a binary search a value: it runs over many values in one instruction.
    """
    code = np.zeros(len(values), np.uint8)
    above = np.empty(len(values), np.bool_)
    for edge in edges:
        np.greater(values, edge, out=above)
        np.add(code, above.view(np.uint8), out=code)
    return code


def _moments(ordered: Floats, starts: Ints, held: Ints) -> Floats:
    """Low, high, mean and m2 of each run of `held` values from `starts` on, none empty, shape [runs, 4]."""
    with np.errstate(over="ignore", invalid="ignore"):
        mean = np.add.reduceat(ordered, starts) / held
        apart = ordered - (mean if len(mean) == 1 else np.repeat(mean, held))
        np.multiply(apart, apart, out=apart)
        found = [np.minimum.reduceat(ordered, starts), np.maximum.reduceat(ordered, starts), mean]
        return np.stack([*found, np.add.reduceat(apart, starts)], axis=-1)
