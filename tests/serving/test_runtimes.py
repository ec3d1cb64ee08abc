"""The same version on ONNX Runtime, on torch and as machine code: equal scores, golden rows before anything, and what stands in for what."""

from __future__ import annotations

import asyncio
import json
import pickle
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import Project, model_files
from trained import NUMBER, QUANTILES, columns, golden, isotonic, small, version_files

import ct
from ct.errors import Corrupt
from ct.objectives import BINARY, PLAIN, Calibration, Objective
from ct.registry import files, held, routes
from ct.registry.files import ModelSpec
from ct.serving.replica import Replica
from ct.serving.runtime import Predictor, Wanted
from ct.serving.slots import Slots
from ct.training.building import loaded
from ct.training.declare import Torch
from delay_model import DelayNet

TORCH = Wanted("torch")
CASES: dict[str, tuple[Any, Objective, Calibration]] = {
    "isotonic": (small("MLP"), BINARY, isotonic()),
    "number": (small("RealMLP"), NUMBER, Calibration(center=1.5e6, spread=20.0)),
    "quantiles": (small("TabM", embedding="piecewise"), QUANTILES, Calibration(center=40.0, spread=1e3)),
    "stacked": (ct.Ensemble([small("MLP"), small("RealMLP")], how="stacked"), BINARY, Calibration(temperature=1.3)),
    "own": (Torch(DelayNet, options={"width": 16}), BINARY, PLAIN),
}


@cache
def version(name: str) -> dict[str, bytes]:
    """The files of a case, exported once."""
    return version_files(*CASES[name])


@pytest.mark.parametrize("name", CASES)
def test_torch_gives_trainings_bits_and_the_graph_a_millionth_at_most(name: str) -> None:
    made, (_, objective, calibration) = version(name), CASES[name]
    graph, eager = Predictor.load(made), Predictor.load(made, wanted=TORCH)
    assert (graph.runtime, eager.runtime, eager.instead) == ("onnx", "torch", "")
    rows, scores = golden(made)
    assert eager.score_features(rows).tobytes() == scores.tobytes(), "0 bits in the same runtime"
    unseen = columns(500, 9, unseen=True)
    assert calibration.gap(objective, graph.score_features(unseen), eager.score_features(unseen)) <= 1e-6
    for size in (1, 2, 7):
        few = {name: values[:size] for name, values in unseen.items()}
        assert calibration.gap(objective, graph.score_features(few), eager.score_features(few)) <= 1e-6
    if not eager.steady:  # then nobody scores its rows with others'; where it says it is, they must be equal
        return
    alone = [eager.score_features({name: values[at : at + 1] for name, values in unseen.items()}) for at in range(500)]
    assert np.concatenate(alone).tobytes() == eager.score_features(unseen).tobytes()


def test_raw_outputs_are_trainings_own() -> None:
    from safetensors.numpy import load

    from ct.models.restoring import restored

    model = small("RealMLP")
    made = version_files(model, NUMBER, graph=False)
    predictor = Predictor.load(made, wanted=TORCH)
    rows = columns(300, 4, unseen=True)
    given = [torch.from_numpy(part) for part in (predictor.encoder.numeric(rows), predictor.encoder.category(rows))]
    with torch.no_grad():
        own = loaded(model, predictor.encoder.shape, NUMBER, load(made[files.WEIGHTS]))(*given)
        theirs = restored(made).module(*given)
    assert own.numpy().tobytes() == theirs.numpy().tobytes()


def test_building_and_scoring_leave_the_process_as_it_was() -> None:
    made = version_files(small("MLP"), graph=False)
    before, threads = torch.random.get_rng_state(), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        predictor = Predictor.load(made)
        predictor.score_features(columns(3))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.is_grad_enabled()


