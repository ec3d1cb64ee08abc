"""Data drift of each column between two profiles: an effect above a floor and beyond sampling noise. Pure; reads counts only."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ct.data.profile import Categories, Numbers, Profile
from ct.errors import InvalidSettings

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

EXPECTED = 5.0
"""Bins are pooled until the smaller side may expect so many rows in each: below, the chi-square law does not hold."""


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


def compare(reference: Profile, current: Profile, *, floor: float = 0.1, alpha: float = 0.01) -> tuple[FeatureDrift, ...]:
    """Every column of `current` against `reference`. `current` must have been profiled like `reference`.

    The distance is sqrt(sum (p - q)^2 / (p + q) / 2) over bins or values, missing being one of them. With n and m rows, 4nm/(n+m) times
    its square follows a non-central chi-square law (idea: arXiv:2307.11878); `alpha` bounds the share of false finds among the finds
    (Benjamini and Hochberg, 1995), so on two samples without drift it bounds the chance of any find.
    """
    if not 0 < floor < 1 or not 0 < alpha < 1:
        raise InvalidSettings(f"floor {floor!r}, alpha {alpha!r}", "both between 0 and 1", "leave them out for 0.1 and 0.01")
    names = [name for name in reference.columns if name in current.columns]
    found = [_column(name, reference, current, floor) for name in names]
    tested = [row for row in found if not row.note.startswith("not compared")]
    cut = _false_discovery_cut([row.p_value for row in tested], alpha)
    return tuple(replace(row, drifted=row in tested and row.p_value <= cut) for row in found)


def _false_discovery_cut(p_values: list[float], alpha: float) -> float:
    """The largest p-value that counts as a find, -1 for none."""
    kept = [p for rank, p in enumerate(sorted(p_values), 1) if p <= alpha * rank / len(p_values)]
    return max(kept, default=-1.0)


def _column(name: str, reference: Profile, current: Profile, floor: float) -> FeatureDrift:
    before, now = reference.columns[name], current.columns[name]
    row = FeatureDrift(
        column=name,
        kind="category" if isinstance(before, Categories) else "number",
        effect=0.0,
        floor=floor,
        p_value=1.0,
        drifted=False,
        missing_before=_share(before),
        missing_now=_share(now),
    )
    counts = _counts(before, now)
    if counts is None:
        return replace(row, note="not compared: counted on other bins, profile it like the reference")
    p, q = _pooled(*counts, ordered=row.kind == "number", tracked=_tracked_from(before))
    n, m = int(p.sum()), int(q.sum())
    if not n or not m:
        return replace(row, note="not compared: no rows")
    distance = _distance(p / n, q / m)
    size, freedom = 4.0 * n * m / (n + m), len(p) - 1
    if not freedom:
        return replace(row, note="not compared: too few rows" if _values(before) > 1 else "")
    effect = math.sqrt(max(0.0, distance - freedom / size))
    p_value = _tail(size * distance, freedom, size * floor * floor)
    return replace(row, effect=effect, p_value=p_value, note=_note(before, now))


def _distance(p: Floats, q: Floats) -> float:
    """The squared distance in [0, 1] of two distributions (half the triangular discrimination)."""
    return float(((p - q) ** 2 / (p + q)).sum() / 2)


def _tail(statistic: float, freedom: int, centre: float) -> float:
    from scipy.stats import ncx2  # a second to import: only where a comparison is made

    p = float(ncx2.sf(statistic, freedom, centre))
    return min(1.0, max(0.0, p)) if math.isfinite(p) else 1.0


def _counts(before: Numbers | Categories, now: Numbers | Categories) -> tuple[Floats, Floats] | None:
    """Rows by bin or value, missing last; None where the two cannot be laid beside each other."""
    if isinstance(before, Categories) and isinstance(now, Categories):
        if before.counts.keys() != now.counts.keys():
            return None
        keys = list(before.counts)
        old = [*(before.counts[key] for key in keys), before.other, before.missing]
        new = [*(now.counts[key] for key in keys), now.other, now.missing]
    elif isinstance(before, Numbers) and isinstance(now, Numbers):
        if before.edges != now.edges:
            return None
        old, new = [*before.counts, before.missing], [*now.counts, now.missing]
    else:
        return None
    return np.array(old, np.float64), np.array(new, np.float64)


def _tracked_from(before: Numbers | Categories) -> float:
    """Rows in the reference from which on a value has surely its own bin: 2 standard errors above the rarest that has one.

    Nearer to that cut, values have a bin because they happened to be frequent in the reference, and would seem to have become rarer.
    """
    if isinstance(before, Numbers) or not before.other:
        return 0.0
    least = min(before.counts.values(), default=0)
    return least + 2 * math.sqrt(least)


def _pooled(old: Floats, new: Floats, *, ordered: bool, tracked: float) -> tuple[Floats, Floats]:
    """The counts with thin bins joined, until the smaller side may expect EXPECTED rows in each.

    Ordered bins join their neighbour. Rare values of a category join "other": only values that the reference happened to hold have a
    bin, so beside "other" they would always seem to have become rarer.
    """
    n, m = old.sum(), new.sum()
    if not n or not m:
        return old, new
    share = (old / n + new / m) / 2
    expected = min(n, m) * share
    groups = _neighbours(expected) if ordered else _rare_together(expected, expected >= EXPECTED, share * n >= tracked)
    pooled = np.zeros((2, groups.max() + 1))
    np.add.at(pooled[0], groups, old)
    np.add.at(pooled[1], groups, new)
    return pooled[0], pooled[1]


def _neighbours(expected: Floats) -> NDArray[np.int64]:
    groups, group, weight = np.empty(len(expected), np.int64), 0, 0.0
    for index, rows in enumerate(expected):
        groups[index] = group
        weight += rows
        if weight >= EXPECTED:
            group, weight = group + 1, 0.0
    return np.minimum(groups, max(group - 1, 0))  # what is left over at the end is too thin to stand alone


def _rare_together(expected: Floats, common: Mask, tracked: Mask) -> NDArray[np.int64]:
    """A group for each frequent value, for missing, and the last one for rare and other values; if thin, it joins the rarest frequent value.

    `expected` has the values, then "other", then missing.
    """
    frequent = common & tracked
    frequent[-2:] = False, common[-1]
    groups = np.where(frequent, np.cumsum(frequent) - 1, frequent.sum())
    if frequent.any() and expected[~frequent].sum() < EXPECTED:
        groups[~frequent] = groups[int(np.argmin(np.where(frequent, expected, np.inf)))]
    return groups.astype(np.int64)


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
