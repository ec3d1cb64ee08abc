"""Data drift of each column between two profiles: an effect above a floor and beyond sampling noise. Pure; reads counts only."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ct.data.profile import Categories, Numbers, Profile, Profiles
from ct.errors import InvalidSettings
from ct.monitoring.distance import Floats, Ints, Mask, false_discovery, measure

_OTHER_BINS = "not compared: counted on other bins, profile it like the reference"


@dataclass(frozen=True)
class FeatureDrift:
    """One column now against the reference.

    `effect` in [0, 1] is the distance of the two distributions with the sampling noise taken off: 0 is equal, 1 is disjoint.
    For a normal column that only moves, it is about half the move in standard deviations. `p_value` is for "the distance is
    `floor` at most"; `drifted` holds over all columns together. `missing_before` and `missing_now` are shares of rows.
    """

    column: str
    kind: str
    effect: float
    floor: float
    p_value: float
    drifted: bool
    missing_before: float
    missing_now: float
    note: str = ""


@dataclass(frozen=True)
class SliceDrift:
    """One column within the rows whose `slice_column` is `slice_value`. `feature.drifted` holds over all slices and columns together."""

    slice_column: str
    slice_value: str
    rows_before: int
    rows_now: int
    feature: FeatureDrift


@dataclass(frozen=True, eq=False)
class SlicedDrift:
    """Every column of every slice that both sides have: `effect`, `p_value`, `drifted`, `compared` [s, k], rows `slices`, columns `columns`.

    `gone` are slices of the reference that have no row now, `new` slices that have rows only now.
    """

    reference: Profiles
    current: Profiles
    floor: float
    slices: tuple[tuple[str, str], ...]
    columns: tuple[str, ...]
    effect: Floats
    p_value: Floats
    compared: Mask
    drifted: Mask

    @cached_property
    def gone(self) -> tuple[tuple[str, str], ...]:
        """Slices that have no row any more."""
        return tuple(label for label in self.reference.slices() if label not in self.slices)

    @cached_property
    def new(self) -> tuple[tuple[str, str], ...]:
        """Slices that had no row before."""
        return tuple(label for label in self.current.slices() if label not in self.slices)

    def worst(self, most: int = 20) -> tuple[SliceDrift, ...]:
        """The drifted columns of slices, the greatest effects first, `most` at most."""
        order = np.argsort(np.where(self.drifted, -self.effect, 1.0), axis=None, kind="stable")[:most]
        places = [(int(at) // len(self.columns), int(at) % len(self.columns)) for at in order]
        return tuple(self._one(s, k) for s, k in places if self.drifted[s, k])

    def _one(self, s: int, k: int) -> SliceDrift:
        column, value = self.slices[s]
        before, now = self.reference.slice(column, value), self.current.slice(column, value)
        assert before is not None, "slices are those of both sides"
        assert now is not None, "slices are those of both sides"
        name = self.columns[k]
        feature = _feature(
            name,
            before.columns[name],
            now.columns[name],
            effect=float(self.effect[s, k]),
            floor=self.floor,
            p_value=float(self.p_value[s, k]),
            drifted=bool(self.drifted[s, k]),
        )
        return SliceDrift(column, value, before.rows, now.rows, feature)


def compare(reference: Profile, current: Profile, *, floor: float = 0.1, alpha: float = 0.01) -> tuple[FeatureDrift, ...]:
    """Every column of `current` against `reference`. `current` must have been profiled like `reference`.

    The distance is sqrt(sum (p - q)^2 / (p + q) / 2) over bins or values, missing being one of them. With n and m rows, 4nm/(n+m) times
    its square follows a non-central chi-square law (idea: arXiv:2307.11878); `alpha` bounds the share of false finds among the finds
    (Benjamini and Hochberg, 1995), so on two samples without drift it bounds the chance of any find.
    """
    _check(floor, alpha)
    names = [name for name in reference.columns if name in current.columns]
    before, now = (
        Profiles.single(Profile(side.rows, {name: side.columns[name] for name in names})) for side in (reference, current)
    )
    whole = np.zeros(1, np.int64)
    effect, p_value, freedom = (found[0] for found in _tested(before, now, whole, whole, floor))
    found, compared = [], np.zeros(len(names), np.bool_)
    for k, name in enumerate(names):
        note = _why_not(reference.columns[name], int(freedom[k]))
        compared[k] = not note
        row = _feature(
            name,
            reference.columns[name],
            current.columns[name],
            effect=float(effect[k]),
            floor=floor,
            p_value=float(p_value[k]),
            note=note if note or not freedom[k] else None,
        )
        found.append(row)
    drifted = _finds(p_value, compared, alpha)
    return tuple(replace(row, drifted=bool(is_find)) for row, is_find in zip(found, drifted, strict=True))


def compare_slices(reference: Profiles, current: Profiles, *, floor: float = 0.1, alpha: float = 0.01) -> SlicedDrift:
    """Every column of `current` within every slice against the same slice of `reference`, as `compare` does; `alpha` is for all together.

    `current` must have been profiled like `reference`. A column that was counted on other bins is left out, and so is a slice that only
    one side has: see `SlicedDrift.gone` and `SlicedDrift.new`.
    """
    _check(floor, alpha)
    known = frozenset(current.names)
    names = [name for name in reference.names if name in known]
    now = {label: row for row, label in enumerate(current.labels, 1) if current.rows[row]}
    held = [(label, row) for row, label in enumerate(reference.labels, 1) if reference.rows[row] and label in now]
    rows = np.array([row for _, row in held], np.int64), np.array([now[label] for label, _ in held], np.int64)
    effect, p_value, freedom = _tested(reference, current, *rows, floor)
    compared = freedom > 0
    drifted = _finds(p_value.ravel(), compared.ravel(), alpha).reshape(compared.shape)
    labels = tuple(label for label, _ in held)
    return SlicedDrift(reference, current, floor, labels, tuple(names), effect, p_value, compared, drifted)


def _check(floor: float, alpha: float) -> None:
    if not 0 < floor < 1 or not 0 < alpha < 1:
        raise InvalidSettings(f"floor {floor!r}, alpha {alpha!r}", "both between 0 and 1", "leave them out for 0.1 and 0.01")


def _finds(p_values: Floats, compared: Mask, alpha: float) -> Mask:
    drifted = np.zeros(len(p_values), np.bool_)
    drifted[compared] = false_discovery(p_values[compared], alpha)
    return drifted


def _tested(before: Profiles, now: Profiles, old: Ints, new: Ints, floor: float) -> tuple[Floats, Floats, Ints]:
    """Effect, p-value and degrees of freedom of each column both have, in rows `old` of `before` against `new` of `now`, each [s, k].

    Degrees of freedom are 0 where all rows fell into one pool, -1 where a side has none, -2 where the bins are others.
    """
    mine, theirs = ({name: place for place, name in enumerate(side.names)} for side in (before, now))
    names = [name for name in before.names if name in theirs]
    shape = (len(old), len(names))
    effect, p_value, freedom = np.zeros(shape), np.ones(shape), np.full(shape, -2)
    for text in (False, True):
        at = [k for k, name in enumerate(names) if _alike(before, now, mine[name], theirs[name], text)]
        places = [mine[names[k]] for k in at], [theirs[names[k]] for k in at]
        bins = max((before.layout[place].bins for place in places[0]), default=0)
        a, b = _counts(before, old, places[0], bins), _counts(now, new, places[1], bins)
        frequent = None
        if text:
            alone = _may_stand_alone(before, now, *places, bins)
            frequent = np.broadcast_to(alone, a.shape).reshape(-1, bins + 1)
        if a.size:
            found = measure(a.reshape(-1, bins + 1), b.reshape(-1, bins + 1), frequent, floor)
            for target, values in ((effect, found.effect), (p_value, found.p_value), (freedom, found.freedom)):
                target[:, at] = values.reshape(len(old), len(at))
    return effect, p_value, freedom


def _alike(before: Profiles, now: Profiles, mine: int, theirs: int, text: bool) -> bool:
    a, b = before.layout[mine], now.layout[theirs]
    return (a.text, a.edges, a.values) == (text, b.edges, b.values) and a.text == b.text


def _counts(side: Profiles, rows: Ints, places: list[int], bins: int) -> NDArray[np.integer]:
    """Rows by bin, missing last, [s, k, bins + 1]."""
    found: NDArray[np.integer] = side.counts[np.ix_(rows, np.array(places, np.int64), np.array([*range(bins), -1]))]
    return found


def _may_stand_alone(before: Profiles, now: Profiles, mine: list[int], theirs: list[int], bins: int) -> Mask:
    """The values, and missing, that are no part of "other", [k, bins + 1]: those that surely have a bin of their own in the reference.

    That is from 2 standard errors above the rarest that has one. Nearer to that cut, values have a bin because they happened to be frequent
    in the reference, and would seem to have become rarer. It is the whole reference, and not a slice of it, that chose them.
    """
    whole = np.zeros(1, np.int64)
    old, new = _counts(before, whole, mine, bins)[0], _counts(now, whole, theirs, bins)[0]
    n, m = (np.maximum(side.sum(axis=1, keepdims=True), 1) for side in (old, new))
    share = (old / n + new / m) / 2
    values = np.array([len(before.layout[place].values) for place in mine], np.int64)[:, None]
    own = np.arange(bins + 1) < values
    least = np.min(np.where(own, old, np.inf), axis=1, initial=np.inf, keepdims=True)
    least = np.where(np.isfinite(least) & (np.take_along_axis(old, values, axis=1) > 0), least, 0.0)
    alone: Mask = own & (share * n >= least + 2 * np.sqrt(least))
    alone[:, -1] = True
    return alone


def _why_not(before: Numbers | Categories, freedom: int) -> str:
    if freedom == -2:
        return _OTHER_BINS
    if freedom == -1:
        return "not compared: no rows"
    return "not compared: too few rows" if not freedom and _values(before) > 1 else ""


def _feature(
    name: str,
    before: Numbers | Categories,
    now: Numbers | Categories,
    *,
    effect: float,
    floor: float,
    p_value: float,
    drifted: bool = False,
    note: str | None = None,
) -> FeatureDrift:
    return FeatureDrift(
        column=name,
        kind="category" if isinstance(before, Categories) else "number",
        effect=effect,
        floor=floor,
        p_value=p_value,
        drifted=drifted,
        missing_before=_share(before),
        missing_now=_share(now),
        note=_note(before, now) if note is None else note,
    )


def _share(column: Numbers | Categories) -> float:
    rows = column.count + column.missing
    return column.missing / rows if rows else 0.0


def _values(column: Numbers | Categories) -> int:
    counts = [*column.counts.values(), column.other] if isinstance(column, Categories) else column.counts
    return sum(count > 0 for count in (*counts, column.missing))


def _note(before: Numbers | Categories, now: Numbers | Categories) -> str:
    """What changed most, in a few words."""
    parts = []
    if abs(_share(now) - _share(before)) >= 0.01:
        parts.append(f"missing {_share(before):.1%} → {_share(now):.1%}")
    if isinstance(before, Numbers) and isinstance(now, Numbers) and before.count and now.count:
        spread = math.sqrt(before.m2 / before.count)
        moved = f" ({(now.mean - before.mean) / spread:+.2f} sd)" if spread > 0 else ""
        parts.append(f"mean {before.mean:.4g} → {now.mean:.4g}{moved}")
    if isinstance(before, Categories) and isinstance(now, Categories) and before.count and now.count:
        old = {**before.counts, "other values": before.other}
        new = {**now.counts, "other values": now.other}
        change = {key: new[key] / now.count - old[key] / before.count for key in old}
        most = max(change, key=lambda key: abs(change[key]))
        parts.append(f"{most} {old[most] / before.count:.1%} → {new[most] / now.count:.1%}")
    return ", ".join(parts)
