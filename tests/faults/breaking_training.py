"""Run as a script: trains in a forked process that is killed, or whose disk fails, at its n-th durable operation. See `breaking.py`.

Reads a JSON object a line: "set", "stop", "points", "how" ("kill", "fail", "" for nothing) and "step"; answers with the exit code and, where
the training came to its end, the hash of weights and history and the step it went on from.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[2] / "bench" / "parts")]

from normed import Normed  # type: ignore[import-not-found]  # noqa: E402

from ct.ids import canonical, sha256  # noqa: E402
from ct.training import checkpoint, loop  # noqa: E402
from ct.training.declare import Torch, pickled  # noqa: E402
from ct.training.determinism import Group  # noqa: E402
from tests.faults.breaking import break_at  # noqa: E402

MODEL = Torch(Normed, epochs=3, batch=64, patience=2, average=0.9, clip=1.0)


def train(asked: dict[str, Any]) -> dict[str, Any]:
    if asked["how"]:
        break_at(asked["step"], asked["how"])
    code, paths = pickled(MODEL)
    job = loop.Job(asked["set"], code, paths, "same", stop=asked["stop"], checkpoints=asked["points"], every_steps=4)
    made = loop.run(job, Group())
    return {
        "hash": sha256(canonical([checkpoint.digest(made.weights), list(made.history)])),
        "resumed": made.resumed,
        "notes": list(made.notes),
    }


def forked(asked: dict[str, Any]) -> dict[str, Any]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, json.dumps(train(asked)).encode())
            os._exit(0)
        except BaseException as error:
            os.write(writing, json.dumps({"error": f"{type(error).__name__}: {error}"}).encode())
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    return {"code": os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), **(json.loads(text) if text else {})}


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(forked(json.loads(line))), flush=True)
