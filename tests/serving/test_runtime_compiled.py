"""Machine code that this node compiled: as good as torch, kept on its disk, made once, and never taken from anybody else. One module is compiled."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from tiny import Project, model_files
from trained import CLASSES, columns, golden, small, version_files

from ct.errors import Corrupt
from ct.objectives import Calibration
from ct.registry import files
from ct.serving import compiled
from ct.serving.runtime import Predictor, Wanted
from ct.serving.slots import Slots

CALIBRATION = Calibration(temperature=0.4, shift=(0.0, -1.0, 3.0))


@pytest.fixture(scope="module")
def made() -> dict[str, bytes]:
    """A TabM for three classes."""
    return version_files(small("TabM"), CLASSES, CALIBRATION)


@pytest.fixture(scope="module")
def folder(made: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with its package."""
    place = tmp_path_factory.mktemp("node") / "compiled"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(
            "TORCHINDUCTOR_VEC_ISA_OK", "1"
        )  # the processor's instructions are not tried out one by one: half the time
        compiled.packaged(made, place)
    return place


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a test loads must be there already."""
    monkeypatch.setenv("CXX", "no-such-compiler")


def package(folder: Path) -> Path:
    (found,) = folder.glob("*.pt2")
    return found


@pytest.mark.usefixtures("folder")
def test_its_scores_are_a_millionth_from_the_others_for_any_number_of_rows(made: dict[str, bytes], folder: Path) -> None:
    machine, torch, graph = (Predictor.load(made, wanted=Wanted(name, folder)) for name in ("aot", "torch", "onnx"))
    assert [found.runtime for found in (machine, torch, graph)] == ["aot", "torch", "onnx"]
    assert not machine.own_code
    known, scores = golden(made)
    assert torch.score_features(known).tobytes() == scores.tobytes(), "0 bits in the runtime of the training"
    rows = columns(500, 9, unseen=True)
    for size in (1, 2, 3, 64, 500):
        few = {name: values[:size] for name, values in rows.items()}
        for other in (torch, graph):
            assert CALIBRATION.gap(CLASSES, machine.score_features(few), other.score_features(few)) <= 1e-6
    assert machine.score_features({name: values[:0] for name, values in rows.items()}).shape == (0, 3)


def test_it_is_compiled_once_for_a_version_and_a_machine(
    made: dict[str, bytes], folder: Path, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = package(folder).stat().st_ino
    slots = Slots(project.artifacts, wanted=Wanted("aot", folder))
    assert slots.stage("v1", files.store(project.artifacts, made)).predictor.runtime == "aot"
    assert package(folder).stat().st_ino == before
    why = "aot: there is no C++ compiler 'no-such-compiler' here"
    other = Predictor.load(version_files(small("MLP"), graph=False), wanted=Wanted("aot", folder))
    assert (other.runtime, other.instead) == ("torch", why)
    monkeypatch.setattr("ct.models.compiling._instructions", lambda: "another processor's")
    assert Predictor.load(made, wanted=Wanted("aot", folder)).instead == why


def test_without_a_recipe_or_a_place_it_is_the_graphs(made: dict[str, bytes]) -> None:
    found = Predictor.load(model_files("v1"), wanted=Wanted("aot", None))
    assert found.runtime == "onnx"
    assert found.instead.count("the spec does not say how the module is built") == 2
    assert Predictor.load(made, wanted=Wanted("aot", None)).instead == "aot: machine code can be kept nowhere here"


def test_golden_rows_that_come_out_otherwise_refuse_the_slot(
    made: dict[str, bytes], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Golden rows are a part of what a package is named by, so this one is given for others, as a compiler's fault would make it."""
    kept = json.loads(made[files.GOLDEN])
    kept["score"][5] = [0.2, 0.3, 0.5]
    right = compiled.packaged(made, folder)
    monkeypatch.setattr(compiled, "packaged", lambda *_: right)
    with pytest.raises(Corrupt, match="golden rows of v1"):
        Predictor.load(made | {files.GOLDEN: json.dumps(kept).encode()}, wanted=Wanted("aot", folder))


def test_changed_bytes_and_other_peoples_folders_are_not_run(made: dict[str, bytes], folder: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(folder, copied)
    copied.chmod(0o700)
    assert Predictor.load(made, wanted=Wanted("aot", copied)).runtime == "aot"
    place = package(copied)
    data = bytearray(place.read_bytes())
    data[len(data) // 2] ^= 1
    place.write_bytes(data)
    assert "no C++ compiler" in Predictor.load(made, wanted=Wanted("aot", copied)).instead, "it would be compiled anew"
    for mode in (0o770, 0o707):
        folder_ = tmp_path / f"{mode:o}"
        shutil.copytree(folder, folder_)
        folder_.chmod(mode)
        assert "others may write" in Predictor.load(made, wanted=Wanted("aot", folder_)).instead


def test_what_could_not_be_compiled_is_not_tried_at_every_start(
    made: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = list[str]()

    def run(work: Path, package: str) -> str:
        assert {path.name for path in work.iterdir()} == files.REQUIRED
        calls.append(package)
        return "broken"

    monkeypatch.setenv("CXX", "sh")
    monkeypatch.setattr(compiled, "_run", run)
    place = tmp_path / "compiled"
    for _ in range(2):
        found = Predictor.load(made, wanted=Wanted("aot", place))
        assert (found.runtime, found.instead) == ("torch", "aot: it cannot be compiled: broken")
    assert len(calls) == 1
    (fault,) = place.glob("*.fault")
    os.utime(fault, (0, 0))
    Predictor.load(made, wanted=Wanted("aot", place))
    assert len(calls) == 2, "after a day it is"
    assert not [path for path in place.iterdir() if path.is_dir()]
