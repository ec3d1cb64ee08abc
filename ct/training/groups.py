"""Groups of Ray Train workers. Each is one TorchTrainer.fit whose workers take jobs from a desk until it closes: a group of a fixed number
is kept for the next run, an elastic one or one on GPUs takes a single job. Lives in the warm process.

A worker that dies restarts the group, and the job goes on from its checkpoint. An error of the user's module ends the job at once.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import threading
import traceback
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from ct.errors import CtError, TrainingFailed
from ct.settings import Workers
from ct.training.code import forget_changed_modules, users
from ct.training.determinism import ENVIRONMENT

MAX_FAILURES = 3
COLLECTIVE_TIMEOUT_S = 300
KEEP_S = 600.0
SHARE = 0.01
_TEXT = b"text:"
_LOST = ("gloo", "NCCL", "Connection", "connection", "timed out", "Timed out")


class Desk:
    """An actor between the one who has jobs and the group that does them, all as bytes. Whatever a worker says of an attempt that is over
    counts for nothing."""

    def __init__(self, limit: int, keep_s: float) -> None:
        self._limit, self._keep_s = limit, keep_s
        self._number, self._job, self._ended = 0, b"", True
        self._answer: tuple[bytes, bytes] = (b"", b"")
        self._takes: dict[int, int] = {}
        self._trouble, self._closed = "", False
        self._news = asyncio.Condition()

    async def give(self, job: bytes) -> int:
        """Put down the next job. Returns its number, 0 when the desk is closed."""
        async with self._news:
            if self._closed:
                return 0
            self._number, self._job, self._ended = self._number + 1, job, False
            self._answer, self._takes, self._trouble = (b"", b""), {}, ""
            self._news.notify_all()
            return self._number

    async def take(self, rank: int, after: int) -> tuple[int, int, bytes] | None:
        """Wait for a job later than `after` that has not ended: its number, which attempt of this worker it is, the job. None: go home."""
        async with self._news:
            while True:
                if self._closed and self._ended:
                    return None
                if self._number <= after or self._ended:
                    await self._wait()
                    continue
                self._takes[rank] = attempt = self._takes.get(rank, 0) + 1
                if not self._limit or attempt <= self._limit + 1:
                    return self._number, attempt, self._job
                self._end(
                    b"", _TEXT + f"its workers were lost {attempt - 1} times{self._trouble and ': ' + self._trouble}".encode()
                )

    async def _wait(self) -> None:
        """For news, and when there are none for long and nothing is to be done, close."""
        try:
            await asyncio.wait_for(self._news.wait(), self._keep_s)
        except TimeoutError:
            if self._ended:
                self._closed = True
                self._news.notify_all()

    def _end(self, outcome: bytes, error: bytes) -> None:
        self._ended, self._answer, self._job = True, (outcome, error), b""
        self._news.notify_all()

    async def done(self, number: int, rank: int, attempt: int, outcome: bytes) -> None:
        """The job's outcome."""
        await self._said(number, rank, attempt, outcome, b"")

    async def failed(self, number: int, rank: int, attempt: int, error: bytes) -> None:
        """An error that would come again."""
        await self._said(number, rank, attempt, b"", error)

    async def _said(self, number: int, rank: int, attempt: int, outcome: bytes, error: bytes) -> None:
        async with self._news:
            if number == self._number and not self._ended and self._takes.get(rank) == attempt:
                self._end(outcome, error)

    async def trouble(self, text: str) -> None:
        """What a worker met that may not come again."""
        self._trouble = text

    async def answer(self, number: int) -> tuple[bytes, bytes]:
        """Wait for a job's outcome and error, one of them empty. An error is a pickle, or a text after _TEXT."""
        async with self._news:
            await self._news.wait_for(lambda: self._ended or self._number != number)
            return self._answer

    async def close(self) -> None:
        """No more jobs."""
        async with self._news:
            self._closed = True
            if not self._ended:
                self._end(b"", _TEXT + b"it was given up")
            self._news.notify_all()


