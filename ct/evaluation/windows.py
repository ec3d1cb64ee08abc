"""Which rows train and which rows judge. Pure: times in, masks out."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from ct.errors import TrainingFailed


@dataclass(frozen=True)
class Window:
    """Event times [start, stop) in microseconds since 1970 UTC."""

    start: int
    stop: int

    def __str__(self) -> str:
        """The window as two dates."""
        start, stop = (datetime.fromtimestamp(value / 1e6, UTC) for value in (self.start, self.stop))
        return f"{start:%Y-%m-%d %H:%M} to {stop:%Y-%m-%d %H:%M}"


@dataclass(frozen=True)
class Split:
    """Masks [n] over the rows of a feature set, and the window that judges."""

    train: NDArray[np.bool_]
    judge: NDArray[np.bool_]
    window: Window


def split(
    times: NDArray[np.int64], known_at: NDArray[np.int64], label: NDArray[np.float64], *, holdout_us: int, minimum: int = 200
) -> Split:
    """The newest `holdout_us` of event time judges, all earlier rows train. Rows without a label do neither.

    A label that became known only inside the judging window does not train (embargo): at the moment the window began,
    nobody knew it. Raises TrainingFailed when either side has fewer than `minimum` rows or only one class.
    """
    labelled = ~np.isnan(label)
    if not labelled.any():
        raise TrainingFailed("no row has a label", "labelled rows", "wait until labels are known, or check the label's column")
    stop = int(times[labelled].max()) + 1
    start = stop - holdout_us
    train = labelled & (times < start) & (known_at < start)
    judge = labelled & (times >= start)
    for mask, what in ((train, "to train on"), (judge, "to judge on")):
        enough(mask, label, what, minimum=minimum)
    return Split(train, judge, Window(start, stop))


def enough(mask: NDArray[np.bool_], label: NDArray[np.float64], what: str, *, minimum: int = 200) -> NDArray[np.bool_]:
    """The mask [n]. Raises TrainingFailed when it leaves fewer than `minimum` rows or only one class."""
    count, positive = int(mask.sum()), int(label[mask].sum()) if mask.any() else 0
    if count < minimum or positive in (0, count):
        raise TrainingFailed(
            f"{count} rows {what}, {positive} of them positive",
            f"at least {minimum} rows of both classes",
            "let more data land, shorten the pipeline's holdout or choose more rows",
        )
    return mask
