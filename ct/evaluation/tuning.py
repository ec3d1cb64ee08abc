"""Which rows tell a sweep's trials apart. Never those that the gate judges by: the best of many trials on them would be an illusion."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ct.evaluation.windows import Split, enough
from ct.objectives import BINARY, Objective

SHARE = 0.2


@dataclass(frozen=True)
class Tuning:
    """Masks [n] over a run's rows, no two of which share a row: on which trials are trained, judged, and stopped early (may be empty)."""

    train: NDArray[np.bool_]
    judge: NDArray[np.bool_]
    stop: NDArray[np.bool_]


def tuning(
    split: Split,
    times: NDArray[np.int64],
    known_at: NDArray[np.int64],
    label: NDArray[np.float64],
    *,
    objective: Objective = BINARY,
    share: float = SHARE,
    minimum: int = 100,
    after: int = 0,
) -> Tuning:
    """The newest `share` of the rows that train judges a sweep's trials, as the gate judges by what is newer still.

    With `after`, only those from that time (microseconds) on, where there are enough of them. A row whose label became known only inside that share's time neither trains nor stops (embargo).
    Raises TrainingFailed when either side has fewer than `minimum` rows or labels that are all alike.
    """
    known = np.sort(times[split.train])
    start = known[int(len(known) * (1 - share))]
    late = split.train & (times >= max(start, after))
    if late.sum() >= minimum and label[late].min() < label[late].max():
        start = max(start, after)
    older = (times < start) & (known_at < start)
    train, judge = split.train & older, split.train & (times >= start)
    for mask, what in ((train, "to train trials on"), (judge, "to judge trials on")):
        enough(mask, label, what, objective=objective, minimum=minimum)
    return Tuning(train, judge, split.stop & older)
