"""The ready models: shapes of every objective, what members' scores add up to, the same bits twice, the same numbers as ONNX, and that they learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import ct
from ct.errors import TrainingFailed
from ct.features.encode import Shape
from ct.models.inputs import Events
from ct.models.tabm import mean
from ct.objectives import BINARY, PLAIN, Calibration, Objective
from ct.training import building, export, loop, losses, optimizing
from ct.training.data import TrainingSet
from ct.training.declare import READY, Torch, pickled
from ct.training.determinism import Group

CLASSES, NUMBER = Objective("classes", ("a", "b", "c")), Objective("number")
QUANTILES = Objective("quantiles", quantiles=(0.1, 0.9))
SEQUENCES = (((2, 3), (4, 5)),)
SHAPE = Shape(6, (5, 30), SEQUENCES)
SMALL: dict[str, dict[str, Any]] = {"MLP": {"width": 32}, "RealMLP": {"width": 32}, "TabM": {"members": 4, "width": 16}}
every_model = pytest.mark.parametrize("name", READY)
every_objective = pytest.mark.parametrize("objective", [BINARY, CLASSES, NUMBER, QUANTILES], ids=lambda found: found.kind)


def inputs(rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Numbers with a sequence of two steps, each a value and a flag; two categories."""
    random = np.random.default_rng(seed)
    numeric = random.normal(size=(rows, 6)).astype(np.float32)
    numeric[:, [3, 5]] = random.random((rows, 2)) < 0.3
    numeric[:, [2, 4]] *= 1 - numeric[:, [3, 5]]
    category = np.stack([random.integers(0, size, rows) for size in SHAPE.cardinalities], axis=1)
    return torch.from_numpy(numeric), torch.from_numpy(category)


@every_model
@every_objective
def test_raw_outputs_have_the_objectives_shape(name: str, objective: Objective) -> None:
    module = building.construct(Torch(name, options=SMALL[name]), SHAPE, objective)
    rows = inputs(7)
    wide = (objective.outputs,) if objective.outputs > 1 else ()
    members = (module.members,) if name == "TabM" else ()
    assert module.train()(*rows).shape == (7, *members, *wide)
    assert module.eval()(*rows).shape == (7, *wide)
    assert module.eval()(*inputs(1)).shape == (1, *wide)


@every_objective
def test_tabms_score_is_the_mean_of_its_members_scores(objective: Objective) -> None:
    module = building.construct(Torch("TabM", options=SMALL["TabM"] | {"dropout": 0.0}), SHAPE, objective)
    with torch.no_grad():
        each = module.train()(*inputs(50)).double().numpy()
        whole = module.eval()(*inputs(50)).double().numpy()
    members = [Calibration().scores(objective, each[:, at]) for at in range(each.shape[1])]
    score = Calibration().scores(objective, whole)
    if objective.kind == "quantiles":  # in order only after the mean
        members, score = [each[:, at] for at in range(each.shape[1])], whole
    np.testing.assert_allclose(score, np.mean(members, axis=0), atol=2e-6)
    assert np.std(members, axis=0).min() > 0, "members differ from the beginning on"


def test_members_that_are_very_sure_do_not_overflow() -> None:
    raw = torch.tensor([[[300.0], [-300.0]], [[500.0], [500.0]], [[-90.0], [-500.0]]])
    assert mean("binary", raw).squeeze(1).tolist() == pytest.approx([0.0, 500.0, -90.0 - np.log(2)], abs=1e-4)
    classes = torch.tensor([[[200.0, 0.0], [0.0, 200.0]], [[300.0, 0.0], [300.0, 0.0]]])
    found = torch.softmax(mean("classes", classes), dim=1)
    assert found.flatten().tolist() == pytest.approx([0.5, 0.5, 1.0, 0.0], abs=1e-6)


def test_each_member_has_a_loss_of_its_own() -> None:
    module = building.construct(Torch("TabM", options=SMALL["TabM"]), SHAPE).train()
    raw, label = module(*inputs(20)), (torch.arange(20) % 2).float()
    each = [losses.loss(BINARY, raw[:, at], label, None) for at in range(4)]
    assert losses.loss(BINARY, raw, label, None).item() == pytest.approx(np.mean([one.item() for one in each]), rel=1e-5)


def cases() -> list[Any]:
    found = [("TabM", {}, objective) for objective in (BINARY, CLASSES, NUMBER, QUANTILES)]
    found += [("TabM", {"embedding": "piecewise"}, BINARY), ("TabM", {"embedding": ""}, CLASSES)]
    found += [("RealMLP", {}, CLASSES), ("RealMLP", {}, NUMBER), ("MLP", {"embedding": "periodic"}, BINARY)]
    return [pytest.param(*case, id="-".join([case[0], *case[1].values(), case[2].kind])) for case in found]


@pytest.mark.parametrize(("name", "options", "objective"), cases())
def test_the_graph_scores_as_torch_does_for_one_row_and_for_many(name: str, options: Any, objective: Objective) -> None:
    model = Torch(name, options=SMALL[name] | options)
    weights = {key: value.numpy() for key, value in building.construct(model, SHAPE, objective).state_dict().items()}
    numeric, category = (values.numpy() for values in inputs(40))
    graph, scores = export.onnx(model, objective, PLAIN, weights, SHAPE, numeric, category)
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    for rows in (1, 3, 40):
        served = session.run(["score"], {"numeric": numeric[:rows], "category": category[:rows]})[0]
        np.testing.assert_allclose(served, scores[:rows], atol=2e-6)


