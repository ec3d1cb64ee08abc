"""Run as a script: controllers of the real endpoint. Each rolls one version out, or dies (SIGKILL) right before a durable change of its.

Arguments: the project's folder, its port, its replicas. Reads a JSON object a line: "version", "before" ("commit", "stage", "activate", or ""
for any of them) and "step", the how many-th, 0 for none; forks; answers with the exit code, -9 for one that was killed, and how the rollout
ended. A controller goes on with whatever an earlier one has left.

With the word `watch` after them it only watches: told by a line, it brings the endpoint back to the journal's route, as the loop does.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import sqlalchemy as sa

sys.path[:0] = [str(Path(__file__).parents[1] / "serving")]

from sqlalchemy.dialects.postgresql import psycopg  # noqa: E402, F401  loaded before the forks, as all the rest
from tiny import FEATURES, TRIPS  # noqa: E402

import ct  # noqa: E402
from ct import settings  # noqa: E402
from ct.control import turning  # noqa: E402
from ct.control.act import Actor  # noqa: E402
from ct.errors import CtError  # noqa: E402
from ct.rollout import state  # noqa: E402
from ct.serving.client import Serving  # noqa: E402

LIMIT_SECONDS = 120.0
LINE = ct.Pipeline(
    name="tiny",
    table=TRIPS,
    label=ct.Label("late", above=15, known_at="arrives"),
    features=list(FEATURES),
    model=ct.Torch("MLP"),
    gate=ct.Gate(beats=ct.auc(by=0.0), floors=[ct.auc(0.5)]),
    rollout=ct.Canary(50, 100, min_requests=5, guards=[ct.error_rate(max=0.5)]),
)
CHANGES = {
    "commit": (sa.engine.default.DefaultDialect, "do_commit"),
    "stage": (Serving, "stage"),
    "activate": (Serving, "activate"),
}


def die_before(kind: str, step: int) -> None:
    """SIGKILL for this process right before its `step`-th change of that kind."""
    passed = 0

    def around(owner: Any, name: str) -> None:
        call = getattr(owner, name)

        def called(*args: Any, **kwargs: Any) -> Any:
            nonlocal passed
            passed += 1
            if passed == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        setattr(owner, name, called)

    for name in [kind] if kind else CHANGES:
        around(*CHANGES[name])


def actor(place: settings.Settings) -> Actor:
    """Connected to the endpoint, so that what is counted begins with the rollout."""
    act = Actor(LINE, place, actor="controller")
    act.serving.state()
    return act


def roll_out(act: Actor, version: str) -> str:
    """Start the rollout unless there was one, look as the loop does until it has ended, and say how."""
    if not any(rollout.version == version for rollout in state.history(act.journal, LINE.name)):
        act.start_rollout(version)
    until = time.monotonic() + LIMIT_SECONDS
    while state.active(act.journal, LINE.name) is not None:
        assert time.monotonic() < until, state.history(act.journal, LINE.name)[-1]
        try:
            turning.heed(act)
            act.judge()
        except CtError as error:  # the loop tells it and looks again
            print(error, file=sys.stderr)
        time.sleep(0.1)
    return state.history(act.journal, LINE.name)[-1].outcome


def forked(place: settings.Settings, asked: dict[str, Any]) -> dict[str, Any]:
    """One controller's life in a process of its own."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            act = actor(place)
            if asked["step"]:
                die_before(asked["before"], asked["step"])
            os.write(write, roll_out(act, asked["version"]).encode())
            os._exit(0)
        except BaseException:
            os.write(write, traceback.format_exc()[-3000:].encode())
            os._exit(1)
    os.close(write)
    with os.fdopen(read) as said:
        return {"said": said.read(), "code": os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}


def watch(act: Actor) -> None:
    """What the loop does at each turn about an endpoint that is not as the journal says."""
    print("watching", flush=True)
    sys.stdin.readline()
    until = time.monotonic() + LIMIT_SECONDS
    while act.served_epoch() != act.route().epoch:
        assert time.monotonic() < until, "the endpoint does not come back"
        try:
            print(act.reconcile(), flush=True)
        except CtError as error:
            print(error, file=sys.stderr)
        time.sleep(0.1)


def main() -> None:
    root, port, replicas, *word = sys.argv[1:]
    place, out = settings.load(root, environ={}, port=int(port), replicas=int(replicas)), sys.stdout
    if word == ["watch"]:
        return watch(actor(place))
    Serving(place, LINE.name)  # sets what Serve reads at its import
    import ray.serve  # noqa: F401  so that no controller has to

    sys.stdout = sys.stderr  # Ray and Serve print; answers must stay alone on their pipe
    for line in sys.stdin:
        print(json.dumps(forked(place, json.loads(line))), file=out, flush=True)


if __name__ == "__main__":
    main()
