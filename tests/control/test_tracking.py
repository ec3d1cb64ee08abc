"""wandb hears of a training in a process of its own, which may fail or hang as it likes."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ct.control import runs, sweeps, tracking
from ct.control.place import Place
from ct.registry.versions import Version
from ct.settings import load
from ct.store.artifacts import Artifacts
from ct.store.journal import Journal
from ct.training.search import Leg, Reached
from tests.control import shop

FACTS: dict[str, Any] = {
    "settings": {"lr": 0.01},
    "contract": {"torch": "2.13"},
    "weights": "abc",
    "history": [{"epoch": 0, "loss": 0.7}, {"epoch": 1, "loss": 0.5}],
    "report": {"segments": {"city": {"Oslo": {"auroc": 0.7, "note": "few"}}}},
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("WANDB_MODE", "offline")
    found = load(tmp_path, {})
    return Place(shop.pipeline(), found, Journal(found.database), Artifacts(found.place("artifacts")))


def run_of(place: Place) -> runs.Run:
    inputs = {
        "shards": {"sales": []}, "snapshots": {}, "until": 0, "params": {"epochs": 3}, "seed": 1, "code": "c", "pipeline": "p",
    }  # fmt: skip
    return runs.start(place.journal, "late-sales", cause="test", inputs=inputs)


VERSION = Version("v1", "m" * 64, "run-1", "pass", datetime.now(UTC), {"auroc": 0.7}, ("because",))


def alerts(place: Place) -> list[tuple[str, str]]:
    return [(event.data["tier"], event.data["title"]) for event in place.journal.read("alert/late-sales")]


def test_a_training_becomes_one_offline_run(place: Place) -> None:
    run = run_of(place)
    sweeps.start(place.journal, "late-sales", run.id, asked={})
    leg = Leg(1, {"lr": 0.125}, 3)
    sweeps.reached(place.journal, "late-sales", run.id, leg, Reached(0.6), whole=True, best=1)
    waiting = tracking.tell(place, run, VERSION, FACTS)
    assert waiting is not None
    waiting.join()
    assert alerts(place) == []
    (file,) = (place.settings.home / "wandb").glob("**/*.wandb")
    written = file.read_bytes()
    for text in (b"late-sales", run.id.encode(), b"torch", b"loss", b"auroc", b"verdict"):
        assert text in written
    tables = sorted(path.name.split("_")[0] for path in (place.settings.home / "wandb").glob("**/media/table/*.json"))
    assert tables == ["metrics", "segments", "trials"]
    (trials,) = (place.settings.home / "wandb").glob("**/media/table/trials*.json")
    assert json.loads(trials.read_text())["data"] == [['{"lr": 0.125}', 3, 0.6, "finished"]]


@pytest.mark.parametrize(
    ("fault", "seconds"),
    [("raise RuntimeError('wandb is broken')", 60), ("import time; time.sleep(600)", 4), ("import os; os.abort()", 60)],
)
def test_whatever_it_does_the_training_is_neither_stopped_nor_slowed(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, seconds: int
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "wandb.py").write_text(fault + "\n")
    monkeypatch.setenv("PYTHONPATH", str(broken))
    monkeypatch.setattr(tracking, "SECONDS", seconds)
    begun = time.monotonic()
    waiting = tracking.tell(place, run_of(place), VERSION, FACTS)
    assert time.monotonic() - begun < 5, "it is not waited for"
    assert waiting is not None
    waiting.join(60)
    assert not waiting.is_alive()
    assert alerts(place) == [("INFO", "v1 is not tracked by wandb")]


def test_a_folder_that_cannot_be_written_is_an_alert(place: Place) -> None:
    place.settings.home.mkdir(exist_ok=True, parents=True)
    (place.settings.home / "wandb").write_text("in the way")
    assert tracking.tell(place, run_of(place), VERSION, FACTS) is None
    assert alerts(place) == [("INFO", "v1 is not tracked by wandb")]


def test_off_is_off(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    silent = Place(place.pipeline, load(place.settings.root, {}, tracking="off"), place.journal, place.artifacts)
    assert tracking.tell(silent, run_of(place), VERSION, FACTS) is None
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert tracking.tell(place, run_of(place), VERSION, FACTS) is None
    assert not (place.settings.home / "wandb").exists()


def test_it_sees_no_private_key(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wandb.py").write_text(
        "import os\nprint('key', os.environ.get('CT_SIGNING_KEY'), flush=True)\nraise SystemExit(3)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("CT_SIGNING_KEY", "not-for-it")
    waiting = tracking.tell(place, run_of(place), VERSION, FACTS)
    assert waiting is not None
    waiting.join()
    assert "key None" in (place.settings.home / "wandb" / tracking.LOG).read_text()
