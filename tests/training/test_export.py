"""A version's files: they load, score as torch does for any batch, and are refused when they do not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from safetensors.numpy import load

from ct.features.encode import Shape
from ct.objectives import BINARY, PLAIN
from ct.training import export
from ct.training.building import construct
from ct.training.code import code_digest
from ct.training.declare import Torch
from ct.training.models import MLP
from ct.training.trainer import Trained
from delay_model import DelayNet

CARDINALITIES = (7, 4)
SHAPE = Shape(5, CARDINALITIES)


def golden(rows: int = 9) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(1)
    category = np.stack([random.integers(0, size, rows) for size in CARDINALITIES], axis=1)
    return random.normal(size=(rows, 5)).astype(np.float32), category


@pytest.mark.parametrize("model", [Torch(DelayNet), Torch(MLP, options={"width": 16})])
def test_the_graph_scores_as_torch_does_for_any_batch(model: Torch) -> None:
    numeric, category = golden()
    weights = {name: value.numpy() for name, value in construct(model, SHAPE).state_dict().items()}
    graph, scores = export.onnx(model, BINARY, PLAIN, weights, SHAPE, numeric, category)
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    for rows in (1, 2, 9):
        served = session.run(["score"], {"numeric": numeric[:rows], "category": category[:rows]})[0]
        assert served.dtype == np.float32
        np.testing.assert_allclose(served, scores[:rows], atol=export.TOLERANCE)


@pytest.mark.usefixtures("ray_local")
def test_a_version_has_five_files(tmp_path: Path) -> None:
    model = Torch(DelayNet)
    numeric, category = golden()
    weights = {name: value.numpy() for name, value in construct(model, SHAPE).state_dict().items()}
    made = export.files(
        Trained(weights, "", {}, ()),
        model,
        spec=b"{}",
        encoder=b"{}",
        golden={"features": {"a": [None, 1.0]}, "numeric": numeric, "category": category, "shape": SHAPE},
    )
    assert set(made) == {"weights.safetensors", "spec.json", "encoder.json", "golden.json", "model.onnx"}
    assert {name: value.tobytes() for name, value in load(made["weights.safetensors"]).items()} == {
        name: value.tobytes() for name, value in weights.items()
    }
    kept = json.loads(made["golden.json"])
    assert kept["features"] == {"a": [None, 1.0]}
    assert len(kept["score"]) == 9


def test_the_code_digest_follows_the_module_and_its_neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    (tmp_path / "my_layers.py").write_text("class Layer: ...\n")
    (tmp_path / "my_net.py").write_text("from my_layers import Layer\nclass Net(Layer): ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module("my_net")
    first = code_digest(Torch(module.Net))
    assert first == code_digest(Torch(module.Net))
    (tmp_path / "my_layers.py").write_text("class Layer: width = 3\n")
    assert code_digest(Torch(module.Net)) != first
