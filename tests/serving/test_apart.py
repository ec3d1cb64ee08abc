"""A version apart as a replica of the endpoint asks it: nobody's thread waits for it, it is bounded, and a fault of a row is that row's alone.

The application's process is a real ArmReplica; only Serve's handle between the two is played. tests/faults/test_serving_alone.py has the real one.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from test_answering import Flags
from tiny import ROW, Project

from ct.data import predictions
from ct.registry import routes
from ct.registry.routes import WHOLE, Arm
from ct.serving import answering, isolated, replica
from ct.serving.isolated import ArmArgs, ArmReplica, RemotePredictor
from ct.serving.replica import Replica

APP = "tiny--apart"


@dataclass
class Application:
    """What Serve's handle reaches: one process, which may be dead or slow, or die with the next `dying` calls. `sizes` are the rows of each."""

    process: ArmReplica
    seconds: float = 0.002
    dead: bool = False
    dying: int = 0
    sizes: list[int] = field(default_factory=list)
    most: int = 0
    at_once: int = 0
    cancelled: int = 0

    def handle(self, name: str) -> Application:
        """As serve.get_app_handle: it asks the controller, which takes a moment and must not be done on an event loop."""
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()
        assert name == APP
        time.sleep(0.05)
        return self

    def __getattr__(self, method: str) -> Any:
        return Method(self, getattr(self.process, method))


@dataclass
class Method:
    app: Application
    made: Callable[..., Awaitable[Any]]

    def remote(self, *args: Any) -> Call:
        return Call(asyncio.ensure_future(self._go(*args)))

    async def _go(self, *args: Any) -> Any:
        if self.app.dead:
            raise ConnectionError("the process has died")
        if self.app.dying:
            self.app.dying -= 1
            await asyncio.sleep(self.app.seconds)
            raise ConnectionError("the process dies")
        if len(args) == 3:
            self.app.sizes.append(len(args[1]))
        self.app.at_once += 1
        self.app.most = max(self.app.most, self.app.at_once)
        try:
            await asyncio.sleep(self.app.seconds)
            return await self.made(*args)
        except asyncio.CancelledError:
            self.app.cancelled += 1
            raise
        finally:
            self.app.at_once -= 1


@dataclass
class Call:
    task: asyncio.Future[Any]

    def __await__(self) -> Any:
        return self.task.__await__()

    def cancel(self) -> None:
        self.task.cancel()


def row(at: int) -> dict[str, Any]:
    return {**ROW, "trip": f"t{at}", "distance": 10.0 * at, "line": "AB"[at % 2]}


@pytest.fixture
def application(project: Project, monkeypatch: pytest.MonkeyPatch) -> Application:
    arm = project.version("apart", 1.0)
    made = Application(
        ArmReplica(ArmArgs(root=str(project.settings.root), version="apart", manifest=arm.manifest).model_dump())
    )
    monkeypatch.setattr(isolated.serve, "get_app_handle", made.handle)
    monkeypatch.setattr(replica, "POLL_SECONDS", 0.05)
    return made


def run(project: Project, act: Callable[[Replica], Awaitable[Any]]) -> Any:
    """`act` with a replica that follows the project's route."""

    async def go() -> Any:
        loop = asyncio.get_running_loop()
        made = Replica(project.settings, "tiny", reach=lambda app, files: RemotePredictor.reach(app, files, loop))
        following = asyncio.create_task(made.keep_converging())
        try:
            route = routes.current(project.journal, "tiny")
            assert route is not None
            async with asyncio.timeout(10):
                while made.slots.live is None or made.slots.live.route != route:
                    await asyncio.sleep(0.02)
            return await act(made)
        finally:
            following.cancel()

    return asyncio.run(go())


def apart(project: Project, **options: Any) -> Arm:
    return replace(project.version("apart", 1.0, **options), app=APP)


def logged(project: Project) -> list[dict[str, Any]]:
    return [record for record in predictions.read(project.settings.inbox)[0] if record["kind"] == "prediction"]


def test_as_stable_it_answers_a_burst_that_comes_before_its_handle(project: Project, application: Application) -> None:
    """As many at once as a replica works on, when no handle is known, as after its process has died: they waited in the very threads that
    finding the handle needs, and all failed after five seconds."""
    project.put(routes.first("tiny", apart(project)))

    async def act(made: Replica) -> tuple[list[Any], list[Any], float]:
        made.answering.flags = Flags(batching=False)  # as a version with code of its own is asked, row by row
        application.dead = True
        lost = await asyncio.gather(*(made.predict([row(at)]) for at in range(3)), return_exceptions=True)
        application.dead = False
        begun = time.monotonic()
        found = await asyncio.gather(*(made.predict([row(at)]) for at in range(128)), return_exceptions=True)
        return lost, found, time.monotonic() - begun

    lost, found, took = run(project, act)
    assert all(isinstance(error, Exception) for error in lost)
    assert [answer for answer in found if isinstance(answer, Exception)] == []
    assert {(answer.arm, answer.version) for answer in found} == {("stable", "apart")}
    assert took < 30
    assert len(logged(project)) == 3 + 128


