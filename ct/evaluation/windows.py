"""Which rows train and which rows judge. Pure: times in, masks out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from ct.errors import TrainingFailed
from ct.objectives import BINARY, Objective


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
    """Masks [n] over the rows of a feature set, no two of which share a row, and the window that judges.

    `calibrate` and `stop` were taken out of the rows that train: on the first the calibration and threshold are fitted, on the second
    training is stopped. Either may be empty.
    """

    train: NDArray[np.bool_]
    judge: NDArray[np.bool_]
    window: Window
    calibrate: NDArray[np.bool_]
    stop: NDArray[np.bool_]


def split(
    times: NDArray[np.int64],
    known_at: NDArray[np.int64],
    label: NDArray[np.float64],
    *,
    holdout_us: int,
    objective: Objective = BINARY,
    minimum: int = 200,
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
        enough(mask, label, what, objective=objective, minimum=minimum)
    none = np.zeros(len(label), dtype=np.bool_)
    return Split(train, judge, Window(start, stop), none, none)


def narrowed(found: Split, train: NDArray[np.bool_], label: NDArray[np.float64], *, objective: Objective = BINARY) -> Split:
    """The split with fewer rows that train. Raises TrainingFailed when they are too few."""
    return replace(found, train=enough(train, label, "to train on", objective=objective))


def held_back(
    found: Split, keys: NDArray[np.int64], label: NDArray[np.float64], *, share: float, stopping: bool, minimum: int = 50
) -> Split:
    """Take `share` of the training rows out for `calibrate`, and as many again for `stop` when `stopping`.

    Which rows follows from the hashes `keys` [n] alone, so a row is held back in every run that sees it. Fewer than `minimum` rows,
    or labels that are all alike, calibrate nothing: then they stay with those that train.
    """
    place = _uniform(keys)
    calibrate = found.train & (place < share)
    stop = found.train & (share <= place) & (place < 2 * share) & stopping
    for mask in (calibrate, stop):
        if mask.any() and (mask.sum() < minimum or np.ptp(label[mask]) == 0):
            mask[:] = False
    return replace(found, train=found.train & ~calibrate & ~stop, calibrate=calibrate, stop=stop)


def _uniform(keys: NDArray[np.int64]) -> NDArray[np.float64]:
    """Each hash as a number in [0, 1) that shares nothing with what else is drawn from the same hashes (the finisher of splitmix64)."""
    mixed = keys.view(np.uint64) ^ np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    found: NDArray[np.float64] = (mixed >> np.uint64(11)).astype(np.float64) / 2.0**53
    return found


def enough(
    mask: NDArray[np.bool_], label: NDArray[np.float64], what: str, *, objective: Objective = BINARY, minimum: int = 200
) -> NDArray[np.bool_]:
    """The mask [n]. Raises TrainingFailed when it leaves fewer than `minimum` rows, or labels that are all alike."""
    count = int(mask.sum())
    kept = label[mask]
    if count < minimum or np.ptp(kept) == 0:
        seen = f", {int(kept.sum())} of them positive" if objective.kind == "binary" else ""
        kinds = "of both classes" if objective.kind == "binary" else "with different labels"
        raise TrainingFailed(
            f"{count} rows {what}{seen}",
            f"at least {minimum} rows {kinds}",
            "let more data land, shorten the pipeline's holdout or choose more rows",
        )
    return mask
