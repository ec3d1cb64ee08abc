"""A project with three versions and a route, whose replicas are a file: for tests of what moves a rollout. Kills itself at a chosen operation."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa

import ct
from ct import pipeline, settings
from ct.clock import TurnableClock
from ct.control import turning
from ct.control.act import Actor
from ct.data import predictions
from ct.errors import Unavailable
from ct.registry import publishing, routes, versions
from ct.registry.routes import Arm, Route
from ct.rollout import state
from tests.loop import project
from tests.registry.made import made

LINE = "late-orders"
START = datetime(2024, 3, 1, tzinfo=UTC)


class Replicas:
    """In the place of Serve: what was staged and which route is in force, on disk, so that it outlives the controller."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "replicas.json"
        self.count = 1
        self.said: dict[str, Any] = {}
        self.refuses: set[str] = set()
        self.down = ""
        self.hears: Callable[[str], object] = lambda _: None

    def read(self) -> dict[str, Any]:
        return dict(json.loads(self.file.read_text())) if self.file.exists() else {"staged": [], "route": None}

    def _write(self, **changed: Any) -> None:
        self.file.write_text(json.dumps(self.read() | changed))

    def stage(self, version: str, manifest: str, app: str = "") -> None:
        self.hears("stage")
        if version in self.refuses:
            raise Unavailable(f"the endpoint did not stage: Corrupt: {version}'s golden rows differ", "replicas that answer")
        self._write(staged=sorted({*self.read()["staged"], version}))

    def activate(self, route: Route) -> list[int]:
        self.hears("activate")
        assert {arm.version for arm in route.arms} <= set(self.read()["staged"]), "traffic for a version that is not ready"
        for share in route.candidates:
            carries = routes.WHOLE if share.shadow else share.weight
            if share.arm.app:
                assert self.read()["apps"][share.arm.app] >= self.count * carries / routes.WHOLE, "weight before room"
        self._write(route=route.to_json())
        return [route.epoch]

    def state(self) -> list[dict[str, Any]]:
        route = self.read()["route"]
        return [{"epoch": route["epoch"], "versions": self.read()["staged"], **self.said}] * self.count if route else []

    def apart(self, arm: Arm) -> Arm:
        return Arm(arm.version, arm.manifest, f"apart-{arm.version}")

    def deploy_arm(self, arm: Arm, *, replicas: int = 1) -> Arm:
        arm = self.apart(arm)
        self._write(apps=self.read().get("apps", {}) | {arm.app: replicas})
        return arm

    def scale_arm(self, arm: Arm, replicas: int) -> bool:
        if self.read()["apps"][arm.app] >= replicas:
            return False
        self._write(apps=self.read()["apps"] | {arm.app: replicas})
        return True

    def arm_state(self, arm: Arm) -> tuple[int, str]:
        return (0, self.down) if self.down else (self.read()["apps"].get(arm.app, 0), "")

    def remove_arm(self, arm: Arm, **_: Any) -> bool:
        apps = self.read().get("apps", {})
        self._write(apps={name: count for name, count in apps.items() if name != arm.app})
        return arm.app in apps


def actor(root: Path, plan: Any, **changed: Any) -> Actor:
    """The project at `root`, made if it is not there: v1 is stable, v2 and v3 are cleared."""
    fresh = not (root / "pipeline.py").exists()
    if fresh:
        project.write(root, 8000)
    line = pipeline.load(str(root / "pipeline.py")).replace(rollout=plan, **changed)
    act = Actor(line, settings.load(root), clock=TurnableClock(START), actor="ann")
    act.__dict__["serving"] = Replicas(root)
    for event in act.journal.read():  # a clock never goes back
        act.clock.at = max(act.clock.at, event.at)  # type: ignore[attr-defined]
    if fresh:
        for run in "abc":
            publishing.publish(act.journal, act.artifacts, LINE, made(run), run=run, verdict="pass", metrics={"auc": 0.9})
        first = routes.first(LINE, versions.arm(versions.get(act.journal, LINE, "v1")))
        routes.put(act.journal, first, cause="first deployment")
        act.serving.stage("v1", first.stable.manifest)
        act.serving.activate(first)
    return act


def traffic(act: Actor, *, errors: bool = False, rows: int = 40, harm: Collection[str] = ()) -> None:
    """Requests as the replicas log them under the route in force, split as its weights say; those of the versions in `harm` fail, or all candidates'."""
    route = act.route()
    arms = [name for name, weight in route.shares.items() for _ in range(round(rows * weight / routes.WHOLE))]
    names = _names(route)
    bad = [(errors and arm != "stable") or names[arm] in harm for arm in arms]
    _log(act, [(arm, failed) for arm, failed in zip(arms, bad, strict=True)])


