"""A trained model as files: safetensors weights, spec, encoder, golden rows, and the ONNX graph that serving runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from ct.errors import TrainingFailed
from ct.features.encode import Shape
from ct.ids import canonical
from ct.objectives import BINARY, PLAIN, Calibration, Objective
from ct.training import warm
from ct.training.declare import Torch, pickled
from ct.training.trainer import Trained

TOLERANCE = 1e-6


def files(
    trained: Trained,
    model: Torch,
    *,
    objective: Objective = BINARY,
    calibration: Calibration = PLAIN,
    spec: bytes,
    encoder: bytes,
    golden: Mapping[str, Any],
) -> dict[str, bytes]:
    """The files of a version. `golden` has "features" {name: values}, "numeric" [m, F], "category" [m, C], "shape"; the scores are added here.

    Raises TrainingFailed when the graph's scores and torch's differ by more than 1e-6 of their size (see Calibration.gap).
    """
    weights = {name: np.asarray(value, order="C") for name, value in trained.weights.items()}
    rows = np.asarray(golden["numeric"]), np.asarray(golden["category"])
    graph, scores = warm.call(_onnx, *pickled(model), objective, calibration, weights, golden["shape"], *rows)
    return {
        "weights.safetensors": save(weights),
        "spec.json": spec,
        "encoder.json": encoder,
        "golden.json": canonical({"features": golden["features"], "score": scores.tolist()}).encode(),
        "model.onnx": graph,
    }


def _onnx(model: bytes, paths: tuple[str, ...], *args: Any) -> tuple[bytes, NDArray[Any]]:
    from ct.training.declare import unpickled

    return onnx(unpickled(model, paths), *args)


def onnx(
    model: Torch,
    objective: Objective,
    calibration: Calibration,
    weights: Mapping[str, NDArray[Any]],
    shape: Shape,
    numeric: NDArray[np.float32],
    category: NDArray[np.int64],
) -> tuple[bytes, NDArray[Any]]:
    """The graph, and torch's own scores ([m], or [m, k]) of the golden rows, in this process.

    Inputs "numeric" float32 [n, F] and "category" int64 [n, C], output "score" [n] or [n, k], any n: float32, and float64 for numbers and
    quantiles, so that a large one keeps its digits. The graph's scores are
    compared with torch's for all golden rows at once and for the first alone, so that a batch size baked into the graph is found.
    """
    import torch

    from ct.training.building import loaded

    scorer = _scorer(loaded(model, shape, objective, weights), objective, calibration)
    graph = _exported(scorer, numeric.shape[1], category.shape[1])
    with torch.no_grad():
        eager = scorer(torch.from_numpy(numeric.copy()), torch.from_numpy(category.copy())).numpy()
    _compare(graph, numeric, category, eager, objective, calibration)
    return graph, eager


def _scorer(module: Any, objective: Objective, calibration: Calibration) -> Any:
    """The module with its calibration, giving scores."""
    import torch

    def calibrated(score: Any) -> Any:
        """The straight lines between the knots as a sum of ramps."""
        x, y = np.array(calibration.knots), np.array(calibration.heights)
        slopes = np.diff(y) / np.diff(x)
        turns = torch.from_numpy(np.diff(np.concatenate([[0.0], slopes, [0.0]])))
        ramps = torch.relu(score.double().unsqueeze(1) - torch.from_numpy(x)) * turns
        return (torch.from_numpy(y[:1]) + ramps.sum(dim=1)).float()

    # As tensors: the exporter writes plain numbers as float32, and a large center would lose its digits.
    center, spread = (torch.tensor(value, dtype=torch.float64) for value in (calibration.center, calibration.spread))

    shift = torch.tensor(calibration.shift or (0.0,), dtype=torch.float32)

    class Scorer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, numeric: Any, category: Any) -> Any:
            raw = self.module(numeric, category)
            if objective.kind == "binary":
                score = torch.sigmoid(raw / calibration.temperature + shift)
                return calibrated(score) if calibration.knots else score
            if objective.kind == "classes":
                return torch.softmax(raw / calibration.temperature + shift, dim=1)
            found = center + spread * raw.double()
            return torch.sort(found, dim=1).values if objective.kind == "quantiles" else found

    return Scorer().eval()


def _exported(scorer: Any, numeric: int, category: int) -> bytes:
    """torch.onnx.export is quiet about nothing and slow once: 5 s for a process's first export, 1 s after that."""
    import logging
    import warnings

    import torch

    # Two example rows: with one, the exporter would take the batch for a constant.
    example = (torch.zeros(2, numeric), torch.zeros(2, category, dtype=torch.int64))
    rows = torch.export.Dim("rows", min=1, max=1 << 24)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            scorer,
            example,
            dynamo=True,
            input_names=["numeric", "category"],
            output_names=["score"],
            dynamic_shapes=({0: rows}, {0: rows}),
            verbose=False,
        )
    assert program is not None
    graph: bytes = program.model_proto.SerializeToString(deterministic=True)
    return graph


def _compare(
    graph: bytes,
    numeric: NDArray[np.float32],
    category: NDArray[np.int64],
    eager: NDArray[Any],
    objective: Objective,
    calibration: Calibration,
) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    for taken in (slice(None), slice(0, 1)):
        served = session.run(["score"], {"numeric": numeric[taken], "category": category[taken]})[0]
        gap = calibration.gap(objective, served.astype(np.float64), eager[taken].astype(np.float64))
        if not gap <= TOLERANCE:
            raise TrainingFailed(
                f"ONNX Runtime and torch differ by {gap:.1e} on {len(eager[taken])} golden rows",
                f"at most {TOLERANCE:.0e}",
                "use layers that ONNX can express exactly, without branches on values",
            )


def rehearse() -> None:
    """Export a small model, so that the exporter is loaded and its first, slow use is over."""
    import torch

    class Small(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = torch.nn.Embedding(4, 2)
            self.layer = torch.nn.Linear(4, 1)

        def forward(self, numeric: Any, category: Any) -> Any:
            return self.layer(torch.cat([numeric, self.embedding(category[:, 0])], dim=1)).squeeze(1)

    _exported(_scorer(Small(), BINARY, PLAIN), 2, 1)
