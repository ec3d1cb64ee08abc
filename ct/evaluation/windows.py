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
    training is stopped. Either may be empty. `delay` is the age (microseconds) from which a row counts as mature; `immature` rows had a
    label but were younger, `unlabelled` rows lie in the window without one: neither judges.
    """

    train: NDArray[np.bool_]
    judge: NDArray[np.bool_]
    window: Window
    calibrate: NDArray[np.bool_]
    stop: NDArray[np.bool_]
    delay: int = 0
    immature: int = 0
    unlabelled: int = 0


def split(
    times: NDArray[np.int64],
    known_at: NDArray[np.int64],
    label: NDArray[np.float64],
    *,
    holdout_us: int,
    mature_us: int | None = None,
    objective: Objective = BINARY,
    minimum: int = 200,
) -> Split:
    """The newest `holdout_us` of mature event time judges, all earlier rows train. Rows without a label do neither.

    Of the newest rows only some have their label yet, and these differ from the rest; so a row judges from the age `mature_us` on, or
    where that is None from the age at which 99 % of the earlier labels were known. A label that became known only inside the judging
    window does not train (embargo): at the moment the window began, nobody knew it. Raises TrainingFailed when either side has fewer
    than `minimum` rows or only one class.
    """
    labelled = ~np.isnan(label)
    if not labelled.any():
        raise TrainingFailed(
            "no row has a label", "labelled rows", "wait until labels are known, or check the label's column", state="invalid"
        )
    newest = int(times[labelled].max())
    delay = maturity(times, known_at, labelled, before=newest - holdout_us) if mature_us is None else mature_us
    now = max(int(times.max()), int(known_at[labelled].max()))
    stop = min(newest, now - delay) + 1
    start = stop - holdout_us
    train = labelled & (times < start) & (known_at < start)
    within = (times >= start) & (times < stop)
    judge = labelled & within
    for mask, what in ((train, "to train on"), (judge, "to judge on")):
        enough(mask, label, what, objective=objective, minimum=minimum)
    none = np.zeros(len(label), dtype=np.bool_)
    young, missing = int((labelled & (times >= stop)).sum()), int((within & ~labelled).sum())
    return Split(train, judge, Window(start, stop), none, none, delay, young, missing)


def maturity(times: NDArray[np.int64], known_at: NDArray[np.int64], labelled: NDArray[np.bool_], *, before: int) -> int:
    """The age in microseconds at which 99 % of the labels were known, learned from labelled rows older than `before`.

    Younger rows would show only labels that came early. Fewer than 100 older ones: all labelled rows are asked.
    """
    asked = labelled & (times < before)
    if asked.sum() < 100:
        asked = labelled
    delays = np.maximum(known_at[asked] - times[asked], 0)
    return int(np.quantile(delays, 0.99, method="higher"))


def narrowed(found: Split, train: NDArray[np.bool_], label: NDArray[np.float64], *, objective: Objective = BINARY) -> Split:
    """The split with fewer rows that train. Raises TrainingFailed when they are too few."""
    return replace(found, train=enough(train, label, "to train on", objective=objective))


def held_back(
    found: Split,
    keys: NDArray[np.int64],
    label: NDArray[np.float64],
    *,
    share: float,
    stopping: bool,
    calibrating: bool = True,
    minimum: int = 50,
) -> Split:
    """Take `share` of the training rows out for `calibrate` when `calibrating`, and as many for `stop` when `stopping`.

    Which rows follows from the hashes `keys` [n] alone, so a row is held back in every run that sees it. Fewer than `minimum` rows,
    or labels that are all alike, calibrate nothing: then they stay with those that train.
    """
    place = _uniform(keys)
    calibrate = found.train & (place < share) & calibrating
    stop = found.train & (share <= place) & (place < 2 * share) & stopping  # the same rows, whether others calibrate or not
    for mask in (calibrate, stop):
        if mask.any() and (mask.sum() < minimum or _alike(label[mask])):
            mask[:] = False
    return replace(found, train=found.train & ~calibrate & ~stop, calibrate=calibrate, stop=stop)


def halves(mask: NDArray[np.bool_], keys: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """The rows under a mask [n] in two parts of about the same size. A row is in the same part in every run, by its hash alone."""
    first = _uniform(keys ^ np.int64(0x5851F42D4C957F2D)) < 0.5
    return mask & first, mask & ~first


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
    if count < minimum or _alike(kept):
        seen = f", {int(kept.sum())} of them positive" if objective.kind == "binary" else ""
        kinds = "of both classes" if objective.kind == "binary" else "with different labels"
        if count and objective.kind != "binary" and _alike(kept):
            seen = f", all labelled {objective.classes[int(kept[0])] if objective.classes else format(kept[0], 'g')!r}"
        raise TrainingFailed(
            f"{count} rows {what}{seen}",
            f"at least {minimum} rows {kinds}",
            "let more data land, shorten the pipeline's holdout or choose more rows",
            state="invalid",
        )
    return mask


def _alike(label: NDArray[np.float64]) -> bool:
    return not len(label) or bool(label.min() == label.max())
