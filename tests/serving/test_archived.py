"""A version's own functions come from the archive it carries, out of verified files alone."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import ROW, Project, model_files

from ct.data import predictions
from ct.errors import Corrupt, Untrusted
from ct.features.declare import to_spec
from ct.pipeline import load
from ct.registry import files, routes
from ct.registry.files import ModelSpec
from ct.registry.routes import Arm
from ct.serving.replica import Replica
from ct.training.code import code_of

PIPELINE = """
import ct
from near import BY

open({marker!r}, "a").write("run")


@ct.feature("distance")
def distance(values):
    return values * BY


trips = ct.Table("trips", key="trip", time="leaves")
pipeline = ct.Pipeline(
    name="tiny", table=trips, label=ct.Label("late", above=15, known_at="arrives"), features=[distance],
    model=ct.Torch("MLP"), gate=ct.Gate(beats=ct.auc(by=0.0), floors=[ct.auc(0.5)]), rollout=ct.Canary(100),
)
"""


def version(project: Project, name: str, by: float, text: str = PIPELINE) -> tuple[dict[str, bytes], Path]:
    """The files of a version whose feature `distance` is the user's own function, and the file that running its code leaves."""
    folder = project.settings.root / name
    folder.mkdir(parents=True)
    (folder / "near.py").write_text(f"BY = {by}\n")
    (folder / "line.py").write_text(text.format(marker=str(folder / "ran")))
    made = model_files(name)
    feature = load(str(folder / "line.py")).features[0]
    for module in ("line", "near"):
        sys.modules.pop(module)
    sys.path.remove(str(folder))
    spec = ModelSpec.from_bytes(made[files.SPEC])
    spec = replace(spec, features=(to_spec(feature), *spec.features[1:]))
    (folder / "ran").unlink()
    return made | {files.SPEC: spec.to_bytes(), files.CODE: code_of(None, folder / "line.py").to_bytes()}, folder / "ran"


def test_each_version_computes_with_the_function_it_was_trained_with(project: Project) -> None:
    arms = []
    for name, by in (("v1", 1.0), ("v2", 3.0)):
        made, _ = version(project, name, by)
        arms.append(Arm(name, files.store(project.artifacts, made)))
        for file in (project.settings.root / name).glob("*.py"):
            file.unlink()  # the working copy may change, or be elsewhere
    route = project.put(routes.first("tiny", arms[0]))
    project.put(route.with_canary(arms[1], weight=0))
    replica = Replica(project.settings, "tiny")
    for arm in arms:
        asyncio.run(replica.predict([ROW], version=arm.version))
    records = predictions.read(project.settings.inbox)[0]
    assert [(record["version"], record["features"]["distance"]) for record in records] == [("v1", 120.0), ("v2", 360.0)]


def test_code_of_an_unsigned_version_is_never_run_and_the_refusal_is_journaled(project: Project) -> None:
    made, ran = version(project, "v1", 1.0)
    good = project.version("v0")
    route = project.put(routes.first("tiny", good))
    unsigned = project.artifacts.put_set(made)
    replica = Replica(project.settings, "tiny")
    for _ in range(2):
        with pytest.raises(Untrusted, match="there is no signature"):
            replica.stage("v1", unsigned)
    assert not ran.exists()
    events = list(project.journal.read("audit/tiny"))
    assert [(event.type, event.data["version"], event.data["error"]) for event in events] == [
        ("ArtifactRefused", "v1", "Untrusted")
    ]
    assert replica.slots.epoch == route.epoch, "what was served is served"
    project.artifacts.sign(unsigned)
    replica.stage("v1", unsigned)
    assert ran.read_text() == "run"


def test_changed_code_in_storage_is_never_run(project: Project) -> None:
    made, ran = version(project, "v1", 1.0)
    manifest = files.store(project.artifacts, made)
    other, _ = version(project, "evil", 9.0)
    victim = Path(project.artifacts.address(project.artifacts.manifest(manifest)[files.CODE]))
    victim.write_bytes(other[files.CODE])
    project.first("v0")
    with pytest.raises(Corrupt, match="has the hash"):
        Replica(project.settings, "tiny").stage("v1", manifest)
    assert not ran.exists()
