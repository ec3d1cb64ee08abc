"""From a run's rows to a fitted model: encoder, weights, calibration, threshold. What it is judged by and packed into is not here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ct.control import evolving, runs
from ct.control.evolving import Beginning
from ct.control.place import Place, Step
from ct.control.rows import Rows, take
from ct.errors import TrainingFailed
from ct.evaluation import calibration, metrics, stacking
from ct.evaluation.windows import halves
from ct.features.encode import Encoder
from ct.objectives import Calibration
from ct.training import joining, trainer
from ct.training.data import TrainingSet
from ct.training.ensemble import Ensemble

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Fitted:
    """A model with all that was learned for it. `threshold` is the score from which a binary label is 1; `calibrated` says how it was,
    `start` where the training began."""

    model: Any
    encoder: Encoder
    trained: trainer.Trained
    calibration: Calibration
    threshold: float
    calibrated: str = ""
    start: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sets:
    """The rows of a training as encoded sets on disk: those that train, on which it stops, on which members are stacked, on which the
    scores are calibrated, with their labels (None for none), and where training begins. `weighed`: rows do not count alike."""

    train: Path
    stop: Path | None
    stack: Path | None
    held: tuple[Path, Floats] | None
    begun: Beginning
    weighed: bool = False


def fit(
    place: Place, run: runs.Run, data: Rows, model: Any, *, workers: Any, gpu: bool, on_step: Step, name: str = ""
) -> Fitted:
    """Train `model` (without searches) on the rows that train, then fit its calibration and threshold on those held back.

    An ensemble's members are trained one by one and combined. `name` stands for the run's id where one run trains several times.
    """
    on_step("training")
    sets = prepare(place, run, data, model)
    objective = place.pipeline.label.objective
    trained = _trained(place, sets, model, workers=workers, gpu=gpu, on_step=on_step, name=name or run.id)
    fitted, threshold = scale(place, data), 0.5
    truth = sets.held[1] if sets.held else np.empty(0)
    if sets.held and objective.kind in ("binary", "classes"):
        raw = trainer.raw(sets.held[0], model, objective, trained.weights)
        fitted = calibration.fit(model.calibrate, objective, raw, truth, weighed=sets.weighed)
        if objective.kind == "binary":
            threshold = metrics.best_threshold(fitted.scores(objective, raw), truth)
    said = calibration.explain(model.calibrate, objective, fitted, truth)
    on_step(f"calibration: {said}")
    return Fitted(model, sets.begun.encoder, trained, fitted, threshold, said, sets.begun.facts)


def prepare(place: Place, run: runs.Run, data: Rows, model: Any) -> Sets:
    """Encode the rows that a training needs. Raises TrainingFailed, "invalid", when their labels jumped: see evolving.check_labels."""
    evolving.check_labels(place, run, data)
    encoder = Encoder.fit(take(data.columns, data.split.train), place.pipeline.outputs)
    begun = evolving.begin(place, run, model, encoder)

    def saved(mask: NDArray[np.bool_], part: str) -> Path | None:
        return save(place, data, begun.encoder, mask, f"{run.id}-{part}") if mask.any() else None

    weight = row_weights(place, run, data)
    train = save(place, data, begun.encoder, data.split.train, f"{run.id}-train", weight=weight)
    stack, kept = None, data.split.calibrate
    if _stacked(model):
        first, kept = halves(kept, data.keys)
        stack = saved(first, "stack")
    held = saved(kept, "held")
    weighed = weight is not None or model.balanced
    return Sets(train, saved(data.split.stop, "stop"), stack, (held, data.label[kept]) if held else None, begun, weighed)


def _stacked(model: Any) -> bool:
    return bool(getattr(model, "how", "") == "stacked")


def _trained(place: Place, sets: Sets, model: Any, *, workers: Any, gpu: bool, on_step: Step, name: str) -> trainer.Trained:
    """The trained model. Every member has a folder of its own, so a run that was killed goes on with the member it was at."""
    objective = place.pipeline.label.objective
    several = isinstance(model, Ensemble)
    made = []
    for at, part in enumerate(model.members):
        made.append(
            trainer.train(
                sets.train,
                part,
                objective=objective,
                stop=sets.stop if part.patience else None,
                start=sets.begun.weights[at],
                workers=workers,
                gpu=gpu,
                run=f"{name}-member-{at}" if several else name,
                storage=place.settings.home / "training",
                on_progress=_epochs(on_step, f"member {at + 1} of {len(model.members)}, " if several else ""),
                on_note=on_step,
            )
        )
    if not several:
        return made[0]
    stack = None
    if _stacked(model):
        if sets.stack is None:
            raise TrainingFailed(
                "no row is held back to stack the members on", "some", "raise held, or use how='average'", state="invalid"
            )
        raw = [trainer.raw(sets.stack, part, objective, one.weights) for part, one in zip(model.members, made, strict=True)]
        stack = stacking.fit(objective, np.stack(raw, axis=1), TrainingSet.open(sets.stack)[0].label.astype(np.float64))
    return joining.joined(model, made, stack)


def scale(place: Place, data: Rows) -> Calibration:
    """The scale on which the module learns the labels, from the rows that train; a plain one for classes."""
    return calibration.scale(place.pipeline.label.objective, data.label[data.split.train])


def row_weights(place: Place, run: runs.Run, data: Rows) -> Floats | None:
    """How much each training row counts, [rows that train]: the label's own weights, times what the weighers say. None where every row
    counts alike. What `balanced` makes of it is training/data.py's.
    """
    line, mask = place.pipeline, data.split.train
    found = [data.weight[mask]] if line.label.weight else []
    if (weighed := evolving.weights(place, run, data)) is not None:
        found.append(weighed)
    total = np.asarray(np.prod(found, axis=0)) if found else None
    if total is not None and not total.any():
        raise TrainingFailed(
            "every training row has the weight 0", "some weight above 0", "check the column of weights", state="invalid"
        )
    return total


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


def _epochs(on_step: Step, before: str = "") -> Callable[[Mapping[str, Any]], None]:
    return lambda seen: on_step(f"training, {before}epoch {seen['epoch'] + 1}, loss {seen['loss']:.4f}")