@dataclass
class Crew:
    """A TorchTrainer.fit under way in a thread, and its desk."""

    workers: Workers
    gpu: bool
    desk: Any
    thread: threading.Thread
    faults: list[BaseException] = field(default_factory=list)

    @staticmethod
    def hired(workers: Workers, gpu: bool, *, kept: bool) -> Crew:
        """Begin to start a group, without waiting for it."""
        import ray

        desk = ray.remote(Desk).options(num_cpus=0, max_concurrency=1000).remote(MAX_FAILURES if kept else 0, KEEP_S)
        crew = Crew(workers, gpu, desk, threading.Thread())
        crew.thread = threading.Thread(target=crew._fit, args=(kept,), name="crew", daemon=True)
        crew.thread.start()
        return crew

    def _fit(self, kept: bool) -> None:
        home = _home()
        try:
            _trainer(self, home, kept).fit()
        except BaseException as error:  # told to whoever waits for the desk
            self.faults.append(error)
        finally:
            shutil.rmtree(home, ignore_errors=True)

    def do(self, job: Any) -> Any:
        """A job's outcome. Raises what ended it, and LookupError when the group has gone home, or its desk was lost."""
        import ray

        try:
            outcome, error = self._answer(job)
        except ray.exceptions.RayActorError:
            raise LookupError("the group's desk was lost") from None
        if outcome:
            return ray.cloudpickle.loads(outcome)
        if error.startswith(_TEXT):
            raise failed(error.removeprefix(_TEXT).decode())
        raise ray.cloudpickle.loads(error)

    def _answer(self, job: Any) -> tuple[bytes, bytes]:
        import ray

        number = ray.get(self.desk.give.remote(ray.cloudpickle.dumps(job)))
        if not number:
            raise LookupError("the group has gone home")
        waiting = self.desk.answer.remote(number)
        while not ray.wait([waiting], timeout=0.5)[0]:
            if not self.thread.is_alive():
                if self.faults:
                    raise told(cause(self.faults[0])) from None
                raise LookupError("the group has gone home")
        answer: tuple[bytes, bytes] = ray.get(waiting)
        return answer

    def dismiss(self) -> None:
        """Send the group home. Without its desk it goes by itself."""
        import ray

        with suppress(ray.exceptions.RayActorError):
            ray.get(self.desk.close.remote())


def do(job: Any, workers: Workers, gpu: bool) -> Any:
    """A job's outcome from a group of `workers`: the kept one where there is one, else a new one."""
    if gpu or not isinstance(workers, int):
        crew = Crew.hired(workers, gpu, kept=False)
        try:
            return crew.do(job)
        except LookupError as error:
            raise failed(str(error)) from None
        finally:
            crew.dismiss()
    for _ in range(3):
        try:
            return kept(workers).do(job)
        except LookupError:
            _crews().clear()
    raise failed("no group of workers could be kept")


def alone(job: Any) -> Any:
    """A job's outcome from Ray Train's local mode: the same loop in this process."""
    from ray import train as ray_train
    from ray.train import torch as ray_torch

    v2: Any = ray_train
    torch_v2: Any = ray_torch
    trainer = torch_v2.TorchTrainer(_alone, train_loop_config={"job": job}, scaling_config=v2.ScalingConfig(num_workers=0))
    return trainer.fit().return_value


def _alone(config: dict[str, Any]) -> Any:
    from ct.training import determinism, loop

    return loop.run(config["job"], determinism.Group())


def kept(workers: int) -> Crew:
    """The kept group of `workers`; another one is sent home for it."""
    crews = _crews()
    for number, crew in list(crews.items()):
        if number != workers or not crew.thread.is_alive():
            crew.dismiss()
            del crews[number]
    if workers not in crews:
        crews[workers] = Crew.hired(workers, False, kept=True)
    return crews[workers]


@cache  # one for the process, made when it is first asked for
def _crews() -> dict[int, Crew]:
    return {}


def _home() -> Path:
    """A new folder for the files that Ray keeps of a group. Those of processes that were killed go: nobody else removes them."""
    for left in Path(tempfile.gettempdir()).glob("ct-train-*-*"):
        owner = left.name.split("-")[2]
        try:
            if owner.isdigit():
                os.kill(int(owner), 0)
        except ProcessLookupError:
            shutil.rmtree(left, ignore_errors=True)
        except OSError:  # it is another user's, and lives
            continue
    return Path(tempfile.mkdtemp(prefix=f"ct-train-{os.getpid()}-"))


def failed(found: str) -> TrainingFailed:
    """A training that stopped for no reason of the data."""
    return TrainingFailed(
        f"training stopped: {found}", "a run to its end", "mend the cause and call it again; it goes on from its checkpoint"
    )


