"""A version's files: they load, score as torch does for any batch, and are refused when they do not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.numpy import load
from torch import Tensor, nn

from ct.errors import TrainingFailed
from ct.features.encode import Shape
from ct.models import MLP
from ct.objectives import BINARY, PLAIN
from ct.training import export
from ct.training.building import construct
from ct.training.code import code_digest
from ct.training.declare import Torch
from ct.training.ensemble import Ensemble
from ct.training.recipe import recipe
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


class Branching(nn.Module):
    """A module that no graph expresses: it branches on a value."""

    def __init__(self, numeric: int, cardinalities: list[int]) -> None:
        super().__init__()
        self.layer = nn.Linear(numeric, 1)

    def forward(self, numeric: Tensor, category: Tensor) -> Tensor:
        raw: Tensor = self.layer(numeric).squeeze(1)
        return raw if raw.detach().sum().item() > 0 else raw * 2


def packed(model: Any) -> dict[str, bytes]:
    numeric, category = golden()
    weights = {name: value.numpy() for name, value in construct(model, SHAPE).state_dict().items()}
    few = {"features": {}, "numeric": numeric, "category": category, "shape": SHAPE}
    return export.files(Trained(weights, "", {}, ()), model, spec=b"{}", encoder=b"{}", golden=few)


@pytest.mark.usefixtures("ray_local")
def test_a_module_that_cannot_be_exported_has_no_graph_and_says_why() -> None:
    model = Torch(Branching)
    made = packed(model)
    assert "model.onnx" not in made
    spec = json.loads(made["spec.json"])
    assert spec["graph"]
    assert spec["model"]["parts"] == [{"module": Branching.__module__, "name": "Branching", "options": {}, "seed": 0}]
    numeric, _ = golden()
    raw = construct(model, SHAPE).eval()(torch.from_numpy(numeric), None)
    assert json.loads(made["golden.json"])["score"] == torch.sigmoid(raw).tolist()


@pytest.mark.usefixtures("ray_local")
def test_one_that_has_no_name_either_is_refused() -> None:
    class Nameless(Branching):
        pass

    with pytest.raises(TrainingFailed, match=r"no ONNX graph .* cannot be found by name"):
        packed(Torch(Nameless))


def test_a_recipe_names_what_can_be_found_by_name_alone() -> None:
    class Nameless(Branching):
        pass

    def parts(model: Any) -> list[dict[str, Any]]:
        return [{name: part[name] for name in ("ready", "name") if name in part} for part in recipe(model).get("parts", ())]

    assert parts(Torch("TabM")) == [{"ready": "TabM"}]
    assert parts(Torch(MLP)) == [{"ready": "MLP"}], "a ready class is the same whatever it was declared by"
    assert parts(Torch(DelayNet)) == [{"name": "DelayNet"}]
    assert recipe(Torch(Nameless)) == recipe(Torch(DelayNet, options={"layer": nn.ReLU})) == {}
    whole = recipe(Ensemble([Torch("TabM", options={"width": 8}, seed=3), Torch(DelayNet)], how="stacked"))
    assert whole["how"] == "stacked"
    assert whole["parts"][0] == {"ready": "TabM", "options": {"width": 8}, "seed": 3}
    assert recipe(Ensemble([Torch("TabM"), Torch(Nameless)])) == {}