def test_onnx_runtime_alone_loads_no_torch() -> None:
    folder = Path(__file__).parent
    code = f"import sys; sys.path.insert(0, {str(folder)!r}); from tiny import model_files; from ct.serving.runtime import Predictor; "
    code += "assert Predictor.load(model_files('v1')).runtime == 'onnx'; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_version_without_a_graph_is_held_by_torch_and_told(project: Project) -> None:
    project.put(
        routes.first("tiny", routes.Arm("v1", files.store(project.artifacts, version_files(small("MLP"), graph=False))))
    )
    replica = Replica(project.settings, "tiny")
    why = "onnx: there is no graph: the module branches on a value"
    state = replica.state()
    assert (state["runtimes"], state["instead"]) == ({"v1": "torch"}, {"v1": why})
    assert replica.metadata()["platform"] == "pytorch"
    assert 'ct_resident_bytes{endpoint="tiny",version="v1",runtime="torch"' in asyncio.run(replica.metrics())
    row = {"trip": "t1", "leaves": "2024-05-01T10:00:00Z", "distance": 1.0, "speed": 2.0, "age": None, "line": "?", "stop": "n"}
    assert asyncio.run(replica.predict([row])).version == "v1"

    async def followed() -> None:
        following = asyncio.create_task(replica.keep_converging())
        async with asyncio.timeout(20):
            while not held.told(project.journal, "tiny"):
                await asyncio.sleep(0.05)
        following.cancel()

    asyncio.run(followed())
    (told,) = held.told(project.journal, "tiny").values()
    assert (told.version, told.runtime, told.wanted, told.instead) == ("v1", "torch", "onnx", why)
    assert not held.tell(project.journal, "tiny", told), "once for each"


def test_a_graph_that_cannot_be_read_is_torchs_and_without_a_recipe_nobodys() -> None:
    made = version_files(small("MLP"), graph=False) | {files.ONNX: b"no graph"}
    found = Predictor.load(made)
    assert found.runtime == "torch"
    assert found.instead.startswith("onnx: the model's graph cannot be read")
    spec = json.loads(made[files.SPEC]) | {"model": {}}
    with pytest.raises(Corrupt, match="graph cannot be read"):
        Predictor.load(made | {files.SPEC: json.dumps(spec).encode()})


def test_torch_asked_for_a_version_that_has_no_recipe_leaves_it_to_the_graph() -> None:
    found = Predictor.load(model_files("v1"), wanted=TORCH)
    assert (found.runtime, found.instead) == ("onnx", "torch: the spec does not say how the module is built")


@pytest.mark.parametrize("wanted", [Wanted(), TORCH])
def test_golden_rows_that_come_out_otherwise_refuse_the_slot(project: Project, wanted: Wanted) -> None:
    made = version("isotonic")
    golden_ = json.loads(made[files.GOLDEN])
    golden_["score"][5] += 1e-3
    manifest = files.store(project.artifacts, made | {files.GOLDEN: json.dumps(golden_).encode()})
    slots = Slots(project.artifacts, wanted=wanted)
    with pytest.raises(Corrupt, match="golden rows of v1"):
        slots.stage("v1", manifest)
    assert not slots.loaded


def test_a_users_module_runs_out_of_the_archive_alone_and_counts_as_own_code(tmp_path: Path) -> None:
    made = version("own")
    spec = ModelSpec.from_bytes(made[files.SPEC])
    assert spec.model["parts"] == [{"module": "delay_model", "name": "DelayNet", "options": {"width": 16}, "seed": 0}]
    eager = Predictor.load(made, wanted=TORCH)
    assert eager.own_code
    assert not eager.steady, "a user's own code is not asked"
    assert not Predictor.load(made).own_code, "its graph is none"
    module: Any = eager.engine
    assert type(module.module.module) is not DelayNet, "the archive's, not this process's"
    without = Predictor.load(made | {files.CODE: model_files("v1")[files.CODE]}, wanted=TORCH)
    assert without.runtime == "torch", "an installed package's module needs no archive"


class Touch:
    """Unpickling it leaves a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.marker), "w")


def test_weights_that_are_a_pickle_are_never_opened_by_torch_either(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    made = version_files(small("MLP"), graph=False) | {files.WEIGHTS: pickle.dumps(Touch(marker))}
    with pytest.raises(Corrupt, match="the module cannot be built"):
        Predictor.load(made)
    other = version_files(small("MLP", depth=3), graph=False)
    with pytest.raises(Corrupt, match="the module cannot be built"):
        Predictor.load(made | {files.WEIGHTS: other[files.WEIGHTS]})
    assert not marker.exists()
