"""Aggregates over spans [start, stop) of one array, in one fixed order of addition: the same bits for one span or a million."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_AT_ONCE = 1 << 20


def last(values: Floats, start: Ints, stop: Ints) -> Floats:
    """The span's newest value, missing or not; NaN for an empty span."""
    if len(start) == 1:
        return np.array([values[stop[0] - 1] if stop[0] > start[0] else np.nan])
    full = stop > start
    found = np.full(len(start), np.nan)
    found[full] = values[stop[full] - 1]
    return found


def _present(values: Floats, start: Ints, stop: Ints) -> tuple[Floats, Ints, Ints]:
    """The spans over the values that are not missing."""
    missing = np.isnan(values)
    if not missing.any():
        return values, start, stop
    keep = ~missing
    position = np.concatenate(([0], np.cumsum(keep)))
    return values[keep], position[start], position[stop]


def _reduce(function: Any, values: Floats, start: Ints, stop: Ints) -> Floats:
    """`function` over each non-empty span, NaN over empty ones."""
    if len(start) == 1:  # one row, as in serving: the same operation on the same numbers, without the bookkeeping
        span = values[start[0] : stop[0]]
        with np.errstate(over="ignore", invalid="ignore"):
            return np.asarray(function.reduceat(span, [0])) if len(span) else np.array([np.nan])
    found = np.full(len(start), np.nan)
    full = np.flatnonzero(stop > start)
    if not len(full):
        return found
    # reduceat also reduces the gaps between spans; in order of start they add up to at most one pass over the values.
    if np.any(start[full[1:]] < start[full[:-1]]):
        full = full[np.argsort(start[full], kind="stable")]
    bounds = np.empty(2 * len(full), dtype=np.int64)
    bounds[0::2], bounds[1::2] = start[full], stop[full]
    with np.errstate(over="ignore", invalid="ignore"):
        found[full] = function.reduceat(np.append(values, 0.0), bounds)[0::2]
    return found


def _count(values: Floats, start: Ints, stop: Ints) -> Floats:
    _, start, stop = _present(values, start, stop)
    return (stop - start).astype(np.float64)


def _sum(values: Floats, start: Ints, stop: Ints) -> Floats:
    return _reduce(np.add, *_present(values, start, stop))


def _mean(values: Floats, start: Ints, stop: Ints) -> Floats:
    values, start, stop = _present(values, start, stop)
    total = _reduce(np.add, values, start, stop)
    mean: Floats = total / np.maximum(stop - start, 1)
    return mean


def _std(values: Floats, start: Ints, stop: Ints) -> Floats:
    """Population deviation in two passes: about each span's own mean, so that large values that lie close keep their digits."""
    values, start, stop = _present(values, start, stop)
    mean = _mean(values, start, stop)
    found = np.full(len(start), np.nan)
    full = np.flatnonzero(stop > start)
    ends = np.cumsum(stop[full] - start[full])
    cuts = np.searchsorted(ends, np.arange(_AT_ONCE, ends[-1] if len(ends) else 0, _AT_ONCE))
    for part in np.split(full, cuts):
        if len(part):
            size = stop[part] - start[part]
            first = np.cumsum(size) - size
            with np.errstate(over="ignore", invalid="ignore"):
                away = values[np.arange(size.sum()) + np.repeat(start[part] - first, size)] - np.repeat(mean[part], size)
                found[part] = np.sqrt(np.add.reduceat(away * away, first) / size)
    return found


def _min(values: Floats, start: Ints, stop: Ints) -> Floats:
    return _reduce(np.minimum, *_present(values, start, stop)) + 0.0


def _max(values: Floats, start: Ints, stop: Ints) -> Floats:
    return _reduce(np.maximum, *_present(values, start, stop)) + 0.0


def _last(values: Floats, start: Ints, stop: Ints) -> Floats:
    return last(*_present(values, start, stop))


AGGREGATES: Mapping[str, Callable[[Floats, Ints, Ints], Floats]] = {
    "count": _count,
    "sum": _sum,
    "mean": _mean,
    "std": _std,
    "min": _min,
    "max": _max,
    "last": _last,
}
