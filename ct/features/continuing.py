"""An encoder that goes on from an earlier one, so that a model trained on the earlier one's inputs still says the same. Pure."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ct.features.encode import RARE, UNKNOWN, Encoder, Ids, Vocabulary

MOVED, STRETCHED = 2.0, 3.0


def fault(earlier: Encoder, fitted: Encoder) -> str:
    """Why `fitted`, learned on newer rows, cannot go on from `earlier`; "" when it can.

    Both must encode the same columns in the same way. A column whose mean moved by more than 2 of the earlier deviations, or whose
    deviation is more than 3 times larger or smaller, needs a scale of its own.
    """
    if [scale.name for scale in earlier.scales] != [scale.name for scale in fitted.scales] or [
        _kind(part) for part in earlier.categories
    ] != [_kind(part) for part in fitted.categories]:
        return "the features are encoded in another way"
    for before, now in zip(earlier.scales, fitted.scales, strict=True):
        if before.clip != now.clip:
            return f"{before.name} is scaled in another way"
        stretched = max(now.deviation / before.deviation, before.deviation / now.deviation)
        if abs(now.mean - before.mean) > MOVED * before.deviation or stretched > STRETCHED:
            return (
                f"the scale of {before.name} has moved from {before.mean:.4g} ± {before.deviation:.4g} "
                f"to {now.mean:.4g} ± {now.deviation:.4g}"
            )
    return ""


def _kind(part: Ids) -> tuple[str, str, int]:
    return type(part).__name__, part.name, 0 if isinstance(part, Vocabulary) else part.size


def continued(earlier: Encoder, fitted: Encoder) -> Encoder:
    """`earlier` with the values that `fitted` has and it has not, behind its own.

    Scales, bins and all ids stay, so that every number keeps its meaning. A value that was rare or unknown and now has an id is the only
    thing that is encoded otherwise; values that are rare for the first time stay unknown.
    """
    return replace(earlier, categories=tuple(_grown(a, b) for a, b in zip(earlier.categories, fitted.categories, strict=True)))


def _grown(earlier: Ids, fitted: Ids) -> Ids:
    if not isinstance(earlier, Vocabulary) or not isinstance(fitted, Vocabulary):
        return earlier
    known = frozenset(earlier.values)
    new = tuple(value for value in fitted.values if value not in known)
    return replace(earlier, values=earlier.values + new, rare=tuple(value for value in earlier.rare if value not in new))


def sources(earlier: Encoder, later: Encoder) -> tuple[NDArray[np.int64], ...]:
    """For each category of `later`: of each of its ids, the id that `earlier` gives the same value, int64 [ids].

    Begun with the embedding rows of these ids, a model says of every row what it said before.
    """
    found = []
    for before, now in zip(earlier.categories, later.categories, strict=True):
        ids = np.arange(now.size, dtype=np.int64)
        if isinstance(before, Vocabulary) and isinstance(now, Vocabulary):
            ids[RARE + 1 :] = before.ids(np.array(now.values, dtype=object)) if now.values else UNKNOWN
        found.append(ids)
    return tuple(found)
