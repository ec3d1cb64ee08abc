"""Profiles: statistics of each column, over all rows and by slice, that merge. Counts are integers on frozen edges, so any order gives the same.

What they are counted with lives in `counting`; what the profiles of a table's shards say together in `profiled`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ct.data import distinct
from ct.data.counting import EMPTY, KNOWN, MISSING, OTHER, Cut, Floats, Frame, Ints, Layout, Tally, joined, layout_of
from ct.data.packing import pack, unpack
from ct.errors import Corrupt, InvalidShard
from ct.roles import Columns

SLICES = 200
"""Values of a slice column that have a profile of their own; rows with other values are profiled together."""
_MAGIC = b"ct profile 1\n"


@dataclass(frozen=True)
class Numbers:
    """A numeric column; times in seconds. `edges` [b - 1] are inner edges frozen at the reference's quantiles; `counts` [b] rows between them.

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
    sketch: bytes = b""

    @property
    def distinct(self) -> int:
        """About how many different values there are (2 % off over all rows, 9 % in a slice, less where they are few)."""
        return _distinct(self.sketch)

    def quantiles(self, *shares: float) -> tuple[float, ...] | None:
        """The values below which `shares` of the present rows lie, interpolated between edges; None without rows."""
        if not self.count:
            return None
        bounds = np.clip(np.array([self.low, *self.edges, self.high]), self.low, self.high)
        below = np.concatenate([[0], np.cumsum(self.counts)]) / self.count
        held = np.flatnonzero(np.diff(below, prepend=-1.0) > 0)
        first = np.maximum(held - 1, 0)  # a bin's lower bound stands for the empty bins before it
        at, share = np.stack([bounds[first], bounds[held]], axis=1), np.stack([below[first], below[held]], axis=1)
        return tuple(float(value) for value in np.interp(shares, share.ravel(), at.ravel()))


@dataclass(frozen=True)
class Categories:
    """A text column: rows by value for the most frequent values, all others together.

    `known` holds every value that occurred, None where they are over 1,000 or where the column names single rows; slices have none.
    """

    count: int
    missing: int
    counts: Mapping[str, int]
    other: int
    known: frozenset[str] | None = None
    sketch: bytes = b""

    @property
    def distinct(self) -> int:
        """How many different values there are: exactly where all are known, else about."""
        return _distinct(self.sketch) if self.known is None else len(self.known)


def _distinct(sketch: bytes) -> int:
    return distinct.estimate(np.frombuffer(sketch, np.uint8))


@dataclass(frozen=True)
class Profile:
    """Statistics of a table's columns over some rows."""

    rows: int
    columns: Mapping[str, Numbers | Categories]

    @staticmethod
    def of(rows: Columns | pa.Table, like: Profile | None = None) -> Profile:
        """The profile of columns [n]. With `like`, numbers are counted on its edges and texts by its values, so that both compare and merge."""
        return Profiles.of(rows, like=None if like is None else Profiles.single(like)).whole

    def merge(self, other: Profile) -> Profile:
        """The profile of both row sets together, as `Profiles.merge`."""
        return Profiles.single(self).merge(Profiles.single(other)).whole

    def to_bytes(self) -> bytes:
        """The profile as `from_bytes` reads it."""
        return Profiles.single(self).to_bytes()

    @staticmethod
    def from_bytes(data: bytes) -> Profile:
        """The profile over all rows that `to_bytes` wrote, of this class or of Profiles. Raises Corrupt."""
        return Profiles.from_bytes(data).whole


