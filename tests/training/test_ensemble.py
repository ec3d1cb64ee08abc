"""Ensembles: members are trained alone, say together what they are said to, and leave as one graph."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

import ct
from ct.errors import InvalidPipeline
from ct.evaluation import stacking
from ct.features.encode import Shape
from ct.ids import fingerprint
from ct.models import MLP
from ct.objectives import BINARY, PLAIN, Objective
from ct.training import building, export, joining, start, trainer
from ct.training.code import code_digest
from ct.training.data import TrainingSet
from ct.training.declare import Search, Torch
from ct.training.ensemble import seeded
from ct.training.trainer import Trained
from delay_model import DelayNet

SHAPE = Shape(5, (7, 4))
OBJECTIVES = [BINARY, Objective("classes", ("a", "b", "c")), Objective("number"), Objective("quantiles", (), (0.1, 0.5, 0.9))]
SMALL = Torch(MLP, epochs=2, batch=256, seed=3, options={"width": 8})


def golden(rows: int = 9) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(1)
    category = np.stack([random.integers(0, size, rows) for size in SHAPE.cardinalities], axis=1)
    return random.normal(size=(rows, 5)).astype(np.float32), category


def untrained(model: ct.Ensemble, objective: Objective, stack: Any = None) -> Trained:
    members = []
    for part in model.members:
        state = building.construct(part, SHAPE, objective).state_dict()
        members.append(Trained({name: value.numpy() for name, value in state.items()}, "", {"id": str(part.seed)}, ()))
    return joining.joined(model, members, stack)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: objective.kind)
@pytest.mark.parametrize("how", ["average", "stacked"])
def test_one_graph_says_what_the_members_say_together(how: str, objective: Objective) -> None:
    model = ct.Ensemble([SMALL, Torch(MLP, seed=9, options={"width": 16, "depth": 1})], how=how)
    stack = (np.array([0.25, 1.5]), np.linspace(0.1, 0.3, objective.outputs)) if how == "stacked" else None
    made = untrained(model, objective, stack)
    numeric, category = golden()
    graph, scores = export.onnx(model, objective, PLAIN, made.weights, SHAPE, numeric, category)
    raw = []
    for at, part in enumerate(model.members):
        own = {
            name.removeprefix(f"ensemble.{at}."): v for name, v in made.weights.items() if name.startswith(f"ensemble.{at}.")
        }
        with torch.no_grad():
            module = building.loaded(part, SHAPE, objective, own)
            raw.append(module(torch.from_numpy(numeric), torch.from_numpy(category)).double().numpy())
    if stack is None and objective.kind != "quantiles":
        expected = np.mean([PLAIN.scores(objective, one) for one in raw], axis=0)
    elif stack is None:
        expected = PLAIN.scores(objective, np.mean(raw, axis=0))
    else:
        bias = stack[1] if objective.outputs > 1 else stack[1][0]
        expected = PLAIN.scores(objective, 0.25 * raw[0] + 1.5 * raw[1] + bias)
    np.testing.assert_allclose(scores, expected, atol=2e-6)
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    served = session.run(["score"], {"numeric": numeric[:3], "category": category[:3]})[0]
    np.testing.assert_allclose(served, expected[:3], atol=2e-6)


def test_the_members_of_one_model_have_seeds_of_their_own() -> None:
    three = ct.Ensemble(replace(SMALL, seed=2**32 - 1), of=3)
    assert [part.seed for part in three.members] == [2**32 - 1, 0, 1]
    assert three.validate() == []
    assert [part.seed for part in seeded(three, 1).members] == [2, 3, 4]
    assert seeded(SMALL, 2) == replace(SMALL, seed=5)
    assert (three.seed, three.held, three.patience, three.calibrate) == (2**32 - 1, 0.1, 0, "temperature")
    assert fingerprint(three) != fingerprint(ct.Ensemble(replace(SMALL, seed=2**32 - 1), of=2))
    listed = ct.Ensemble([SMALL, replace(SMALL, seed=4, patience=2)])
    assert listed.patience == 2
    assert code_digest(ct.Ensemble([Torch(DelayNet), SMALL])) == code_digest(ct.Ensemble([SMALL, Torch(DelayNet)]))
    assert code_digest(ct.Ensemble([Torch(DelayNet), SMALL])) != code_digest(listed)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (ct.Ensemble(SMALL), "an ensemble of one"),
        (ct.Ensemble([SMALL]), "an ensemble of one"),
        (ct.Ensemble(SMALL, of=0), "of is 0"),
        (ct.Ensemble([SMALL, SMALL], of=2), "a list of them without"),
        (ct.Ensemble([SMALL, "MLP"]), "expected ct.Torch"),  # type: ignore[list-item]
        (ct.Ensemble([SMALL, replace(SMALL, epochs=0)]), "member 2: epochs is 0"),
        (ct.Ensemble(replace(SMALL, lr=Search(1e-4, 1e-2)), of=2), "hold a ct.Search"),
        (ct.Ensemble([SMALL, replace(SMALL, held=0.2)]), "differ in held"),
        (ct.Ensemble(SMALL, of=2, how="voted"), "how is 'voted'"),
        (ct.Ensemble(replace(SMALL, held=0, calibrate=""), of=2, how="stacked"), "stacking needs rows"),
    ],
)
def test_a_wrong_declaration_says_so(model: ct.Ensemble, says: str) -> None:
    assert any(says in fault for fault in model.validate()), model.validate()


def test_an_ensemble_takes_no_settings() -> None:
    model = ct.Ensemble(SMALL, of=2)
    assert model.resolved({}) == model
    assert model.searches() == {}
    with pytest.raises(InvalidPipeline, match="not searched"):
        model.resolved({"lr": 0.1})


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: objective.kind)
def test_stacking_finds_the_member_that_knows(objective: Objective) -> None:
    """Two members, of which one is noise: all weight goes to the other, and stacking is no worse than the average."""
    random = np.random.default_rng(2)
    count = 4_000
    truth = random.normal(size=(count, objective.outputs))
    if objective.kind == "binary":
        label = (random.random(count) < 1 / (1 + np.exp(-2 * truth[:, 0]))).astype(float)
    elif objective.kind == "classes":
        label = np.argmax(2 * truth + random.gumbel(size=truth.shape), axis=1).astype(float)
    elif objective.kind == "number":
        label = truth[:, 0] + 0.1 * random.normal(size=count)
    else:
        truth = np.sort(truth[:, :1] + np.array([-1.28, 0.0, 1.28]), axis=1)
        label = truth[:, 1] + random.normal(size=count)
    noise = random.normal(size=truth.shape)
    raw = np.stack([truth, noise], axis=1)
    weight, bias = stacking.fit(objective, raw if objective.outputs > 1 else raw[:, :, 0], label)
    assert weight[0] > 0.8
    assert 0 <= weight[1] < 0.1
    assert (weight == np.round(weight, 6)).all()
    assert len(bias) == objective.outputs
    again = stacking.fit(objective, raw if objective.outputs > 1 else raw[:, :, 0], label)
    np.testing.assert_array_equal(weight, again[0])
    if objective.kind == "binary":
        assert weight[0] == pytest.approx(2.0, abs=0.15), "the logits were half as large as they should be"


def test_equal_members_share_their_weight() -> None:
    random = np.random.default_rng(4)
    one = random.normal(size=2_000)
    label = (random.random(2_000) < 1 / (1 + np.exp(-one))).astype(float)
    weight, _ = stacking.fit(BINARY, np.stack([one, one], axis=1), label)
    assert weight[0] == pytest.approx(weight[1], abs=1e-3)


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("objective", [BINARY, Objective("classes", ("a", "b", "c"))])
def test_a_class_that_no_stacked_row_has_becomes_rare_not_impossible(objective: Objective) -> None:
    random = np.random.default_rng(2)
    shape = (30, 2) if objective.outputs == 1 else (30, 2, 3)
    label = np.zeros(30) if objective.outputs == 1 else (np.arange(30) % 2).astype(float)
    weight, bias = stacking.fit(objective, random.normal(size=shape), label)
    assert np.ptp([0.0, *bias]) < 5
    many = random.normal(size=(20_000, 2))
    label = (random.random(20_000) < 1 / (1 + np.exp(-(many.mean(axis=1) - 4.0)))).astype(float)
    assert stacking.fit(BINARY, many, label)[1][0] == pytest.approx(-4.0, abs=0.2), "many rows are believed"
    assert (weight >= 0).all()


def test_a_member_begins_with_the_weights_of_its_number(tmp_path: Path) -> None:
    model = ct.Ensemble(SMALL, of=2)
    made = untrained(model, BINARY)
    numeric, category = golden()
    files = export.files(
        made,
        model,
        spec=b"{}",
        encoder=b"{}",
        golden={"features": {}, "numeric": numeric, "category": category, "shape": SHAPE},
    )["weights.safetensors"]
    for at, part in enumerate(model.members):
        state = building.construct(part, SHAPE).state_dict()
        read = start.read(files, at)
        assert set(read) == set(state)
        assert all((read[name] == value.numpy()).all() for name, value in state.items())
    assert start.read(files, 7)["layers.0.weight"].tobytes() == start.read(files, 1)["layers.0.weight"].tobytes()
    assert start.shapes(SMALL, SHAPE, BINARY) == {name: tuple(v.shape) for name, v in state.items()}


@pytest.mark.usefixtures("ray_local")
def test_an_ensembles_raw_outputs_come_from_all_members(tmp_path: Path) -> None:
    numeric, category = golden(600)
    label = (numeric[:, 0] > 0).astype(np.float32)
    folder = TrainingSet(numeric, category, label, SHAPE).save(tmp_path / "set")
    model = ct.Ensemble(SMALL, of=2)
    members = [trainer.train(folder, part, run=f"one-member-{at}", storage=tmp_path) for at, part in enumerate(model.members)]
    made = joining.joined(model, members, None)
    found = trainer.raw(folder, model, BINARY, made.weights)
    each = [trainer.raw(folder, part, BINARY, one.weights) for part, one in zip(model.members, members, strict=True)]
    np.testing.assert_allclose(
        PLAIN.scores(BINARY, found), np.mean([PLAIN.scores(BINARY, one) for one in each], axis=0), atol=1e-6
    )
    assert members[0].digest != members[1].digest
    assert [entry["member"] for entry in made.history] == [0, 0, 1, 1]
    assert made.contract["members"] == [members[0].contract["id"], members[1].contract["id"]]
    again = trainer.train(folder, model.members[0], run="one-member-0", storage=tmp_path)
    assert again.digest == members[0].digest
    assert again.resumed == len(members[0].history) * members[0].history[0]["steps"], "a finished member is not trained again"
