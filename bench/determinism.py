"""Do a model's bytes depend on who trained it? Each trial trains with a random number of workers, kills a random one (SIGKILL) at a random step,
goes on with another number, perhaps twice, and compares weights and history with one undisturbed worker's. `--trials N`; one in ten runs on
Ray Train, the others as plain processes over gloo. `--quick` takes 8 trials, one of
them on Ray; `--plain` leaves Ray out.
"""

from __future__ import annotations

import json
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[0] = str(ROOT / "bench" / "parts")  # not this folder, whose profile.py would stand for the one of Python

WORKERS = (1, 2, 3, 4, 8)
ROWS, KILLS = 6_000, 2


def main() -> None:
    """Measure and print; the last line is the result as JSON."""
    from ct.training.determinism import ENVIRONMENT

    if any(os.environ.get(name) != value for name, value in ENVIRONMENT.items()):  # must be set before torch is imported
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ENVIRONMENT)
    quick = "--quick" in sys.argv
    trials = int(sys.argv[sys.argv.index("--trials") + 1]) if "--trials" in sys.argv else 8 if quick else 50
    home = Path(tempfile.mkdtemp(prefix="ctd", dir="/tmp"))
    try:
        print(json.dumps(_measure(home, trials, 0 if "--plain" in sys.argv else max(1, trials // 10))))
    finally:
        shutil.rmtree(home, ignore_errors=True)


@dataclass(frozen=True)
class Case:
    """A model and its rows, and what one undisturbed worker makes of them."""

    name: str
    model: Any
    train: Path
    stop: Path
    steps: int
    wanted: str = ""


def _measure(home: Path, trials: int, on_ray: int) -> dict[str, Any]:
    # before the forks, so that each has them at once
    from ct import models  # noqa: F401
    from ct.training import loop  # noqa: F401

    cases = []
    for case in _cases(home):
        begun = time.monotonic()
        made = _group(case, home / case.name, 1, kill=None)
        cases.append(replace(case, wanted=str(made)))
        print(f"{case.name}: {case.steps} steps, undisturbed {str(made)[:16]} in {time.monotonic() - begun:.1f} s", flush=True)
    agreed, kills = 0, 0
    for trial in range(trials - on_ray):
        chance = random.Random(trial)
        agrees, killed, said = _plain(cases[trial % len(cases)], home / str(trial), chance)
        agreed, kills = agreed + agrees, kills + killed
        print(f"trial {trial + 1}: {said}", flush=True)
        shutil.rmtree(home / str(trial), ignore_errors=True)
    for number, (agrees, killed, said) in enumerate(_trials_on_ray(cases, home, on_ray) if on_ray else ()):
        agreed, kills = agreed + agrees, kills + killed
        print(f"trial {trials - on_ray + number + 1}, on Ray: {said}", flush=True)
    return {
        "bench": "determinism",
        "figures": {"agreed_fraction": agreed / trials, "trials": trials, "agreed": agreed, "kills": kills, "on_ray": on_ray},
        "goals": {"agreed_fraction": [">=", 1.0], "trials": [">=", 50]},
        "conditions": {
            "models": [case.name for case in cases],
            "rows": ROWS,
            "workers": list(WORKERS),
            "cores": os.cpu_count(),
            "versions": {"python": platform.python_version()} | {name: version(name) for name in ("torch", "ray", "numpy")},
        },
    }


def _cases(home: Path) -> list[Case]:
    """Tables by the sparse path, clipping and averaged weights; batch norm, dropout, SGD and early stopping; TabM as it is by default."""
    import numpy as np
    import torch
    from normed import Normed  # type: ignore[import-not-found]  # in a folder of its own

    import ct
    from ct.features.encode import Shape
    from ct.training.data import TrainingSet

    chance = np.random.default_rng(11)
    numeric = chance.normal(size=(ROWS, 8)).astype(np.float32)
    cardinalities = (7, 40, 900)
    category = np.stack([chance.integers(0, size, ROWS) for size in cardinalities], axis=1)
    odds = numeric[:, 0] - numeric[:, 1] * (category[:, 0] > 3)
    label = (chance.random(ROWS) < 1 / (1 + np.exp(-odds))).astype(np.float32)
    cut, shape = ROWS * 5 // 6, Shape(8, cardinalities)
    train = TrainingSet(numeric[:cut], category[:cut], label[:cut], shape).save(home / "train")
    stop = TrainingSet(numeric[cut:], category[cut:], label[cut:], shape).save(home / "stop")
    plain = ct.Torch("MLP", epochs=2, batch=256, seed=5)
    sgd = partial(torch.optim.SGD, momentum=0.9)
    models = {
        "mlp": replace(plain, clip=0.5, average=0.95, options={"width": 48, "depth": 2}),
        "norm": replace(plain, model=Normed, optimizer=sgd, lr=0.05, schedule="linear", patience=2, epochs=3),
        "tabm": replace(plain, model="TabM", options={"width": 32, "depth": 2, "members": 4}),
    }
    return [Case(name, model, train, stop, cut // 256 * model.epochs) for name, model in models.items()]


def _plain(case: Case, folder: Path, chance: random.Random) -> tuple[bool, int, str]:
    """Train in groups of processes, each but the last killed in the middle. Whether it agrees, how many kills, and a line about it."""
    said, killed = [], 0
    made: str | None = None
    for _ in range(chance.randint(1, KILLS)):
        workers = chance.choice(WORKERS)
        kill = chance.randrange(workers), chance.randrange(case.steps)
        made = _group(case, folder, workers, kill=kill, every=chance.randint(2, 9))
        killed += made is None
        said.append(f"{workers} workers, rank {kill[0]} killed at step {kill[1]}" if made is None else f"{workers} workers")
        if made is not None:  # stopped early, or gone on beyond that step already
            break
    if made is None:
        workers = chance.choice(WORKERS)
        made = _group(case, folder, workers, kill=None)
        said.append(f"{workers} workers")
    agrees = made == case.wanted
    return agrees, killed, f"{case.name}: {'; '.join(said)}: {'agrees' if agrees else 'DIFFERS'}"


def _group(case: Case, folder: Path, workers: int, *, kill: tuple[int, int] | None, every: int = 0) -> str | None:
    """What a group of forked processes makes, None when one was killed: the others are killed too, as Ray would."""
    folder.mkdir(parents=True, exist_ok=True)
    meeting, answer = folder / f"meeting-{time.monotonic_ns()}", folder / "answer"
    answer.unlink(missing_ok=True)
    children = []
    for rank in range(workers):
        child = os.fork()
        if child == 0:
            try:
                _worker(case, folder, meeting, answer, rank, workers, kill, every)
                os._exit(0)
            except BaseException as error:
                if kill is None:  # else it lost the one that was killed
                    print(f"rank {rank}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                os._exit(1)
        children.append(child)
    codes = []
    while children:
        child, status = os.waitpid(-1, 0)
        children.remove(child)
        codes.append(os.waitstatus_to_exitcode(status))
        if codes[-1]:
            for other in children:
                os.kill(other, signal.SIGKILL)
    if any(codes):
        if -signal.SIGKILL not in codes or kill is None:
            raise SystemExit(f"{case.name}: a group ended with {codes}")
        return None
    return answer.read_text()


def _worker(
    case: Case, folder: Path, meeting: Path, answer: Path, rank: int, workers: int, kill: tuple[int, int] | None, every: int
) -> None:
    from ct.training import loop, trainer
    from ct.training.determinism import Group
    from ct.training.learner import Learner

    if kill and kill[0] == rank:
        _kill_at(Learner, kill[1])
    if workers > 1:
        import torch.distributed as dist

        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=workers)
    job = replace(
        trainer.job_of(case.train, case.model, stop=case.stop), checkpoints=str(folder / "checkpoints"), every_steps=every
    )
    outcome = loop.run(job, Group(rank, workers))
    if outcome.fault:
        raise RuntimeError(outcome.fault)
    if rank == 0:
        answer.write_text(_digest(outcome.weights, outcome.history))


def _kill_at(learner: Any, at: int) -> None:
    """Let this process be killed in the middle of a step."""
    plain: Callable[..., Any] = learner._shard

    def shard(self: Any, *args: Any) -> Any:
        if self.step_now == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(self, *args)

    step = learner.step

    def stepping(self: Any, number: int, *args: Any) -> Any:
        self.step_now = number
        return step(self, number, *args)

    learner._shard, learner.step = shard, stepping


def _digest(weights: Any, history: Any) -> str:
    from ct.ids import canonical, sha256
    from ct.training import checkpoint

    return sha256(canonical([checkpoint.digest(weights), list(history)]))


def _trials_on_ray(cases: list[Case], home: Path, trials: int) -> Any:
    """The same with Ray Train's groups: a worker of a kept or an elastic group, or the warm process, is killed as soon as it has made a step."""
    import ray

    ray.init(
        num_cpus=2, include_dashboard=False, object_store_memory=200_000_000, log_to_driver=False, _temp_dir=str(home / "ray")
    )
    try:
        for trial in range(trials):
            yield _on_ray(
                cases[trial % len(cases)], home / f"ray-{trial}", random.Random(1_000 + trial), (2, (1, 2), 0)[trial % 3]
            )
    finally:
        ray.shutdown()


def _on_ray(case: Case, folder: Path, chance: random.Random, workers: Any) -> tuple[bool, int, str]:
    import threading

    from ct.training import trainer

    at, over, killed = chance.randrange(case.steps // 2), threading.Event(), threading.Event()

    def hunt() -> None:
        while not over.wait(0.005) and not killed.is_set():
            beats = [json.loads(path.read_text()) for path in sorted((folder / "run" / "beats").glob("[!.]*.json"))]
            if beats and min(beat["step"] for beat in beats) >= at:
                os.kill(chance.choice(beats)["pid"], signal.SIGKILL)
                killed.set()

    hunter = threading.Thread(target=hunt)
    hunter.start()
    try:
        made = trainer.train(case.train, case.model, stop=case.stop, workers=workers, run="run", storage=folder, every_steps=3)
    finally:
        over.set()
        hunter.join()
    agrees = _digest(made.weights, made.history) == case.wanted
    how = f"one killed, gone on from step {made.resumed}" if killed.is_set() else "none killed, it was over too soon"
    return agrees, killed.is_set(), f"{case.name}: workers {workers}, {how}: {'agrees' if agrees else 'DIFFERS'}"


if __name__ == "__main__":
    main()