def _trainer(crew: Crew, home: Path, kept: bool) -> Any:
    from ray import train as ray_train
    from ray.train import torch as ray_torch

    # Ray's annotations are still those of Train v1; what runs is v2.
    v2: Any = ray_train
    torch_v2: Any = ray_torch
    # A kept group idles most of the time and must not keep others from their CPUs. A share too small to matter spreads it over machines.
    resources = {"CPU": SHARE} if kept else None

    class Trainer(torch_v2.TorchTrainer):  # type: ignore[misc]
        """Without the actor that outlives the controller to remove its placement group: when a driver is killed, or ends while its group
        is kept, that actor stays for good, a process for each training. A kept group reserves nothing that would have to be freed."""

        def _create_default_callbacks(self) -> list[Any]:
            made = super()._create_default_callbacks()
            return [one for one in made if not (kept and type(one).__name__ == "PlacementGroupCleanerCallback")]

    return Trainer(
        serve,
        train_loop_config={"desk": crew.desk, "gpu": crew.gpu},
        scaling_config=v2.ScalingConfig(
            num_workers=crew.workers, use_gpu=crew.gpu, resources_per_worker=resources, placement_strategy="SPREAD"
        ),
        torch_config=torch_v2.TorchConfig(backend="nccl" if crew.gpu else "gloo", timeout_s=COLLECTIVE_TIMEOUT_S),
        run_config=v2.RunConfig(
            name=home.name,
            storage_path=str(home),
            failure_config=v2.FailureConfig(max_failures=-1 if kept else MAX_FAILURES),
            worker_runtime_env={"env_vars": dict(ENVIRONMENT)},
        ),
    )


def serve(config: dict[str, Any]) -> None:
    """Runs in each worker of a group: does one job after the other."""
    import ray
    import ray.train
    from ray import cloudpickle

    from ct.training import determinism, loop

    context = ray.train.get_context()
    rank, desk = context.get_world_rank(), config["desk"]
    group = determinism.Group(rank, context.get_world_size(), "cuda" if config["gpu"] else "cpu")
    number = 0
    while (taken := _taken(desk, rank, number)) is not None:
        number, attempt, job = taken
        forget_changed_modules()
        try:
            outcome = loop.run(cloudpickle.loads(job), group)
        except Exception as error:
            if _comes_again(error):
                ray.get(desk.failed.remote(number, rank, attempt, cloudpickle.dumps(told(error))))
            else:
                ray.get(desk.trouble.remote(f"{type(error).__name__}: {error}"))
            if group.world > 1 or not _comes_again(error):
                raise  # the others wait for this worker in the middle of a step
            continue
        if rank == 0:
            ray.get(desk.done.remote(number, rank, attempt, cloudpickle.dumps(outcome)))


def _taken(desk: Any, rank: int, after: int) -> tuple[int, int, bytes] | None:
    """The desk's next job. None: go home, as without a desk, which no restart of the group would bring back."""
    import ray

    try:
        taken: tuple[int, int, bytes] | None = ray.get(desk.take.remote(rank, after))
    except ray.exceptions.RayActorError:
        return None
    return taken


def _comes_again(error: Exception) -> bool:
    """Whether another attempt would meet the same error. What disks, networks and vanished workers do may not come again."""
    if isinstance(error, CtError):
        return isinstance(error, TrainingFailed)
    from torch.distributed import DistError

    lost = isinstance(error, RuntimeError) and any(word in str(error) for word in _LOST)
    return not (lost or isinstance(error, (OSError, MemoryError, DistError)))


def told(error: BaseException) -> CtError:
    """An error as one of `ct`: its own as it is, anything else as a failed training, with the last line of the user's that it came through."""
    if isinstance(error, CtError):
        return error
    own = Path(__file__).parents[1]
    frames = ((Path(frame.filename), frame.lineno) for frame in traceback.extract_tb(error.__traceback__))
    lines = [f" ({file.name}:{line})" for file, line in frames if users(file, "") and not file.is_relative_to(own)]
    return failed(f"{type(error).__name__}: {error}{lines[-1] if lines else ''}")


def cause(error: BaseException) -> BaseException:
    """What stopped a run, from inside Ray's wrappings."""
    for _ in range(10):
        failures = getattr(error, "worker_failures", None)
        inner = next(iter(failures.values())) if failures else getattr(error, "cause", None) or error.__cause__
        if isinstance(error, CtError) or inner is None:
            break
        error = inner
    return error
