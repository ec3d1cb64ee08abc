"""Versions of real modules, as training makes their files, with drawn weights: recipe, weights, graph, calibration, golden rows. No Ray."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np
from safetensors.numpy import save

from ct import category, numeric
from ct.evaluation.calibration import fit
from ct.features.declare import to_spec
from ct.features.encode import Encoder
from ct.objectives import BINARY, PLAIN, Calibration, Objective
from ct.registry import files
from ct.registry.files import ModelSpec
from ct.training import export
from ct.training.building import construct
from ct.training.code import code_of
from ct.training.declare import Torch
from ct.training.recipe import recipe

FEATURES = (numeric("distance", "speed", "age"), category("line", "stop"))
LINES, STOPS = ("A", "B", "C", None), ("n", "e", "s", "w")
CLASSES, NUMBER = Objective("classes", ("a", "b", "c")), Objective("number")
QUANTILES = Objective("quantiles", quantiles=(0.1, 0.5, 0.9))
REQUEST = {
    "trip": "text",
    "leaves": "time",
    "distance": "number",
    "speed": "number",
    "age": "number",
    "line": "text",
    "stop": "text",
}


def columns(count: int, seed: int = 0, *, unseen: bool = False) -> dict[str, Any]:
    """Feature columns of `count` rows; with `unseen` some texts were in no training row, and some numbers are far out or missing."""
    random = np.random.default_rng(seed)
    found: dict[str, Any] = {name: random.normal(size=count) * 10 for name in ("distance", "speed", "age")}
    found["line"] = np.array([LINES[at] for at in random.integers(0, len(LINES), count)], dtype=object)
    found["stop"] = np.array([STOPS[at] for at in random.integers(0, len(STOPS), count)], dtype=object)
    if unseen:
        found["line"][::3], found["stop"][1::3] = "?", "nowhere"
        found["speed"][::4], found["age"][::5] = np.nan, 1e9
    return found


def isotonic() -> Calibration:
    """A fitted one, with a steep step."""
    random = np.random.default_rng(0)
    raw = random.normal(size=2000)
    return fit("isotonic", BINARY, raw, (random.random(2000) < np.where(raw > 0.1, 0.8, 0.2)).astype(float))


def version_files(
    model: Any, objective: Objective = BINARY, calibration: Calibration = PLAIN, *, version: str = "v1", graph: bool = True
) -> dict[str, bytes]:
    """The files of a version. Without `graph` it is one whose module cannot be exported."""
    encoder = Encoder.fit(columns(200), [column for feature in FEATURES for column in feature.outputs()])
    state = construct(model, encoder.shape, objective).state_dict()
    weights = {name: np.array(value.numpy(), order="C") for name, value in state.items()}
    few = columns(64, 1)
    given = (model, objective, calibration, weights, encoder.shape, encoder.numeric(few), encoder.category(few))
    spec = ModelSpec(
        endpoint="tiny",
        version=version,
        key=("trip",),
        time="leaves",
        request=REQUEST,
        segments=(),
        features=tuple(to_spec(feature) for feature in FEATURES),
        label={"column": "late", "above": 15.0 if objective == BINARY else None, "known_at": "arrives"},
        objective=asdict(objective),
        calibration=calibration.to_json(),
        threshold=0.5,
        table="trips",
        model=recipe(model),
        graph="" if graph else "the module branches on a value",
    )
    if graph:
        made, scores = export.onnx(*given)
    else:
        made, (_, scores, _) = b"", export._scored(*given)
    plain = {name: [None if value != value else value for value in values.tolist()] for name, values in few.items()}
    found = {
        files.WEIGHTS: save(weights),
        files.SPEC: spec.to_bytes(),
        files.ENCODER: encoder.to_json(),
        files.CODE: code_of(model).to_bytes(),
        files.GOLDEN: json.dumps({"features": plain, "score": scores.tolist()}).encode(),
    }
    return found | ({files.ONNX: made} if graph else {})


def golden(made: dict[str, bytes]) -> tuple[dict[str, Any], Any]:
    """A version's golden rows as columns, and their scores as training's own forward gave them."""
    encoder, kept = Encoder.from_json(made[files.ENCODER]), json.loads(made[files.GOLDEN])
    kinds = {name: object if name in encoder.texts else np.float64 for name in kept["features"]}
    return {name: np.array(values, dtype=kinds[name]) for name, values in kept["features"].items()}, np.array(kept["score"])


def without_graph(made: dict[str, bytes], model: Any) -> dict[str, bytes]:
    """The binary version with these files, of another module that has no graph."""
    encoder, (few, _) = Encoder.from_json(made[files.ENCODER]), golden(made)
    weights = {name: value.numpy() for name, value in construct(model, encoder.shape).state_dict().items()}
    given = (model, BINARY, PLAIN, weights, encoder.shape, encoder.numeric(few), encoder.category(few))
    _, scores, _ = export._scored(*given)
    spec = json.loads(made[files.SPEC]) | {"model": recipe(model), "graph": "the module branches on a value"}
    changed = {files.WEIGHTS: save(weights), files.SPEC: json.dumps(spec).encode(), files.CODE: code_of(model).to_bytes()}
    changed[files.GOLDEN] = json.dumps({**json.loads(made[files.GOLDEN]), "score": scores.tolist()}).encode()
    return {name: data for name, data in (made | changed).items() if name != files.ONNX}


SMALL = {"MLP": {"width": 32}, "RealMLP": {"width": 32}, "TabM": {"members": 4, "width": 16}}


def small(name: str, **options: Any) -> Torch:
    """A ready model of few weights."""
    return Torch(name, options=SMALL[name] | options)
