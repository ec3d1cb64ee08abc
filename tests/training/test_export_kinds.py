"""The exported graph of every kind of label scores as torch does, and as the calibration in numpy says."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch

from ct.errors import TrainingFailed
from ct.evaluation.calibration import fit
from ct.features.encode import Shape
from ct.models import MLP
from ct.models.scoring import scorer
from ct.objectives import BINARY, PLAIN, Calibration, Objective
from ct.training import export
from ct.training.building import construct, loaded
from ct.training.declare import Torch

SHAPE = Shape(5, (7, 4))
CLASSES, NUMBER, QUANTILES = (
    Objective("classes", ("a", "b", "c")),
    Objective("number"),
    Objective("quantiles", quantiles=(0.1, 0.5, 0.9)),
)


def isotonic() -> Calibration:
    """A real one: fitted where scores are too bold, with a steep step."""
    random = np.random.default_rng(0)
    raw = random.normal(size=5000)
    return fit("isotonic", BINARY, raw, (random.random(5000) < np.where(raw > 0.1, 0.8, 0.2)).astype(float))


@pytest.mark.parametrize(
    ("objective", "calibration"),
    [
        (BINARY, Calibration(temperature=1.7)),
        (BINARY, isotonic()),
        (BINARY, Calibration(knots=(0.5,), heights=(0.25,))),
        (BINARY, Calibration(temperature=0.7, shift=(-2.5,))),
        (CLASSES, Calibration(temperature=0.4)),
        (CLASSES, Calibration(temperature=2.0, shift=(0.0, -1.0, 3.0))),
        (NUMBER, Calibration(center=-3.5, spread=1e-7)),
        (NUMBER, Calibration(center=1.5e12, spread=2.0)),
        (QUANTILES, Calibration(center=40.0, spread=1e6)),
    ],
    ids=["temperature", "isotonic", "one knot", "shift", "classes", "shifts", "small", "far", "quantiles"],
)
def test_the_graph_is_torch_and_the_calibration(objective: Objective, calibration: Calibration) -> None:
    random = np.random.default_rng(1)
    numeric, category = random.normal(size=(64, 5)).astype(np.float32), random.integers(0, 4, (64, 2))
    model = Torch(MLP, options={"width": 16})
    weights = {name: value.numpy() for name, value in construct(model, SHAPE, objective).state_dict().items()}
    graph, scores = export.onnx(model, objective, calibration, weights, SHAPE, numeric, category)
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    served = session.run(["score"], {"numeric": numeric[:7], "category": category[:7]})[0]
    assert served.dtype == (np.float64 if objective.kind in ("number", "quantiles") else np.float32)
    assert calibration.gap(objective, served.astype(float), scores[:7].astype(float)) <= export.TOLERANCE
    with torch.no_grad():
        raw = loaded(model, SHAPE, objective, weights)(torch.from_numpy(numeric), torch.from_numpy(category)).double().numpy()
    assert calibration.gap(objective, scores.astype(float), calibration.scores(objective, raw)) <= 1e-6
    if objective.kind == "quantiles":
        assert (np.diff(raw, axis=1) < 0).any(), "some raw quantiles cross, and the graph puts them in order"
        assert (np.diff(scores, axis=1) >= 0).all()
    if objective.kind == "number":
        assert len(np.unique(scores)) == 64, "float32 would have lost the digits of a number far from 0"


def test_a_graph_that_scores_differently_is_refused() -> None:
    graph = export._exported(scorer(construct(Torch(MLP), SHAPE, NUMBER).eval(), NUMBER, PLAIN), 5, 2)
    numeric, category = np.zeros((3, 5), np.float32), np.zeros((3, 2), np.int64)
    with pytest.raises(TrainingFailed, match="differ by"):
        export._compare(graph, numeric, category, np.full(3, 9.0), NUMBER, Calibration(spread=0.5))
