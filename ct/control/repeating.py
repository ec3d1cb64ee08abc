"""How much of a model's quality is luck: the same run trained with several seeds, and the spread of its metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ct.control import runs
from ct.control.fitting import Fitted, fit, save
from ct.control.place import Place, Step
from ct.control.rows import Rows
from ct.evaluation import metrics
from ct.training import trainer
from ct.training.ensemble import seeded


def spread(place: Place, run: runs.Run, data: Rows, first: Fitted, *, workers: Any, gpu: bool, on_step: Step) -> dict[str, Any]:
    """Train the run's model with the other `run.seeds - 1` seeds that follow its own, and measure all of them on the rows that judge.

    Returns {"seeds", "metrics": {name: {"values", "mean", "deviation"}}}, the deviation being that of the sample; {} for one seed. The
    version is the first seed's, whatever the others show: choosing the best would be choosing luck.
    """
    if run.seeds < 2:
        return {}
    found = [_measured(place, run, data, first)]
    for by in range(1, run.seeds):

        def told(step: str, by: int = by) -> None:
            on_step(f"seed {by + 1} of {run.seeds}: {step}")

        model = seeded(first.model, by)
        other = fit(place, run, data, model, workers=workers, gpu=gpu, on_step=told, name=f"{run.id}-seed-{by}")
        found.append(_measured(place, run, data, other))
    return {"seeds": [seeded(first.model, by).seed for by in range(run.seeds)], "metrics": summary(found)}


def _measured(place: Place, run: runs.Run, data: Rows, fitted: Fitted) -> dict[str, float]:
    objective = place.pipeline.label.objective
    folder = save(place, data, fitted.encoder, data.split.judge, f"{run.id}-judge")
    scores = fitted.calibration.scores(objective, trainer.raw(folder, fitted.model, objective, fitted.trained.weights))
    return metrics.measured(objective, scores, data.label[data.split.judge], fitted.threshold)


def summary(found: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """The values of each metric that all have, in the order of the seeds, with their mean and sample deviation."""
    made = {}
    for name in found[0]:
        if all(name in one for one in found) and not name.startswith("base_"):
            values = [one[name] for one in found]
            made[name] = {"values": values, "mean": float(np.mean(values)), "deviation": float(np.std(values, ddof=1))}
    return made