def only(act: Actor, arm: str, *, rows: int) -> None:
    """Requests of one arm, whatever its weight says."""
    _log(act, [(arm, False)] * rows)


def _names(route: Route) -> dict[str, str]:
    return dict(zip(route.shares, (arm.version for arm in route.arms), strict=True))


def _log(act: Actor, requests: list[tuple[str, bool]]) -> None:
    route = act.route()
    names, inbox = _names(route), predictions.Inbox(act.settings.inbox, f"r{os.urandom(4).hex()}")
    records = [
        {
            "kind": "prediction", "id": f"{route.epoch}-{at}-{os.urandom(4).hex()}", "t": at, "endpoint": LINE, "epoch": route.epoch,
            "weight": route.weight, "version": names[arm], "arm": arm, "assigned": arm, "forced": False, "latency_ms": 2.0,
            "error": "boom" if failed else "", "score": 0.2, "unit": f"u{at}", "event_time": 0, "key": f"k{at}",
            "context": {}, "request": {}, "features": {}, "label": None, "of": "",
        }
        for at, (arm, failed) in enumerate(requests)
    ]  # fmt: skip
    inbox.submit(records).result()
    inbox.close()


def drive(act: Actor, *, errors: bool = False, turns: int = 12, harm: Collection[str] = ()) -> str:
    """Turn as the loop does, three hours apart, with `traffic` between. Returns how the rollout ended, empty while it goes on."""
    assert isinstance(act.clock, TurnableClock)
    for _ in range(turns):
        turning.heed(act)
        rollout = state.active(act.journal, LINE)
        if rollout is None:
            act.clock.turn(timedelta(seconds=turning.CLOSE_SECONDS))
            turning.heed(act)
            break
        if act.route().candidates:
            traffic(act, errors=errors, harm=harm)
        act.judge()
        act.clock.turn(timedelta(hours=3))
    return state.history(act.journal, LINE)[-1].outcome


def ended(act: Actor) -> dict[str, Any]:
    """The state that must be the same whatever was killed on the way."""
    route, told = act.route(), state.history(act.journal, LINE)
    alerts = act.journal.read(f"alert/{LINE}", types=["AlertRaised"])
    return {
        "closed": [item.closed for item in told],
        "paged": sorted(event.data["title"] for event in alerts if event.data["tier"] == "PAGE"),
        "apps": act.serving.read().get("apps", {}),  # type: ignore[attr-defined]
        "stable": route.stable.version,
        "shares": route.shares,
        "gone": [item.gone for item in told],
        "rollouts": [(item.version, item.phase, item.outcome) for item in told],
        "served": json.loads(json.dumps(route.to_json())) == act.serving.read()["route"],  # type: ignore[attr-defined]
    }


def kill_at(step: int) -> None:
    """SIGKILL for this process right before its `step`-th durable change: a transaction, or a word to the replicas."""
    passed = 0

    def around(owner: object, name: str) -> None:
        call = getattr(owner, name)

        def called(*args: object, **kwargs: object) -> object:
            nonlocal passed
            passed += 1
            if passed == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        setattr(owner, name, called)

    around(sa.engine.default.DefaultDialect, "do_commit")
    around(Replicas, "_write")


def last(act: Actor) -> state.Rollout:
    """The newest rollout, also one that has ended."""
    return state.history(act.journal, LINE)[-1]


def turn(act: Actor, seconds: float = 1.0) -> str:
    """Let time pass, then look once."""
    assert isinstance(act.clock, TurnableClock)
    act.clock.turn(timedelta(seconds=seconds))
    return act.judge()


def replicas(act: Actor) -> Replicas:
    """The replicas that it speaks to."""
    found = act.serving
    assert isinstance(found, Replicas)
    return found


def forked(work: Callable[[], None]) -> int:
    """Do it in a process of its own. Its exit code, negative for a signal."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:  # the parent sees the code
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def copied(source: Path, target: Path) -> Path:
    """The project elsewhere, as it stands."""
    shutil.copytree(source, target)
    return target


PLANS: Mapping[str, Any] = {
    "canary": ct.Canary(50, ct.Step(100, pause="2h"), min_requests=5, guards=[ct.error_rate(max=0.2)]),
    "blue-green": ct.BlueGreen(bake="1h", min_requests=5, guards=[ct.error_rate(max=0.2)]),
    "shadow, canary": ct.Then(
        ct.Shadow(deadline="1h", at_deadline="hold"), ct.Canary(50, 100, min_requests=5, guards=[ct.error_rate(max=0.2)])
    ),
    "a/b": ct.AB(30, 30, deadline="1h", at_deadline="abort", guards=[ct.error_rate(max=0.2)]),
    "at once": ct.AllAtOnce(),
}
