"""A trained model as files: safetensors weights, spec, encoder, golden rows, and the ONNX graph that serving runs where it can be made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from ct.errors import CtError, TrainingFailed
from ct.features.encode import Shape
from ct.ids import canonical
from ct.objectives import BINARY, PLAIN, Calibration, Objective
from ct.training import warm
from ct.training.declare import Torch, pickled
from ct.training.ensemble import Ensemble
from ct.training.recipe import recipe
from ct.training.trainer import Trained

TOLERANCE = 1e-6


def files(
    trained: Trained,
    model: Torch | Ensemble,
    *,
    objective: Objective = BINARY,
    calibration: Calibration = PLAIN,
    spec: bytes,
    encoder: bytes,
    golden: Mapping[str, Any],
) -> dict[str, bytes]:
    """The files of a version. `golden` has "features" {name: values}, "numeric" [m, F], "category" [m, C], "shape"; the scores are added here.

    The spec gets the model's recipe. A module that cannot be exported, or whose graph's scores differ from torch's by more than 1e-6 of
    their size (see Calibration.gap), has no graph: the spec says why, and torch serves it. Raises TrainingFailed where that cannot be
    either, because the module cannot be found by name.
    """
    weights = {name: np.asarray(value, order="C") for name, value in trained.weights.items()}
    rows = np.asarray(golden["numeric"]), np.asarray(golden["category"])
    made = warm.call(_made, *pickled(model), objective, calibration, weights, golden["shape"], *rows)
    told = recipe(model)
    if made.fault and not told:
        raise TrainingFailed(
            f"the model has no ONNX graph ({made.fault}), and its class cannot be found by name",
            "a graph, or a class at the top of a file with options of plain data, which torch can serve",
            "use layers that ONNX can express exactly, without branches on values; or move the class",
        )
    found = {
        "weights.safetensors": save(weights),
        "spec.json": canonical(json.loads(spec) | {"model": told, "graph": made.fault}).encode(),
        "encoder.json": encoder,
        "golden.json": canonical({"features": golden["features"], "score": made.scores.tolist()}).encode(),
    }
    return found if made.fault else {**found, "model.onnx": made.graph}


@dataclass(frozen=True)
class _Made:
    """A graph and torch's own scores of the golden rows; `fault` says why there is no graph."""

    graph: bytes
    scores: NDArray[Any]
    fault: str = ""


def _made(model: bytes, paths: tuple[str, ...], objective: Objective, calibration: Calibration, *args: Any) -> _Made:
    """Runs in the warm process."""
    from ct.training.declare import unpickled

    scorer, scores, rows = _scored(unpickled(model, paths), objective, calibration, *args)
    try:
        return _Made(_checked(scorer, scores, rows, objective, calibration), scores)
    except Exception as error:  # the exporter raises many kinds, and each module fails in its own way
        said = error.found if isinstance(error, CtError) else f"{type(error).__name__}: {error}"
        return _Made(b"", scores, (said.strip().splitlines() or [""])[0][:300])


def onnx(
    model: Torch | Ensemble,
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
    Raises TrainingFailed when they differ, and what the exporter raises.
    """
    scorer, scores, rows = _scored(model, objective, calibration, weights, shape, numeric, category)
    return _checked(scorer, scores, rows, objective, calibration), scores


Rows = tuple[NDArray[np.float32], NDArray[np.int64]]


def _scored(
    model: Torch | Ensemble,
    objective: Objective,
    calibration: Calibration,
    weights: Mapping[str, NDArray[Any]],
    shape: Shape,
    numeric: NDArray[np.float32],
    category: NDArray[np.int64],
) -> tuple[Any, NDArray[Any], Rows]:
    """The module that gives scores, and its scores of these rows."""
    import torch

    from ct.models.scoring import scorer
    from ct.training.building import loaded

    found = scorer(loaded(model, shape, objective, weights), objective, calibration)
    with torch.no_grad():
        scores = found(torch.from_numpy(numeric.copy()), torch.from_numpy(category.copy())).numpy()
    return found, scores, (numeric, category)


def _checked(scorer: Any, scores: NDArray[Any], rows: Rows, objective: Objective, calibration: Calibration) -> bytes:
    graph = _exported(scorer, rows[0].shape[1], rows[1].shape[1])
    _compare(graph, *rows, scores, objective, calibration)
    return graph


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

    from ct.models.scoring import scorer

    class Small(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = torch.nn.Embedding(4, 2)
            self.layer = torch.nn.Linear(4, 1)

        def forward(self, numeric: Any, category: Any) -> Any:
            return self.layer(torch.cat([numeric, self.embedding(category[:, 0])], dim=1)).squeeze(1)

    _exported(scorer(Small(), BINARY, PLAIN), 2, 1)
