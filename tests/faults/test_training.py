"""Training under faults: a worker or the driver killed (F9, F10), one that hangs (F11), torn checkpoints (F12), lost runs (F13), and a kill or
a failing disk at each durable step. Real processes, real signals, real Ray; the bytes are always those of an undisturbed run.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ct.errors import TrainingFailed
from ct.features.encode import Shape
from ct.training import checkpoint, trainer, warm
from ct.training.data import TrainingSet
from ct.training.declare import Torch
from delay_model import DelayNet

SCRIPT = Path(__file__).with_name("breaking_training.py")
EACH = os.environ.get("CT_FAULTS") == "all"
MODEL = Torch(DelayNet, epochs=6, batch=512, lr=3e-3, seed=3)
STEPS = 30


def rows(count: int, numbers: int = 8, chance: int = 5) -> TrainingSet:
    random = np.random.default_rng(chance)
    numeric = random.normal(size=(count, numbers)).astype(np.float32)
    category = np.stack([random.integers(0, size, count) for size in (16, 300)], axis=1)
    label = (random.random(count) < 1 / (1 + np.exp(-numeric[:, 0]))).astype(np.float32)
    return TrainingSet(numeric, category, label, Shape(numbers, (16, 300)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rows(512 * STEPS).save(tmp_path_factory.mktemp("set"))


@pytest.fixture(scope="module")
def undisturbed(folder: Path, tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> trainer.Trained:
    return trainer.train(folder, MODEL, run="undisturbed", storage=tmp_path_factory.mktemp("storage"))


class Hunter:
    """Sends a signal to one of a run's workers as soon as all have made `at` steps. `hit` are the beats it saw then."""

    def __init__(self, home: Path, at: int, sent: signal.Signals, choose: Callable[[list[Any]], Any]) -> None:
        self.hit: list[Any] = []
        self._home, self._at, self._sent, self._choose = home, at, sent, choose
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._hunt)

    def _hunt(self) -> None:
        while not self._over.wait(0.005) and not self.hit:
            try:
                beats = [json.loads(path.read_text()) for path in (self._home / "beats").glob("[!.]*.json")]
            except (OSError, ValueError):
                continue
            if beats and min(beat["step"] for beat in beats) >= self._at:
                chosen = self._choose(beats)
                os.kill(chosen["pid"], self._sent)
                self.hit.append(chosen)

    def __enter__(self) -> Hunter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def same(made: trainer.Trained, wanted: trainer.Trained) -> None:
    assert made.digest == wanted.digest
    assert made.history == wanted.history


@pytest.mark.parametrize("workers", [2, (1, 2)])
def test_a_killed_worker_costs_no_more_than_the_steps_since_a_checkpoint(
    folder: Path, tmp_path: Path, undisturbed: trainer.Trained, workers: Any
) -> None:
    chance = random.Random(1)
    with Hunter(tmp_path / "hit", 37, signal.SIGKILL, chance.choice) as hunter:
        made = trainer.train(folder, MODEL, workers=workers, run="hit", storage=tmp_path, every_steps=4)
    assert hunter.hit
    assert made.resumed >= hunter.hit[0]["step"] - 8, "the newest one may have been on its way to the disk"
    same(made, undisturbed)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_hanging_worker_is_ended_long_before_ray_would(
    folder: Path, tmp_path: Path, undisturbed: trainer.Trained, workers: int
) -> None:
    begun = time.monotonic()
    with Hunter(tmp_path / "hit", 37, signal.SIGSTOP, lambda beats: beats[-1]) as hunter:
        made = trainer.train(folder, MODEL, workers=workers, run="hit", storage=tmp_path, every_steps=4, hang_s=4)
    assert hunter.hit
    assert time.monotonic() - begun < 400, "Ray waits for 600 s"
    assert any("gave no sign of life for 4 s" in note for note in made.notes)
    assert made.resumed > 0
    same(made, undisturbed)


