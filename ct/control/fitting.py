"""From a run's rows to a fitted model: encoder, weights, calibration, threshold. What it is judged by and packed into is not here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ct.control import runs
from ct.control.place import Place, Step
from ct.control.rows import Rows, take
from ct.evaluation import calibration, metrics
from ct.features.encode import Encoder
from ct.objectives import Calibration
from ct.training import trainer
from ct.training.data import TrainingSet


@dataclass(frozen=True)
class Fitted:
    """A model with all that was learned for it. `threshold` is the score from which a binary label is 1; `calibrated` says how it was."""

    model: Any
    encoder: Encoder
    trained: trainer.Trained
    calibration: Calibration
    threshold: float
    calibrated: str = ""


def fit(place: Place, run: runs.Run, data: Rows, model: Any, *, workers: int, gpu: bool, on_step: Step) -> Fitted:
    """Train `model` (without searches) on the rows that train, then fit its calibration and threshold on those held back."""
    line = place.pipeline
    objective = line.label.objective
    encoder = Encoder.fit(take(data.columns, data.split.train), line.outputs)
    on_step("training")
    weight = row_weights(place, data)
    folder = save(place, data, encoder, data.split.train, f"{run.id}-train", weight=weight)
    stop = save(place, data, encoder, data.split.stop, f"{run.id}-stop") if data.split.stop.any() else None
    trained = trainer.train(
        folder,
        model,
        objective=objective,
        stop=stop,
        workers=workers,
        gpu=gpu,
        run=run.id,
        storage=place.settings.home / "training",
        on_progress=_epochs(on_step),
    )
    fitted, threshold = scale(place, data), 0.5
    truth = data.label[data.split.calibrate]
    if len(truth):
        held = save(place, data, encoder, data.split.calibrate, f"{run.id}-held")
        raw = trainer.raw(held, model, objective, trained.weights)
        fitted = calibration.fit(model.calibrate, objective, raw, truth)
        if objective.kind == "binary":
            threshold = metrics.best_threshold(fitted.scores(objective, raw), truth)
    said = calibration.explain(model.calibrate, objective, fitted, truth)
    on_step(f"calibration: {said}")
    return Fitted(model, encoder, trained, fitted, threshold, said)


def scale(place: Place, data: Rows) -> Calibration:
    """The scale on which the module learns the labels, from the rows that train; a plain one for classes."""
    return calibration.scale(place.pipeline.label.objective, data.label[data.split.train])


def row_weights(place: Place, data: Rows) -> NDArray[np.float64] | None:
    """How much each training row counts, [rows that train]; None where every row counts alike."""
    return data.weight[data.split.train] if place.pipeline.label.weight else None


def save(
    place: Place, data: Rows, encoder: Encoder, mask: NDArray[np.bool_], name: str, *, weight: NDArray[np.float64] | None = None
) -> Path:
    """Write the encoded rows under `mask` as a training set and return its folder, numbers as labels in their `scale`.

    `weight` has one value for each row.
    """
    part = take(data.columns, mask)
    made = TrainingSet(
        numeric=encoder.numeric(part),
        category=encoder.category(part),
        label=scale(place, data).standard(data.label[mask]).astype(np.float32),
        shape=encoder.shape,
        weight=None if weight is None else weight.astype(np.float32),
    )
    return made.save(place.settings.home / "work" / name)


def _epochs(on_step: Step) -> Callable[[Mapping[str, Any]], None]:
    return lambda seen: on_step(f"training, epoch {seen['epoch'] + 1}, loss {seen['loss']:.4f}")
