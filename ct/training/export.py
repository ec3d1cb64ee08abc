"""A trained model as files: safetensors weights, spec, encoder, golden rows, and the ONNX graph that serving runs."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from ct.errors import TrainingFailed
from ct.training.declare import Torch, code_digest
from ct.training.trainer import Trained, warm

TOLERANCE = 1e-6


def files(trained: Trained, model: Torch, *, spec: bytes, encoder: bytes, golden: Mapping[str, Any]) -> dict[str, bytes]:
    """The files of a version. `golden` has "features" {name: values}, "numeric" [m, F], "category" [m, C], "cardinalities"; the scores are added here.

    Raises TrainingFailed when ONNX Runtime and torch differ by more than 1e-6.
    """
    import ray

    weights = {name: np.ascontiguousarray(value) for name, value in trained.weights.items()}
    made = ray.get(warm(model).export.remote(model, weights, golden["cardinalities"], golden["numeric"], golden["category"]))
    graph, scores = _split(made)
    kept = {"features": golden["features"], "score": scores}
    return {
        "weights.safetensors": save(weights),
        "spec.json": spec,
        "encoder.json": encoder,
        "golden.json": json.dumps(kept, allow_nan=False).encode(),
        "model.onnx": graph,
    }


def _split(made: bytes) -> tuple[bytes, list[float]]:
    with np.load(io.BytesIO(made)) as found:
        return found["graph"].tobytes(), [float(score) for score in found["scores"]]


def onnx(model: Torch, weights: Mapping[str, Any], cardinalities: tuple[int, ...], numeric: Any, category: Any) -> bytes:
    """Export, run the golden rows through both runtimes, compare. Returns an .npz of "graph" and "scores"."""
    import logging
    import warnings

    import onnxruntime
    import torch

    from ct.training.worker import build

    module = build(model, numeric.shape[1], cardinalities)
    module.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in weights.items()})
    scorer = _scorer(module).eval()
    example = (torch.zeros(2, numeric.shape[1]), torch.zeros(2, category.shape[1], dtype=torch.int64))
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        rows = torch.export.Dim("rows", min=1, max=1 << 24)
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
        path = Path(folder) / "model.onnx"
        program.save(str(path), external_data=False)
        graph = path.read_bytes()
    with torch.no_grad():
        eager = scorer(torch.from_numpy(np.array(numeric)), torch.from_numpy(np.array(category))).numpy()
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    served = session.run(["score"], {"numeric": numeric, "category": category})[0]
    gap = float(np.abs(eager - served).max())
    if not gap <= TOLERANCE:
        raise TrainingFailed(
            f"ONNX Runtime and torch differ by {gap:.1e}",
            f"at most {TOLERANCE:.0e}",
            "use layers that ONNX can express exactly",
        )
    target = io.BytesIO()
    np.savez(target, graph=np.frombuffer(graph, dtype=np.uint8), scores=eager.astype(np.float64))
    return target.getvalue()


def _scorer(module: Any) -> Any:
    import torch

    class Scorer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, numeric: Any, category: Any) -> Any:
            return torch.sigmoid(self.module(numeric, category))

    return Scorer()


__all__ = ["code_digest", "files", "onnx"]