def wave(folder: Path, objective: Objective, rows: int = 4096) -> Path:
    """Labels that no straight line finds: they hang on a number's size, on a category, and on the newest event that there is."""
    numeric, category = inputs(rows, seed=1)
    newest = torch.where(numeric[:, 3] == 0, numeric[:, 2], torch.where(numeric[:, 5] == 0, numeric[:, 4], 0.0))
    value = (numeric[:, 0].abs() - 0.7) * torch.where(category[:, 0] < 3, 1.0, -1.0) + newest
    label = {
        "binary": (value > 0).float(),
        "classes": (value > -0.7).float() + (value > 0.7).float(),
    }.get(objective.kind, value / value.std())
    return TrainingSet(numeric.numpy(), category.numpy(), label.numpy(), SHAPE).save(folder)


def trained(folder: Path, model: Torch, objective: Objective) -> dict[str, Any]:
    return loop.run(loop.Job(str(folder), *pickled(model), "run", objective), Group()).weights


@every_model
@every_objective
def test_a_model_learns_what_no_straight_line_finds(name: str, objective: Objective, tmp_path: Path) -> None:
    model = Torch(name, epochs=16, lr=2e-2 if name != "RealMLP" else 2e-3, batch=256, options=SMALL[name] | {"dropout": 0.0})
    folder = wave(tmp_path / "rows", objective)
    rows, _ = TrainingSet.open(folder)
    raw = building.raw(model, objective, trained(folder, model, objective), folder)
    if objective.kind == "quantiles":
        shares = (rows.label[:, None] < raw).mean(axis=0)
        assert shares == pytest.approx([0.1, 0.9], abs=0.06)
        assert (raw[:, 1] - raw[:, 0]).mean() < 1.5, "eight tenths of a normal label would need 2.6"
    elif objective.kind == "number":
        assert np.square(raw - rows.label).mean() < 0.25, "a constant has 1"
    else:
        found = raw.argmax(axis=1) if objective.kind == "classes" else raw > 0
        assert (found == rows.label).mean() > 0.85, "the most frequent class has less than 0.7"


@every_model
def test_the_same_seed_gives_the_same_bits_with_deterministic_kernels(name: str, tmp_path: Path) -> None:
    model = Torch(name, epochs=1, batch=512, seed=3, options=SMALL[name])
    folder = wave(tmp_path / "rows", BINARY, 1024)
    torch.use_deterministic_algorithms(True)
    try:
        runs = [trained(folder, model, BINARY) for _ in range(2)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert {key: value.tobytes() for key, value in runs[0].items()} == {key: value.tobytes() for key, value in runs[1].items()}


@every_model
@pytest.mark.parametrize("shape", [Shape(3, ()), Shape(0, (4,))], ids=["numbers", "categories"])
def test_numbers_alone_and_categories_alone_are_enough(name: str, shape: Shape) -> None:
    module = building.construct(Torch(name, options=SMALL[name]), shape).train()
    numeric, category = torch.ones(5, shape.numeric), torch.ones(5, len(shape.cardinalities), dtype=torch.int64)
    module(numeric, category).sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in module.parameters() if parameter.grad is not None)


def test_what_stands_in_a_missing_step_is_not_read() -> None:
    torch.manual_seed(0)
    events, numeric = Events([[0, 1], [2, 3]]), torch.tensor([[0.5, 0.0, 1.0, 1.0], [0.5, 0.0, 9.0, 1.0], [7.0, 1.0, 8.0, 1.0]])
    found = events(numeric)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[2], torch.zeros(16)), "no event at all is no vector"
    assert found[0].abs().sum() > 0


def test_realmlps_parameters_have_their_own_pace() -> None:
    module = building.construct(Torch("RealMLP", options=SMALL["RealMLP"]), SHAPE)
    groups = optimizing.parameter_groups(module)
    rate = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    names = {name: rate[id(parameter)] for name, parameter in module.named_parameters()}
    assert names["scale"] > names["layers.0.weight"] > names["layers.0.bias"]
    assert all(group["weight_decay"] == 0 for group in groups if id(module.last.bias) in map(id, group["params"]))


class Flat(nn.Module):
    """A module of the user that knows no sequences."""

    def __init__(self, numeric: int, cardinalities: list[int]) -> None:
        super().__init__()
        self.layer = nn.Linear(numeric, 1)

    def forward(self, numeric: Tensor, category: Tensor) -> Tensor:
        raw: Tensor = self.layer(numeric).squeeze(1)
        return raw


class Told(Flat):
    """A module of the user that asks for what ct knows."""

    def __init__(self, numeric: int, cardinalities: list[int], sequences: Any = (), objective: str = "") -> None:
        super().__init__(numeric, cardinalities)
        self.told = (sequences, objective)


def test_sequences_and_the_objective_are_given_to_those_who_name_them() -> None:
    assert building.construct(Torch(Flat), SHAPE)(*inputs(4)).shape == (4,)
    told: Any = building.construct(Torch(Told), SHAPE, NUMBER)
    assert told.told == ([[[2, 3], [4, 5]]], "number")


def test_an_embedding_that_is_not_known_is_named() -> None:
    with pytest.raises(TrainingFailed, match="fourier"):
        building.construct(Torch("TabM", options={"embedding": "fourier"}), SHAPE)


def test_ready_models_are_declared_by_name_or_class() -> None:
    assert ct.Torch().module_class is ct.models.TabM
    assert ct.Torch("RealMLP").module_class is ct.models.RealMLP
    assert ct.Torch(ct.models.MLP).module_class is ct.Torch("MLP").module_class
