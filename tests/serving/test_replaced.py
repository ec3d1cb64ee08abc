"""F30: a model replaced in storage, by a valid one that nobody trusted signed, by a pickle, by a .pt2: refused, nothing run, journaled."""

from __future__ import annotations

import asyncio
import io
import pickle
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from tiny import ROW, Project, model_files

from ct.errors import Corrupt
from ct.registry import files
from ct.serving.replica import Replica
from ct.store import signing
from ct.store.artifacts import Artifacts
from ct.store.signing import Keys


class Touch:
    """Unpickling it leaves a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return open, (str(self.marker), "w")


def _pickled(marker: Path) -> bytes:
    return pickle.dumps(Touch(marker))


def _checkpoint(marker: Path) -> bytes:
    """What torch.save writes, with a pickle that runs."""
    made = io.BytesIO()
    torch.save({"weights": torch.zeros(2), "then": Touch(marker)}, made)
    return made.getvalue()


def _exported(marker: Path) -> bytes:
    """A .pt2 of a real module whose own list of weights says that the first is a pickle."""
    made, changed = io.BytesIO(), io.BytesIO()
    torch.export.save(torch.export.export(torch.nn.Linear(2, 1), (torch.zeros(1, 2),)), made)
    with zipfile.ZipFile(made) as old, zipfile.ZipFile(changed, "w") as new:
        for name in old.namelist():
            data = _checkpoint(marker) if name.endswith("/weight_0") else old.read(name)
            new.writestr(name, data.replace(b'"use_pickle": false', b'"use_pickle": true'))
    return changed.getvalue()


HOSTILE = [_pickled, _checkpoint, _exported]


def _refused(project: Project, manifest: str) -> list[str]:
    """Stage a manifest while v1 serves; the errors journaled of it."""
    replica = Replica(project.settings, "tiny")
    for _ in range(2):
        with pytest.raises(Corrupt):
            replica.stage("v2", manifest)
    answer = asyncio.run(replica.predict([ROW]))
    assert (answer.version, answer.arm) == ("v1", "stable")
    events = list(project.journal.read("audit/tiny", types=["ArtifactRefused"]))
    assert all(event.data["manifest"] == manifest and event.data["version"] == "v2" for event in events)
    return [str(event.data["error"]) for event in events]


def test_its_bytes_are_another_valid_models(project: Project) -> None:
    project.first()
    arm, other = project.version("v2", 1.0), model_files("v2", 9.0)
    victim = project.artifacts.manifest(arm.manifest)[files.ONNX]
    Path(project.artifacts.address(victim)).write_bytes(other[files.ONNX])
    assert _refused(project, arm.manifest) == ["Corrupt"]


def test_its_manifest_is_another_valid_models(project: Project) -> None:
    project.first()
    arm = project.version("v2", 1.0)
    other = project.artifacts.put_set(model_files("v2", 9.0))
    Path(project.artifacts.address(arm.manifest)).write_bytes(Path(project.artifacts.address(other)).read_bytes())
    assert _refused(project, arm.manifest) == ["Corrupt"]


@pytest.mark.parametrize("signature", ["none", "another model's", "another key's"])
def test_a_valid_model_that_no_trusted_key_signed(project: Project, monkeypatch: pytest.MonkeyPatch, signature: str) -> None:
    own = signing.make(signing.OWN)
    project.first()
    arm = project.version("v2", 1.0)
    evil = project.artifacts.put_set(model_files("v2", 9.0))
    if signature == "another model's":
        good = Path(project.artifacts.address(arm.manifest) + ".sig").read_bytes()
        Path(project.artifacts.address(evil) + ".sig").write_bytes(good)
    elif signature == "another key's":
        theirs = signing.make()
        monkeypatch.setenv(signing.VARIABLE, str(signing.folder() / signing.key_id(theirs)))
        Artifacts(project.settings.place("artifacts"), Keys((theirs,))).sign(evil)
        monkeypatch.delenv(signing.VARIABLE)
    assert signing.Keys().counted() == (own,)
    assert _refused(project, evil) == ["Untrusted"]


@pytest.mark.parametrize("made", HOSTILE)
@pytest.mark.parametrize("name", [files.ONNX, files.WEIGHTS, files.ENCODER, files.GOLDEN, files.SPEC, files.CODE])
def test_a_pickle_in_place_of_any_file_is_never_opened(
    project: Project, tmp_path: Path, made: Callable[[Path], bytes], name: str
) -> None:
    project.first()
    marker = tmp_path / "ran"
    evil = project.artifacts.put_set(model_files("v2") | {name: made(marker)})
    assert _refused(project, evil) == ["Untrusted"]
    assert not marker.exists()


@pytest.mark.parametrize("made", HOSTILE)
def test_even_signed_it_is_no_model(project: Project, tmp_path: Path, made: Callable[[Path], bytes]) -> None:
    """Nothing here unpickles, so a pickle that somebody signed by mistake is refused by the runtime."""
    project.first()
    marker = tmp_path / "ran"
    arm = files.store(project.artifacts, model_files("v2") | {files.ONNX: made(marker), files.WEIGHTS: made(marker)})
    assert _refused(project, arm) == ["Corrupt"]
    assert not marker.exists()


@pytest.mark.parametrize("made", HOSTILE)
def test_the_marker_would_show(tmp_path: Path, made: Callable[[Path], bytes]) -> None:
    """These bytes do run for whoever trusts them."""
    marker = tmp_path / "ran"
    data = made(marker)
    read: dict[object, Callable[[], object]] = {
        _pickled: lambda: pickle.loads(data),
        _checkpoint: lambda: torch.load(io.BytesIO(data), weights_only=False),
        _exported: lambda: torch.export.load(io.BytesIO(data)),
    }
    with suppress(Exception):  # what was unpickled is no module; it has run by then
        read[made]()
    assert marker.exists()
