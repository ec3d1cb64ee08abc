"""A tiny but real model version: its own features, encoder, ONNX graph and golden rows; and a project to serve it in."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from ct import category, numeric, window
from ct.features.declare import to_spec
from ct.features.encode import Encoder
from ct.objectives import BINARY, Objective
from ct.pipeline import Table
from ct.registry import files, routes
from ct.registry.code import Code
from ct.registry.files import ModelSpec
from ct.registry.routes import Arm, Route
from ct.settings import Settings
from ct.store.artifacts import Artifacts
from ct.store.journal import Journal

TRIPS = Table("trips", key="trip", time="leaves")
FEATURES = (
    numeric("distance"),
    category("line"),
    window(TRIPS, "late", by="bus", over="7d", agg="mean", known_at="arrives"),
)
REQUEST = {"trip": "text", "leaves": "time", "distance": "number", "line": "text", "bus": "text"}
OBSERVE = {"trips": {**REQUEST, "late": "number", "arrives": "time"}}
ROW = {"trip": "t1", "leaves": "2024-05-01T10:00:00Z", "distance": 120.0, "line": "A", "bus": "b7"}


def graph(width: int, bias: float, *, broken: bool = False, objective: Objective = BINARY) -> bytes:
    """score = sigmoid(x), x = sum(numeric) / 10 + category + bias. A broken one gives NaN for texts it does not know.

    classes: the softmax of x times 0, 1, 2, …; number: x; quantiles: x and 0, 1, 2, … more.
    """
    nodes = [
        helper.make_node("ReduceSum", ["numeric", "axis"], ["summed"], keepdims=0),
        helper.make_node("Mul", ["summed", "tenth"], ["scaled"]),
        helper.make_node("Cast", ["category"], ["ids"], to=TensorProto.FLOAT),
        helper.make_node("Squeeze", ["ids", "axis"], ["id"]),
        helper.make_node("Add", ["scaled", "id"], ["moved"]),
        helper.make_node("Add", ["moved", "bias"], ["whole" if broken else "logit"]),
        # 1 is the id of unknown texts: 0 / (id - 1) is NaN there and 0 elsewhere.
        helper.make_node("Sub", ["id", "one"], ["less"]),
        helper.make_node("Div", ["zero", "less"], ["fault"]),
        helper.make_node("Add", ["whole", "fault"], ["logit"]),
    ]
    nodes = [*(nodes if broken else nodes[:6]), *_ends(objective)]
    k = objective.outputs
    constants = {"tenth": 0.1, "bias": bias, "one": 1.0, "zero": 0.0}
    made = helper.make_graph(
        nodes,
        "tiny",
        [
            helper.make_tensor_value_info("numeric", TensorProto.FLOAT, ["n", width]),
            helper.make_tensor_value_info("category", TensorProto.INT64, ["n", 1]),
        ],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["n", k] if k > 1 else ["n"])],
        [helper.make_tensor(name, TensorProto.FLOAT, [], [value]) for name, value in constants.items()]
        + [helper.make_tensor("axis", TensorProto.INT64, [1], [1])]
        + [helper.make_tensor("steps", TensorProto.FLOAT, [1, k], [float(at) for at in range(k)])],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _ends(objective: Objective) -> list[Any]:
    """The graph's last nodes, from "logit" to "score"."""
    wide = helper.make_node("Unsqueeze", ["logit", "axis"], ["wide"])
    match objective.kind:
        case "binary":
            return [helper.make_node("Sigmoid", ["logit"], ["score"])]
        case "number":
            return [helper.make_node("Identity", ["logit"], ["score"])]
        case "quantiles":
            return [wide, helper.make_node("Add", ["wide", "steps"], ["score"])]
        case _:
            return [
                wide,
                helper.make_node("Mul", ["wide", "steps"], ["logits"]),
                helper.make_node("Softmax", ["logits"], ["score"], axis=1),
            ]


def model_files(
    version: str,
    bias: float = 0.0,
    *,
    broken: bool = False,
    request: dict[str, str] = REQUEST,
    personal: dict[str, dict[str, str]] | None = None,
    segments: tuple[str, ...] = ("line",),
    objective: Objective = BINARY,
) -> dict[str, bytes]:
    """A version's files."""
    columns: dict[str, Any] = {
        "distance": np.array([100.0, 200.0, np.nan, 50.0]),
        "line": np.array(["A", "B", "A", "B"], dtype=object),
        FEATURES[2].outputs()[0].name: np.array([np.nan, 3.0, 4.0, 5.0]),
    }
    encoder = Encoder.fit(columns, [column for feature in FEATURES for column in feature.outputs()])
    spec = ModelSpec(
        endpoint="tiny",
        version=version,
        key=("trip",),
        time="leaves",
        request=request,
        segments=segments,
        features=tuple(to_spec(feature) for feature in FEATURES),
        label={"column": "late", "above": 15.0 if objective == BINARY else None, "known_at": "arrives"},
        objective=asdict(objective),
        threshold=0.5,
        observe=OBSERVE,
        table="trips",
        personal=personal or {},
    )
    made = {files.WEIGHTS: b"", files.SPEC: spec.to_bytes(), files.ENCODER: encoder.to_json(), files.CODE: Code({}).to_bytes()}
    made[files.ONNX] = graph(len(encoder.numeric_names), bias, broken=broken, objective=objective)
    from ct.serving.runtime import _session

    given = {"numeric": encoder.numeric(columns), "category": encoder.category(columns)}
    scores = _session(made[files.ONNX]).run(["score"], given)[0]
    plain = {name: [None if value != value else value for value in values.tolist()] for name, values in columns.items()}
    made[files.GOLDEN] = json.dumps({"features": plain, "score": scores.astype(float).tolist()}).encode()
    return made


@dataclass
class Project:
    """A project folder with stored versions and routes."""

    settings: Settings
    artifacts: Artifacts
    journal: Journal

    def version(self, name: str, bias: float = 0.0, **options: Any) -> Arm:
        """Store a version."""
        return Arm(name, files.store(self.artifacts, model_files(name, bias, **options)))

    def put(self, route: Route) -> Route:
        """Record a route."""
        return routes.put(self.journal, route, cause="test")

    def first(self, name: str = "v1", **options: Any) -> Route:
        """Store a version and route everything to it."""
        return self.put(routes.first("tiny", self.version(name, **options)))
