"""A shop's orders and versions made by hand: real files, encoder and ONNX graph, whose weights the test chooses. Nothing is trained."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow.parquet as pq
from onnx import TensorProto, helper

import ct
from ct.control import judging, rows, runs
from ct.control.act import Actor
from ct.control.rows import Rows, take
from ct.features.declare import to_spec
from ct.features.encode import Encoder
from ct.registry import files, routes, versions
from ct.registry.code import Code
from ct.registry.files import ModelSpec
from ct.serving.runtime import _session
from ct.settings import load
from tests.loop import project

GATE = ct.Gate(beats=ct.auc(by=0.0, margin=0.02), floors=[ct.auc(0.60), ct.ece(max=0.2)])
TRUE = (2.1, -1.0, 1.5)
"""The truth's logit: by the standardized amount, for all, for one country (see project.shard)."""


def line(**changes: Any) -> ct.Pipeline:
    """Is an order late? From its amount and country."""
    orders = ct.Table("orders", key="order_id", time="ordered_at", owner="shop")
    made = ct.Pipeline(
        name="late-orders",
        owner="shop | desk",
        description="Warns the desk <before> it promises a date.",
        table=orders,
        label=ct.Label("days_late", above=0, known_at="delivered_at"),
        features=[ct.numeric("amount"), ct.category("country")],
        segments=["country"],
        holdout="8d",
        model=ct.Torch("MLP", epochs=1),
        gate=GATE,
        rollout=ct.Canary(50, 100),
    )
    return made.replace(**changes)


def opened(root: Path, pipeline: ct.Pipeline, *shards: int) -> Actor:
    """The shop's actor, after the shards have landed."""
    root.mkdir(parents=True, exist_ok=True)
    act = Actor(pipeline, load(root, {}), actor="ann")
    for number in shards or (0, 1, 2):
        path = root / f"orders-{number}.parquet"
        pq.write_table(project.shard(number), path)
        assert act.ingest("orders", path).kind == "published"
    return act


def prepared(act: Actor, cause: str = "by hand") -> tuple[runs.Run, Rows]:
    """A run of all that has landed, and its rows."""
    inputs = act.run_inputs()
    run = runs.start(act.journal, act.pipeline.name, cause=cause, inputs=inputs)
    return run, rows.rows(act.place, run, on_step=lambda _: None)


def graph(amount: float, bias: float, country: float, cardinality: int, *, kind: str = "binary") -> bytes:
    """logit = amount * z + bias + country * (id is the last); the score is its sigmoid, or for a number the logit itself."""
    table = np.zeros(cardinality, np.float32)
    table[-1] = country
    nodes = [
        helper.make_node("Squeeze", ["numeric", "axis"], ["z"]),
        helper.make_node("Mul", ["z", "amount"], ["scaled"]),
        helper.make_node("Squeeze", ["category", "axis"], ["id"]),
        helper.make_node("Gather", ["table", "id"], ["by_country"]),
        helper.make_node("Add", ["scaled", "by_country"], ["moved"]),
        helper.make_node("Add", ["moved", "bias"], ["logit"]),
        helper.make_node("Sigmoid" if kind == "binary" else "Identity", ["logit"], ["score"]),
    ]
    made = helper.make_graph(
        nodes,
        "orders",
        [
            helper.make_tensor_value_info("numeric", TensorProto.FLOAT, ["n", 1]),
            helper.make_tensor_value_info("category", TensorProto.INT64, ["n", 1]),
        ],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["n"])],
        [
            helper.make_tensor("amount", TensorProto.FLOAT, [], [amount]),
            helper.make_tensor("bias", TensorProto.FLOAT, [], [bias]),
            helper.make_tensor("table", TensorProto.FLOAT, [cardinality], table.tolist()),
            helper.make_tensor("axis", TensorProto.INT64, [1], [1]),
        ],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def made(
    act: Actor, data: Rows, weights: tuple[float, float, float] = TRUE, *, version: str = "v1", run: str = ""
) -> dict[str, bytes]:
    """The files of a version with these weights."""
    pipeline = act.pipeline
    train = take(data.columns, data.split.train)
    encoder = Encoder.fit(train, pipeline.outputs)
    objective = pipeline.label.objective
    spec = ModelSpec(
        endpoint=pipeline.name,
        version=version,
        key=pipeline.table.keys,
        time=pipeline.table.time,
        request={"order_id": "text", "ordered_at": "time", "amount": "number", "country": "text"},
        segments=tuple(pipeline.segments),
        features=tuple(to_spec(feature) for feature in pipeline.features),
        label={"column": "days_late", "above": pipeline.label.above, "known_at": "delivered_at"},
        objective=asdict(objective),
        threshold=0.5,
        table="orders",
        lineage={"run": run},
    )
    onnx_bytes = graph(*weights, encoder.cardinalities[0], kind=objective.kind)
    few = take(data.columns, np.flatnonzero(data.split.judge)[:20])
    scores = _session(onnx_bytes).run(["score"], {"numeric": encoder.numeric(few), "category": encoder.category(few)})[0]
    golden = {"features": {name: values.tolist() for name, values in few.items()}, "score": scores.astype(float).tolist()}
    return {
        files.WEIGHTS: b"",
        files.SPEC: spec.to_bytes(),
        files.ENCODER: encoder.to_json(),
        files.CODE: Code({}).to_bytes(),
        files.ONNX: onnx_bytes,
        files.GOLDEN: json.dumps(golden).encode(),
    }


def judged(act: Actor, weights: tuple[float, float, float] = TRUE) -> judging.Report:
    """The report about a version with these weights; nothing is recorded but a run."""
    _, data = prepared(act)
    return judging.judge(act.place, made(act, data, weights), data)


def registered(act: Actor, weights: tuple[float, float, float] = TRUE, *, live: bool = False) -> versions.Version:
    """A version with its run and report in the journal; `live` makes it the champion."""
    run, data = prepared(act)
    name = versions.next_name(act.journal, act.pipeline.name, run.id)
    its = made(act, data, weights, version=name, run=run.id)
    report = judging.judge(act.place, its, data)
    manifest = files.store(act.artifacts, its)
    version = versions.register(
        act.journal,
        act.pipeline.name,
        manifest=manifest,
        run=run.id,
        verdict=report.verdict.decision,
        metrics=report.candidate.metrics,
        reasons=report.verdict.reasons,
    )
    facts = {
        "weights": "0" * 64,
        "rows": int(data.split.train.sum()),
        "rows_judged": int(data.split.judge.sum()),
        "trained_until": data.split.window.start,
        "contract": {"threads": 1},
        "report": report.to_json(),
    }
    runs.registered(act.journal, act.pipeline.name, run.id, version=version.name, facts=facts)
    if live:
        routes.put(act.journal, routes.first(act.pipeline.name, versions.arm(version)), cause="first")
    return version