def test_a_row_that_fails_there_is_nobody_elses_fault_and_its_error_comes_as_words(
    project: Project, application: Application
) -> None:
    """Its own exception would need its code here; a pass of many goes request by request, all at once."""
    arm = apart(project, broken=True)  # no number for a line that it does not know
    application.process = ArmReplica(
        ArmArgs(root=str(project.settings.root), version="apart", manifest=arm.manifest).model_dump()
    )
    project.put(routes.first("tiny", arm))
    score = application.process._predictor.score

    def fails(rows: Any, times: Any, history: Any) -> Any:
        if "t5" in rows["trip"]:
            raise LookupError("no bus goes there")
        return score(rows, times, history)

    object.__setattr__(application.process._predictor, "score", fails)

    async def act(made: Replica) -> list[Any]:
        asked = [{**row(at), "line": "?" if at == 3 else "A"} for at in range(8)]
        return await asyncio.gather(*(made.predict([one]) for one in asked), return_exceptions=True)

    found = run(project, act)
    assert application.sizes == [8, *[1] * 8]
    assert application.most == 8
    assert [at for at, answer in enumerate(found) if isinstance(answer, Exception)] == [3, 5]
    wrong = {record["key"]: record["error"] for record in logged(project) if record["error"]}
    assert wrong["t3"].startswith("Unavailable: the model gave a score that is no number")
    assert wrong["t5"] == "LookupError: no bus goes there"
    assert len(logged(project)) == 8


def test_as_a_candidate_it_has_its_deadline_and_what_is_late_is_cancelled_there(
    project: Project, application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    route = project.first()
    project.put(route.with_canary(apart(project), weight=WHOLE))
    monkeypatch.setattr(answering, "CANDIDATE_SECONDS", 1.5)

    async def act(made: Replica) -> tuple[Any, Any, Any]:
        quick = await made.predict([row(1)])
        many = await made.predict([row(at) for at in range(100)])
        application.seconds = 30
        begun = time.monotonic()
        late = await made.predict([row(2)])
        assert time.monotonic() - begun < 15
        return quick, many, late

    quick, many, late = run(project, act)
    assert [(answer.arm, answer.version) for answer in (quick, many, late)] == [
        ("canary", "apart"),
        ("canary", "apart"),
        ("stable", "v1"),
    ]
    assert application.cancelled == 1
    assert application.sizes == [1, 100, 1]
    assert logged(project)[-1]["error"] == "Unavailable: apart took over 1.501 s"


def test_as_a_shadow_it_hangs_at_nobodys_cost(
    project: Project, application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    route = project.first()
    project.put(route.with_canary(apart(project), weight=0, shadow=True))
    monkeypatch.setattr(answering, "SHADOW_SECONDS", 1.5)

    async def act(made: Replica) -> int:
        await made.predict([row(0)])
        await shadowed(1)
        application.seconds = 30
        begun = time.monotonic()
        for at in range(200):
            await made.predict([row(at)])
        assert time.monotonic() - begun < 15
        assert "shadow apart" not in {thread.name for thread in threading.enumerate()}, "no thread waits for it"
        assert application.at_once <= answering.SHADOWS
        await shadowed(201 - made.telemetry.dropped)
        return made.telemetry.dropped

    def shadows() -> list[dict[str, Any]]:
        return [record for record in predictions.read(project.settings.inbox)[0] if record["kind"] == "shadow"]

    async def shadowed(count: int) -> None:
        async with asyncio.timeout(30):
            while len(shadows()) < count:
                await asyncio.sleep(0.05)

    dropped = run(project, act)
    assert dropped > 0
    assert shadows()[0]["error"] == ""
    assert {record["error"] for record in shadows()[1:]} == {"Unavailable: apart took over 1.5 s"}


def test_what_is_too_much_for_it_is_refused_at_once(
    project: Project, application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.put(routes.first("tiny", apart(project)))
    monkeypatch.setattr(isolated, "WAITING", 4)
    application.seconds = 0.5

    async def act(made: Replica) -> list[Any]:
        made.answering.flags = Flags(batching=False)
        return await asyncio.gather(*(made.predict([row(at)]) for at in range(10)), return_exceptions=True)

    found = run(project, act)
    assert [isinstance(answer, Exception) for answer in found] == [False] * 4 + [True] * 6
    assert application.most == 4
    assert "4 calls wait for tiny--apart" in str(found[-1])


def test_what_a_process_takes_with_it_is_asked_again_where_nobody_stands_in(project: Project, application: Application) -> None:
    """Stable's calls, once; a candidate's not, for what it dies of may kill the next one too, and stable answers."""
    route = project.put(routes.first("tiny", apart(project)))

    async def act(made: Replica) -> list[Any]:
        made.answering.flags = Flags(batching=False)
        application.dying = 5
        found = await asyncio.gather(*(made.predict([row(at)]) for at in range(20)), return_exceptions=True)
        application.dying = 2
        return [*found, *await asyncio.gather(made.predict([row(20)]), return_exceptions=True)]

    *found, twice = run(project, act)
    assert {(answer.arm, answer.version) for answer in found} == {("stable", "apart")}
    assert isinstance(twice, Exception)
    assert "the process dies" in logged(project)[-1]["error"]
    back = project.put(replace(route.without_canary(), stable=project.version("v1")))
    project.put(back.with_canary(apart(project), weight=WHOLE))

    async def canary(made: Replica) -> Any:
        application.dying = 1
        return await made.predict([row(30)])

    assert run(project, canary).version == "v1"