@dataclass(frozen=True, eq=False)
class Profiles:
    """The profile of all rows and of each slice, as arrays: row 0 is the whole, row 1 + i the slice `labels`[i] = (column, value).

    `rows` [s]; `counts` [s, k, w] by bin of `layout`[k], the missing last; `moments` [s, k, 4] low, high, mean and m2;
    `registers` [k, 2048] and `parts` [s - 1, k, 128] sketch the distinct values.
    """

    labels: tuple[tuple[str, str], ...]
    layout: tuple[Layout, ...]
    rows: Ints
    counts: NDArray[Any]
    moments: Floats
    registers: distinct.Registers
    parts: distinct.Registers

    @staticmethod
    def of(rows: Columns | pa.Table, slices: Sequence[str] = (), like: Profiles | None = None) -> Profiles:
        """The profiles of an Arrow table or of columns [n], whole and by each value of the text columns `slices`.

        A slice is a value that `like` has, or one of the SLICES most frequent; rows without a value, and rows with another, are slices
        of their own. Columns that `like` has are counted as it counts them. Raises InvalidShard when a slice column is not one of text.
        """
        frame = Frame(rows)
        groups = [_groups(frame, name, like) for name in slices]
        known = {layout.name: layout for layout in like.layout} if like else {}
        labels = [(name, value) for name, values in zip(slices, groups, strict=True) for value in (*values, OTHER, MISSING)]
        tallies = []
        for name in frame.names:
            found = known.get(name)
            same = found is not None and found.text == frame.is_text(name)
            tallies.append(Tally(found if found and same else layout_of(frame, name), len(labels)))
        sizes = np.zeros(1 + len(labels), np.int64)
        for start, stop in frame.blocks():
            cuts: list[Cut] = []
            for name, values in zip(slices, groups, strict=True):
                cuts.append(_cut(frame.texts(name, start, stop), values, first=sum(cut.groups for cut in cuts)))
            sizes += np.concatenate([[stop - start], *(np.bincount(cut.group, minlength=cut.groups) for cut in cuts)])
            for tally in tallies:
                tally.add(frame, start, stop, cuts)
        return _assembled(labels, sizes, tallies)

    @staticmethod
    def single(profile: Profile) -> Profiles:
        """The profiles that have no slices."""
        layout, counts, moments, registers = [], [], [], []
        for name, column in profile.columns.items():
            if isinstance(column, Categories):
                layout.append(Layout(name, text=True, values=tuple(column.counts), known=column.known))
                counts.append([*column.counts.values(), column.other, column.missing])
                moments.append(EMPTY)
            else:
                layout.append(Layout(name, text=False, edges=column.edges))
                counts.append([*column.counts, column.missing])
                moments.append((column.low, column.high, column.mean, column.m2))
            registers.append(column.sketch)
        width = max((len(row) for row in counts), default=1)
        full = [[*row[:-1], *[0] * (width - len(row)), row[-1]] for row in counts]
        size, bits = len(layout), max(map(len, registers), default=distinct.WHOLE) or distinct.WHOLE
        return Profiles(
            (),
            tuple(layout),
            np.array([profile.rows]),
            np.array(full, np.int64).reshape(1, size, width),
            np.array(moments, np.float64).reshape(1, size, 4),
            np.frombuffer(b"".join(sketch or bytes(bits) for sketch in registers), np.uint8).reshape(size, bits),
            np.zeros((0, size, distinct.PART), np.uint8),
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The columns."""
        return tuple(item.name for item in self.layout)

    @cached_property
    def whole(self) -> Profile:
        """The profile over all rows."""
        return self._row(0)

    def slices(self) -> tuple[tuple[str, str], ...]:
        """Every slice that has rows, as (column, value)."""
        return tuple(label for label, rows in zip(self.labels, self.rows[1:], strict=True) if rows)

    def slice(self, column: str, value: str | None) -> Profile | None:
        """The profile of the rows whose `column` is `value` (None: is missing); None where no row or no slice has it."""
        label = (column, MISSING if value is None else value)
        return self._row(1 + self.labels.index(label)) if label in self.slices() else None

    def extended(self, other: Profiles) -> Profiles:
        """These profiles, with the layout of columns that only `other` has: what a later shard is to be profiled like."""
        more = tuple(item for item in other.layout if item.name not in self._places)
        return self._laid(self.labels, (*self.layout, *more)) if more else self

    def merge(self, other: Profiles) -> Profiles:
        """The profiles of both row sets together; counts come out the same in any order. A column that one side lacks is missing there.

        Raises Corrupt when a column was counted on different edges or values.
        """
        mine = {item.name: item for item in self.layout}
        layout = [_agreed(mine[item.name], item) if item.name in mine else item for item in other.layout]
        both = {**mine, **{item.name: item for item in layout}}
        labels = tuple(sorted({*self.labels, *other.labels}))
        a, b = (side._laid(labels, tuple(both.values())) for side in (self, other))
        held = [side.counts[..., :-1].sum(axis=-1) for side in (a, b)]
        return Profiles(
            labels,
            a.layout,
            a.rows + b.rows,
            a.counts + b.counts,
            joined(held[0], a.moments, held[1], b.moments),
            distinct.union(a.registers, b.registers),
            np.maximum(a.parts, b.parts),
        )

    def to_bytes(self) -> bytes:
        """The profiles as `from_bytes` reads them: names and values as plain text, numbers compressed."""
        columns = [
            [item.name, item.text, list(item.values), None if item.known is None else sorted(item.known), len(item.edges)]
            for item in self.layout
        ]
        edges = np.array([edge for item in self.layout for edge in item.edges], np.float64)
        counts = self.counts.astype(np.min_scalar_type(int(self.counts.max(initial=0))))
        arrays = {"edges": edges, "rows": self.rows, "counts": counts, "moments": self.moments}
        return pack(
            _MAGIC,
            {"slices": [list(label) for label in self.labels], "columns": columns},
            {**arrays, "registers": self.registers, "parts": self.parts},
        )

    @staticmethod
    def from_bytes(data: bytes) -> Profiles:
        """The profiles that `to_bytes` wrote. Raises Corrupt."""
        header, arrays = unpack(_MAGIC, data)
        try:
            found = _read(header, arrays)
        except (ValueError, KeyError, TypeError) as error:
            raise Corrupt(f"a profile that does not fit together: {error}", "one that was stored", "make it anew") from None
        return found

    @cached_property
    def _places(self) -> dict[str, int]:
        return {item.name: place for place, item in enumerate(self.layout)}

    def _row(self, row: int) -> Profile:
        columns: dict[str, Numbers | Categories] = {}
        for place, item in enumerate(self.layout):
            *counts, missing = (int(count) for count in self.counts[row, place])
            low, high, mean, m2 = (float(value) for value in self.moments[row, place])
            sketch = (self.registers[place] if row == 0 else self.parts[row - 1, place]).tobytes()
            if item.text:
                held, other = dict(zip(item.values, counts, strict=False)), counts[len(item.values)]
                columns[item.name] = Categories(sum(counts), missing, held, other, None if row else item.known, sketch)
            else:
                bins = tuple(counts[: item.bins])
                columns[item.name] = Numbers(sum(counts), missing, low, high, mean, m2, item.edges, bins, sketch)
        return Profile(int(self.rows[row]), columns)

    def _laid(self, labels: tuple[tuple[str, str], ...], layout: tuple[Layout, ...]) -> Profiles:
        """The same profiles over these slices and columns, which have all of theirs. What is not theirs is empty or missing."""
        width = max((item.bins + 1 for item in layout), default=1)
        at = {label: 1 + place for place, label in enumerate(labels)}
        rows = np.array([0, *(at[label] for label in self.labels)])
        mine = {item.name: place for place, item in enumerate(layout)}
        place = np.array([mine[item.name] for item in self.layout], np.int64)
        made = replace(
            self,
            labels=labels,
            layout=layout,
            rows=np.zeros(1 + len(labels), np.int64),
            counts=np.zeros((1 + len(labels), len(layout), width), np.int64),
            moments=np.tile(EMPTY, (1 + len(labels), len(layout), 1)),
            registers=np.zeros((len(layout), self.registers.shape[1]), np.uint8),
            parts=np.zeros((len(labels), len(layout), distinct.PART), np.uint8),
        )
        made.rows[rows] = self.rows
        made.counts[:, :, -1] = made.rows[:, None]
        made.counts[rows[:, None], place, -1] = self.counts[:, :, -1]
        bins = min(width, self.counts.shape[2]) - 1
        made.counts[rows[:, None], place, :bins] = self.counts[:, :, :bins]
        made.moments[rows[:, None], place] = self.moments
        made.registers[place] = self.registers
        made.parts[rows[1:, None] - 1, place] = self.parts
        return made


def _read(header: Any, arrays: Mapping[str, NDArray[Any]]) -> Profiles:
    """Raises ValueError, KeyError or TypeError for what `to_bytes` did not write."""
    edges, at, layout = arrays["edges"].tolist(), 0, []
    for name, text, values, known, inner in header["columns"]:
        held = None if known is None else frozenset(known)
        layout.append(Layout(name, text, tuple(edges[at : at + inner]), tuple(values), held))
        at += inner
    labels = tuple((column, value) for column, value in header["slices"])
    found = Profiles(labels, tuple(layout), **{name: array for name, array in arrays.items() if name != "edges"})
    slices, size, width = len(labels), len(layout), max((item.bins + 1 for item in layout), default=1)
    fits = {
        "rows": found.rows.shape == (1 + slices,),
        "counts": found.counts.ndim == 3 and found.counts.shape[:2] == (1 + slices, size) and found.counts.shape[2] >= width,
        "moments": found.moments.shape == (1 + slices, size, 4),
        "registers": found.registers.ndim == 2 and len(found.registers) == size,
        "parts": found.parts.shape == (slices, size, distinct.PART),
    }
    if unfit := [name for name, fit in fits.items() if not fit]:
        raise ValueError(f"{', '.join(unfit)} of another shape")
    return found


def _groups(frame: Frame, name: str, like: Profiles | None) -> tuple[str, ...]:
    """The values of a slice column that get a profile of their own."""
    if name not in frame.names or not frame.is_text(name):
        raise InvalidShard(f"{name!r} is no column of text", "slices by text columns", "add the column, or leave the slice out")
    old = [value for column, value in (like.labels if like else ()) if column == name and value not in (OTHER, MISSING)]
    found = pc.value_counts(
        pa.chunked_array([frame.texts(name, *block).cast(pa.string()) for block in frame.blocks()], pa.string())
    )
    counted = [(-item["counts"], item["values"]) for item in found.to_pylist() if item["values"] is not None]
    fresh = [value for _, value in sorted(counted) if value not in {*old, OTHER, MISSING}]
    return tuple(sorted([*old, *fresh[: max(0, SLICES - len(old))]]))


def _cut(texts: pa.Array, values: tuple[str, ...], first: int) -> Cut:
    kept = pa.array([*values, OTHER, MISSING], pa.string())
    group = (
        pc.index_in(texts.cast(pa.string()), value_set=kept, skip_nulls=True).fill_null(len(values)).to_numpy().astype(np.int64)
    )
    if texts.null_count:
        group[texts.is_null().to_numpy(zero_copy_only=False)] = len(values) + 1
    return Cut(group, np.argsort(group.astype(np.uint16), kind="stable"), first, len(kept))


def _assembled(labels: list[tuple[str, str]], sizes: Ints, tallies: list[Tally]) -> Profiles:
    """The tallies as arrays, slices that have no row left out."""
    kept = np.concatenate([[True], sizes[1:] > 0])
    width = max((tally.layout.bins + 1 for tally in tallies), default=1)
    counts = np.zeros((kept.sum(), len(tallies), width), np.int64)
    for place, tally in enumerate(tallies):
        counts[:, place, : tally.layout.bins] = tally.counts[kept, :-1]
        counts[:, place, -1] = tally.counts[kept, -1]
    layout = [replace(t.layout, known=None if t.known is None else frozenset(t.known)) for t in tallies]
    rows, size = int(kept.sum()), len(tallies)
    return Profiles(
        tuple(label for label, held in zip(labels, kept[1:], strict=True) if held),
        tuple(layout),
        sizes[kept],
        counts,
        np.array([tally.moments[kept] for tally in tallies]).reshape(size, rows, 4).swapaxes(0, 1),
        np.array([tally.whole for tally in tallies], np.uint8).reshape(size, distinct.WHOLE),
        np.array([tally.parts[kept[1:]] for tally in tallies], np.uint8).reshape(size, rows - 1, distinct.PART).swapaxes(0, 1),
    )


def _agreed(mine: Layout, theirs: Layout) -> Layout:
    """One layout for a column of both sides. Raises Corrupt."""
    if (mine.text, mine.edges) != (theirs.text, theirs.edges):
        raise Corrupt(
            f"profiles with different edges of {mine.name!r}", "edges of one reference", "profile both like one reference"
        )
    if mine.values != theirs.values:
        raise Corrupt(
            f"profiles that count different values of {mine.name!r}", "the same values", "profile both like one reference"
        )
    if mine.known is None or theirs.known is None or len(known := mine.known | theirs.known) > KNOWN:
        return replace(mine, known=None)
    return replace(mine, known=known)