DRIVER = """
import sys
from pathlib import Path
import ray
from delay_model import DelayNet
from ct.training import trainer
from ct.training.declare import Torch
if __name__ == "__main__":
    ray.init(address=sys.argv[1], namespace="ct", log_to_driver=False)
    model = Torch(DelayNet, epochs=6, batch=512, lr=3e-3, seed=3)
    trainer.train(Path(sys.argv[2]), model, run="killed", storage=Path(sys.argv[3]), every_steps=4, workers=2)
"""


def test_a_killed_driver_is_called_again(folder: Path, tmp_path: Path, undisturbed: trainer.Trained) -> None:
    import ray

    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    address = ray.get_runtime_context().gcs_address
    environment = {**os.environ, "PYTHONPATH": str(Path(sys.modules["delay_model"].__file__ or "").parent)}
    before = living()
    driver = subprocess.Popen([sys.executable, str(script), address, str(folder), str(tmp_path / "storage")], env=environment)
    try:
        wait_for(lambda: list((tmp_path / "storage").glob("killed/checkpoints/*/step-*/manifest.json")), driver)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    until = time.monotonic() + 60
    while left := living() - before:
        assert time.monotonic() < until, f"{left} outlived their driver"
        time.sleep(0.1)
    made = trainer.train(folder, MODEL, run="killed", storage=tmp_path / "storage", workers=2)
    assert made.resumed > 0
    same(made, undisturbed)


def living() -> set[tuple[str, str]]:
    """Every actor of Ray but the one that it keeps for all trainings: its class and id."""
    from ray._private.state import actors

    return {
        (actor["ActorClassName"], name)
        for name, actor in actors().items()
        if actor["State"] != "DEAD" and actor["ActorClassName"] != "_AutoscalingCoordinatorActor"
    }


