"""`ct reproduce` on a small project that is trained once: what comes out again, whatever became of the working copy, and what is told when it cannot."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from ct import pipeline, settings
from ct.control import report, reproducing, runs
from ct.data import catalog
from ct.registry import files
from ct.store.journal import Journal
from tests.loop import project

NEAR = "import numpy as np\n\n\ndef dear(amount):\n    return np.where(np.isnan(amount), 0.0, amount) > 80\n"
FEATURE = """

@ct.feature("amount")
def is_dear(amount):
    return dear(amount)

"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a function of its own as a feature, and one version."""
    made = project.write(tmp_path_factory.mktemp("audited"), 8000, epochs=3)
    text = (made / "pipeline.py").read_text()
    text = text.replace("import ct\n", f"import ct\nfrom near import dear\n{FEATURE}", 1)
    (made / "pipeline.py").write_text(text.replace('ct.category("country"),', 'ct.category("country"), is_dear,'))
    (made / "near.py").write_text(NEAR)
    project.ct(made, "ingest", "orders", str(project.shard_path(made, 0)))
    project.ct(made, "train")
    return made


def recorded(folder: Path) -> runs.Run:
    (run,) = runs.all_runs(Journal(settings.load(folder).database), "late-orders")
    return run


def test_it_comes_out_identical_whatever_became_of_the_working_copy(folder: Path) -> None:
    (folder / "near.py").write_text(NEAR.replace("80", "20"))
    try:
        done = project.ct(folder, "reproduce", "v1", "--json", check=False)
    finally:
        (folder / "near.py").write_text(NEAR)
    assert done.returncode == 0, done.stdout + done.stderr
    answer = json.loads(done.stdout)
    assert answer["outcome"] == "identical"
    assert answer["differs"] == answer["contract"] == []
    assert all(answer["files"].values())
    assert set(answer["files"]) == set(files.NAMES)
    assert answer["notes"] == ["today's code differs from the recorded one, which was run"]
    journal = Journal(settings.load(folder).database)
    (event,) = journal.read("reproduced/late-orders")
    assert event.type == "Reproduced"
    assert (event.data["version"], event.data["outcome"]) == ("v1", "identical")
    assert [run.id for run in runs.all_runs(journal, "late-orders")] == [recorded(folder).id], "nothing is registered"
    assert not list((settings.load(folder).home / "work").glob("reproduce-*")), "nothing of it stays"


def test_a_changed_shard_is_named_and_nothing_is_trained(folder: Path) -> None:
    place = settings.load(folder)
    (shard,) = catalog.published(Journal(place.database), "orders")
    file = Path(shard.path)
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + b"\x00")
    try:
        done = project.ct(folder, "reproduce", "v1", check=False)
    finally:
        file.write_bytes(whole)
    assert done.returncode == 4
    assert "diverged" in done.stdout
    assert f"shard {shard.shard} of orders" in done.stdout


def test_rows_that_were_erased_are_named_and_nothing_is_trained(tmp_path: Path) -> None:
    copy = project.write(tmp_path / "copy", 8000, epochs=1)
    project.ct(copy, "ingest", "orders", str(project.shard_path(copy, 0)))
    project.ct(copy, "train")
    project.ct(copy, "erase", "orders", "o-0-5", "--apply")
    done = project.ct(copy, "reproduce", "v1", "--json", check=False)
    assert done.returncode == 4, done.stdout + done.stderr
    (differs,) = json.loads(done.stdout)["differs"]
    assert (differs["what"], differs["found"]) == ("shard orders-0 of orders", "rows were erased, or have expired")
    here = report.place(settings.load(copy), pipeline.load(str(copy / "pipeline.py")))
    (first,) = runs.all_runs(here.journal, "late-orders")
    inputs = {name: getattr(first, name) for name in ("shards", "snapshots", "until", "params", "seed", "code", "pipeline")}
    second = runs.start(here.journal, "late-orders", cause="again", inputs=inputs)
    assert reproducing._shards(here, second) == [], "what was erased before it began was never its own"


def test_an_unknown_version_is_refused(folder: Path) -> None:
    done = project.ct(folder, "reproduce", "v9", check=False)
    assert done.returncode == 1
    assert "has no version 'v9'" in done.stderr
    assert project.ct(folder, "reproduce", "v1", "--dry-run").stdout.startswith("would train v1")


RUN: Any = runs.Run(
    id="run-1", cause="", shards={}, snapshots={}, until=0, params={}, seed=7, code="c", pipeline="p", started=None,  # type: ignore[arg-type]
    facts={"ct": "1", "features": "f", "training_set": "t", "weights": "w", "contract": {"torch": "2.13", "cpu": "avx2", "id": "x"}},
)  # fmt: skip
FOUND = {"ct": "1", "pipeline": "p", "features": "f", "training set": "t", "weights": "w", "contract": RUN.facts["contract"]}


def made(weight: float = 1.0, score: float = 0.5) -> dict[str, bytes]:
    golden = json.dumps({"features": {"x": [1.0]}, "score": [score]}).encode()
    return {files.WEIGHTS: save({"a": np.array([weight, 2.0], np.float32)}), files.GOLDEN: golden}


def test_the_same_weights_are_identical() -> None:
    answer = reproducing.compared("v1", RUN, made(), FOUND, made())
    assert (answer.outcome, answer.exit_code, answer.gaps["weights"]) == ("identical", 0, 0.0)


def test_another_contract_is_named_and_measured() -> None:
    found = FOUND | {"weights": "u", "contract": {"torch": "2.14", "cpu": "avx2", "id": "y"}}
    near = reproducing.compared("v1", RUN, made(), found, made(1.0, 0.501))
    assert (near.outcome, near.exit_code) == ("within tolerance", 3)
    assert [(d.what, d.recorded, d.found) for d in near.contract] == [("torch", "2.13", "2.14")]
    assert near.gaps["scores"] == pytest.approx(0.001)
    far = reproducing.compared("v1", RUN, made(), found, made(1.5, 0.6))
    assert (far.outcome, far.exit_code) == ("diverged", 4)
    assert far.gaps["weights"] == pytest.approx(0.5)
    assert far.gaps["weights_relative"] == pytest.approx(0.25)


@pytest.mark.parametrize("name", ["pipeline", "features", "training set"])
def test_the_input_that_diverged_is_named(name: str) -> None:
    answer = reproducing.compared("v1", RUN, made(), FOUND | {"weights": "u", name: "other"}, made(1.1))
    assert answer.outcome == "diverged"
    assert [(d.what, d.found) for d in answer.differs] == [(name, "other")]


def test_other_weights_from_equal_inputs_are_told_as_what_they_are() -> None:
    answer = reproducing.compared("v1", RUN, made(), FOUND | {"weights": "u"}, made(1.1))
    assert answer.outcome == "diverged"
    assert [d.what for d in answer.differs] == ["nothing that is recorded"]


def test_another_ct_is_named_and_measured() -> None:
    near = reproducing.compared("v1", RUN, made(), FOUND | {"weights": "u", "ct": "2"}, made(1.0, 0.501))
    assert (near.outcome, [item.what for item in near.contract]) == ("within tolerance", ["ct"])


def test_weights_of_other_shapes_have_no_difference_to_measure() -> None:
    other = made() | {files.WEIGHTS: save({"a": np.zeros(3, np.float32)})}
    found = FOUND | {"weights": "u", "contract": {}}
    answer = reproducing.compared("v1", replace(RUN), made(), found, other)
    assert (answer.outcome, dict(answer.gaps)) == ("diverged", {})
