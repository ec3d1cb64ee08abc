"""Run as a script: does one thing to a project in a process that is killed, or whose disk or database fails, at its n-th durable operation.

Reads a JSON object a line: "root", "flags" (settings), "do" ("ingest" or "build"), "files", "how" ("kill", "fail" or "lose") and "step"; forks;
answers with the exit code: 0 it came through, -9 it was killed, 3 it raised an error of ours, else what escaped is on stderr. A durable operation is a file synced, a file
put in its place, an object put, a transaction committed. "kill" and "fail" come before the n-th of them, "lose" after it.

With the argument `once` it does the one thing itself and tells by its exit code: the S3 client does not survive a fork.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sqlalchemy as sa

sys.path[:0] = [str(Path(__file__).parents[2])]

from sqlalchemy.dialects.postgresql import psycopg  # noqa: E402, F401  loaded before the fork, as all the rest

from ct.data import arriving, iceberg  # noqa: E402
from ct.errors import CtError, Unavailable  # noqa: E402
from ct.store import files  # noqa: E402
from tests.data.conftest import Place  # noqa: E402
from tests.faults.sold import built, read_here  # noqa: E402

OPERATIONS = [(os, "fsync"), (os, "replace"), (files, "_send"), (sa.engine.default.DefaultDialect, "do_commit")]


def break_at(step: int, how: str) -> None:
    """Let this process be hurt at the `step`-th durable operation, counted from 1."""
    passed = 0

    def hurt(name: str, args: tuple[Any, ...]) -> None:
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if name == "do_commit":
            if getattr(args[0], "name", "") == "postgresql":
                args[-1].close()  # what is not committed is rolled back by the server
            raise sa.exc.OperationalError("COMMIT", {}, Exception("the connection is lost"))
        if name == "_send":  # what it says once it has tried for long enough
            raise Unavailable("broken for a test", "an object store that answers", "try again")
        raise OSError([errno.ENOSPC, errno.EIO][step % 2], "broken for a test")

    def around(call: Callable[..., Any], name: str) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            nonlocal passed
            passed += 1
            if passed == step and how != "lose":
                hurt(name, args)
            mine = passed
            result = call(*args, **kwargs)
            if mine == step and how == "lose":
                hurt(name, args)
            return result

        return called

    for owner, name in OPERATIONS:
        setattr(owner, name, around(getattr(owner, name), name))


def do(asked: dict[str, Any]) -> None:
    arriving.read = read_here
    iceberg.LOST_SECONDS = 5
    break_at(asked["step"], asked["how"])
    place = Place.at(Path(asked["root"]), **asked["flags"])
    for file in asked["files"]:
        place.ingest(Path(file))
    if asked["do"] == "build":
        built(place)


def attempt(asked: dict[str, Any]) -> int:
    try:
        do(asked)
        return 0
    except CtError:
        return 3
    except BaseException:
        traceback.print_exc()
        return 1


def forked(asked: dict[str, Any]) -> int:
    child = os.fork()
    if child == 0:
        os._exit(attempt(asked))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    if sys.argv[1:] == ["once"]:
        os._exit(attempt(json.loads(sys.stdin.readline())))
    for line in sys.stdin:
        print(forked(json.loads(line)), flush=True)