def wait_for(condition: Callable[[], object], process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, "the driver ended by itself"
        assert time.monotonic() < until
        time.sleep(0.005)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_torn_checkpoint_is_told_and_an_earlier_one_taken(
    folder: Path, tmp_path: Path, undisturbed: trainer.Trained, workers: int
) -> None:
    short = replace(MODEL, epochs=2)
    trainer.train(folder, short, run="torn", storage=tmp_path, every_steps=4)
    newest = max((tmp_path / "torn" / "checkpoints").glob("attempt-*/step-*"), key=lambda path: path.name)
    os.truncate(newest / "state.safetensors", 1_000)
    (tmp_path / "torn" / "checkpoint_manager_snapshot.json").write_text('{"checkpoints": [')  # Ray's own, cut off
    told: list[str] = []
    made = trainer.train(folder, short, run="torn", storage=tmp_path, workers=workers, on_note=told.append)
    assert 0 < made.resumed < 2 * STEPS
    assert any("cannot be used: its tensors have changed" in note for note in made.notes)
    assert set(made.notes) <= set(told)
    again = trainer.train(folder, short, run="anew", storage=tmp_path, checkpoints=False)
    assert made.digest == again.digest
    del undisturbed


def test_a_run_whose_loss_is_no_number_is_diverged(tmp_path: Path, ray_local: None) -> None:
    wild = replace(MODEL, lr=1e30, schedule="constant", epochs=2)
    folder = rows(4_000).save(tmp_path / "set")
    with pytest.raises(TrainingFailed, match="the run diverged at step") as caught:
        trainer.train(folder, wild, run="wild", storage=tmp_path)
    assert caught.value.state == "diverged"


def test_rows_that_hold_no_numbers_are_invalid(tmp_path: Path, ray_local: None) -> None:
    broken = rows(4_000)
    broken.numeric[17, 3] = np.nan
    with pytest.raises(TrainingFailed, match="values that are no numbers") as caught:
        trainer.train(broken.save(tmp_path / "set"), MODEL, run="broken", storage=tmp_path)
    assert caught.value.state == "invalid"
    assert not (tmp_path / "broken").exists(), "nothing was begun"


def test_a_worker_believed_dead_can_write_nothing(tmp_path: Path, broken: Broken) -> None:
    """It is stopped in the middle of its training, another attempt comes to the end, then it wakes."""
    wanted = broken.do(points="")
    process = broken.apart(points=str(tmp_path / "points"))
    until = time.monotonic() + 60
    while not list((tmp_path / "points").glob("*/step-*/manifest.json")):
        assert time.monotonic() < until
        time.sleep(0.001)
    os.kill(process, signal.SIGSTOP)
    made = broken.do(points=str(tmp_path / "points"))
    before = contents(tmp_path / "points")
    os.kill(process, signal.SIGCONT)
    said = broken.ended()
    assert made["hash"] == wanted["hash"]
    assert said["code"] == 1
    assert "was given up" in said["error"]
    assert contents(tmp_path / "points") == before


def contents(folder: Path) -> dict[str, str]:
    """Every checkpoint that counts, and its manifest."""
    found = {}
    for manifest in folder.glob("*/step-*/manifest.json"):
        said = json.loads(manifest.read_text())["body"]
        found[str(manifest.relative_to(folder))] = said["sha256"]
        checkpoint.load(folder, str(manifest.parent.relative_to(folder)), said["key"])
    return found


class Broken:
    """The script that trains in forked processes."""

    def __init__(self, sets: dict[str, str]) -> None:
        self._sets = sets
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        command = [sys.executable, "-W", "ignore", str(SCRIPT)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    def do(self, *, points: str, how: str = "", step: int = 0) -> dict[str, Any]:
        if how == "" and self._waiting:
            return self._other.do(points=points)
        self._ask(points, how, step)
        return self._answer()

    _waiting = False

    def apart(self, *, points: str) -> int:
        """Begin without waiting; its process, which is a child of the script."""
        self._other = Broken(self._sets)
        self._ask(points, "", 0)
        self._waiting = True
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        until = time.monotonic() + 60
        while not (found := children.read_text().split()):
            assert time.monotonic() < until
        return int(found[0])

    def ended(self) -> dict[str, Any]:
        self._waiting = False
        self._other.close()
        return self._answer()

    def _ask(self, points: str, how: str, step: int) -> None:
        assert self._process.stdin
        self._process.stdin.write(json.dumps({**self._sets, "points": points, "how": how, "step": step}) + "\n")
        self._process.stdin.flush()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def broken(tmp_path: Path) -> Iterator[Broken]:
    sets = {"set": rows(64 * 12).save(tmp_path / "set"), "stop": rows(100, chance=6).save(tmp_path / "stop")}
    made = Broken({name: str(path) for name, path in sets.items()})
    yield made
    made.close()


@pytest.mark.parametrize("how", ["kill", "fail"])
def test_killed_or_failing_at_each_durable_step(broken: Broken, tmp_path: Path, how: str) -> None:
    wanted = broken.do(points="")
    hurt, resumed, step = 0, [], 1
    while True:
        points = tmp_path / f"{how}-{step}"
        said = broken.do(points=str(points), how=how, step=step)
        assert said["code"] in ((0, -9) if how == "kill" else (0, 1)), said
        if how == "fail" and said["code"] == 0:  # a checkpoint that could not be written is told, and training goes on
            assert said["hash"] == wanted["hash"]
            if not said["notes"]:
                break
            assert "could not be written" in said["notes"][0]
        elif said["code"] == 0:
            break
        hurt += 1
        contents(points)  # what is there is whole
        again = broken.do(points=str(points))
        assert (again["code"], again["hash"]) == (0, wanted["hash"]), step
        resumed.append(again["resumed"])
        step += 1 if EACH else 11
    assert hurt >= 4
    assert max(resumed) > 12 > min(resumed), "some went on in a later epoch, some from the beginning"


def test_the_warm_process_may_die_too(folder: Path, tmp_path: Path, undisturbed: trainer.Trained) -> None:
    before = warm.call(os.getpid)
    with Hunter(tmp_path / "hit", 37, signal.SIGKILL, lambda beats: {**beats[0], "pid": before}) as hunter:
        made = trainer.train(folder, MODEL, workers=2, run="hit", storage=tmp_path, every_steps=4)
    assert hunter.hit
    assert warm.call(os.getpid) != before
    assert made.resumed > 0
    same(made, undisturbed)
