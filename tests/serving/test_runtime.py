"""A version's files become a predictor, or are refused."""

from __future__ import annotations

import asyncio
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny import FEATURES, ROW, Project, model_files

from ct.data import predictions
from ct.data.columns import from_rows
from ct.errors import Corrupt
from ct.features.online import OnlineStore
from ct.features.online.sqlite import SqliteShelf
from ct.registry import files
from ct.serving import runtime
from ct.serving.isolated import ArmReplica
from ct.serving.passes import INLINE_ROWS
from ct.serving.replica import Replica
from ct.serving.runtime import BATCHES, Predictor
from ct.serving.slots import Slots


def test_scores_rows_with_their_history(tmp_path: Path) -> None:
    predictor, store = Predictor.load(model_files("v1")), OnlineStore(SqliteShelf(tmp_path / "online.db"))
    rows = from_rows([ROW], predictor.spec.request)
    times = rows["leaves"]
    before, features = predictor.score(rows, times, store)
    late = FEATURES[2].outputs()[0].name
    assert np.isnan(features[late][0])
    fresh = {**ROW, "trip": "t0", "late": 40.0, "leaves": "2024-05-01T07:00:00Z", "arrives": "2024-05-01T08:00:00Z"}
    store.push(predictor.lookups, "trips", from_rows([fresh], predictor.spec.observe["trips"]))
    after, features = predictor.score(rows, times, store)
    assert features[late][0] == 40.0
    assert after[0] > before[0]


def test_many_rows_score_as_one_by_one() -> None:
    predictor = Predictor.load(model_files("v1"))
    columns = {"distance": np.arange(500.0), "line": np.array(["A", "B", None, "?"] * 125, dtype=object)}
    columns[FEATURES[2].outputs()[0].name] = np.arange(500.0) - 100
    together = predictor.score_features(columns)
    alone = [predictor.score_features({name: values[at : at + 1] for name, values in columns.items()})[0] for at in range(500)]
    assert together.tolist() == alone
    assert predictor.score_features({name: values[:0] for name, values in columns.items()}).shape == (0,)


def test_golden_rows_that_come_out_differently_are_refused() -> None:
    """The error names the row that is farthest off and both its scores."""
    made = model_files("v1")
    golden = json.loads(made[files.GOLDEN])
    right = list(golden["score"])
    golden["score"][0] += 1e-4
    golden["score"][2] += 1e-3
    with pytest.raises(Corrupt, match=r"golden rows of v1 come out 1\.0e-03 away") as found:
        Predictor.load({**made, files.GOLDEN: json.dumps(golden).encode()})
    assert f"on onnx in a batch of {len(right)}: row 2 gives {right[2]}, not {golden['score'][2]}" in str(found.value)
    golden["score"] = [[score, score] for score in right]
    with pytest.raises(Corrupt, match=r"scores of the shape \[4\] for 4 rows"):
        Predictor.load({**made, files.GOLDEN: json.dumps(golden).encode()})


def test_a_version_is_warmed_up_in_every_size_of_batch_before_it_is_ready(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that goes astray in batches of 16 only is not staged, in a slot or apart."""
    run, sizes = Predictor._run, list[int]()

    def astray(self: Predictor, numeric: Any, category: Any) -> Any:
        sizes.append(len(numeric))
        return run(self, numeric, category) + np.float32([0, 0, 0, 0, 0, 1e-3] + [0] * 10 if len(numeric) == 16 else 0)

    arm = project.version("v1")
    slots = Slots(project.artifacts)
    with monkeypatch.context() as broken:
        broken.setattr(Predictor, "_run", astray)
        with pytest.raises(Corrupt, match=r"in a batch of 16: row 1 gives"):
            slots.stage("v1", arm.manifest)
        with pytest.raises(Corrupt, match=r"in a batch of 16: row 1 gives"):
            ArmReplica({"root": str(project.settings.root), "version": "v1", "manifest": arm.manifest})
    assert slots.loaded == {}
    assert sizes == [4, 1, 2, 4, 8, 16] * 2
    assert max(BATCHES) == INLINE_ROWS
    slots.stage("v1", arm.manifest)


def test_a_changed_byte_is_refused(project: Project) -> None:
    arm = project.version("v1")
    graph = Path(project.artifacts.address(project.artifacts.manifest(arm.manifest)[files.ONNX]))
    data = bytearray(graph.read_bytes())
    data[-1] ^= 1
    graph.write_bytes(data)
    with pytest.raises(Corrupt):
        files.fetch(project.artifacts, arm.manifest)


def test_a_segment_of_numbers_is_logged_as_training_spells_it(project: Project) -> None:
    project.first(segments=("line", "distance"))
    replica = Replica(project.settings, "tiny")
    rows = [ROW, {**ROW, "distance": 1.5}, {**ROW, "distance": None}]
    asyncio.run(replica.predict(rows))
    records = predictions.read(project.settings.inbox)[0]
    assert [record["context"]["distance"] for record in records] == ["120", "1.5", None]


def test_a_large_graph_gives_the_same_bits_out_of_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """See `runtime._parted`: so that its loading holds up no request."""
    width, layers = 1536, 4
    weights = np.random.default_rng(7).normal(size=(layers, width, width)).astype(np.float32) / width
    names = ["x", *(f"h{at}" for at in range(1, layers)), "score"]
    made = helper.make_graph(
        [helper.make_node("MatMul", [names[at], f"w{at}"], [names[at + 1]]) for at in range(layers)],
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", width])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["n", width])],
        [numpy_helper.from_array(weights[at], f"w{at}") for at in range(layers)],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    graph = model.SerializeToString()
    assert len(graph) > runtime.LARGE_BYTES
    rows = {"x": np.random.default_rng(8).normal(size=(3, width)).astype(np.float32)}
    calls: list[str] = []
    parted = runtime._parted

    def spy(graph: bytes, folder: str) -> str:
        calls.append(folder)
        return parted(graph, folder)

    monkeypatch.setattr(runtime, "_parted", spy)
    far = runtime._session(graph).run(["score"], rows)[0]
    assert len(calls) == 1
    assert not Path(calls[0]).exists()
    monkeypatch.setattr(runtime, "LARGE_BYTES", len(graph) + 1)
    assert runtime._session(graph).run(["score"], rows)[0].tobytes() == far.tobytes()
    assert len(calls) == 1
    monkeypatch.setattr(runtime, "LARGE_BYTES", 1)
    with pytest.raises(Corrupt, match="cannot be parted"):
        runtime._session(b"no graph")


def test_what_a_history_found_gives_another_process_the_same_bits(tmp_path: Path) -> None:
    from ct.serving.isolated import Found

    predictor, store = Predictor.load(model_files("v1")), OnlineStore(SqliteShelf(tmp_path / "online.db"))
    fresh = {**ROW, "trip": "t0", "late": 40.0, "leaves": "2024-05-01T07:00:00Z", "arrives": "2024-05-01T08:00:00Z"}
    store.push(predictor.lookups, "trips", from_rows([fresh], predictor.spec.observe["trips"]))
    for rows in ([ROW], [ROW, {**ROW, "bus": "b8"}, ROW]):
        columns = from_rows(rows, predictor.spec.request)
        times = columns["leaves"]
        history = store.history(columns, predictor.lookups)
        spans = [history.spans(columns, times, lookup) for lookup in predictor.lookups]
        sent = pickle.loads(pickle.dumps((columns, times, spans)))
        found, features = predictor.score(sent[0], sent[1], Found(predictor.lookups, sent[2]))
        expected, own = predictor.score(columns, times, history)
        assert found.tobytes() == expected.tobytes()
        assert features.keys() == own.keys()
        assert 40.0 in features[FEATURES[2].outputs()[0].name]
