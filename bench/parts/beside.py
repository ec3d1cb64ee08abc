"""Two more applications on the Serve that runs for a project: the bare deployment, and the router pattern with two hops. `python beside.py ROOT`.

The first parses JSON and calls the model. The second has a router that draws stable or canary and asks that model's deployment.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from ct import settings
from ct.serving import local

OPTIONS: dict[str, Any] = {
    "max_ongoing_requests": 256,
    "max_queued_requests": 512,
    "ray_actor_options": {"num_cpus": 0.1},
    "logging_config": {"enable_access_log": False},
}


def applications(folder: str, replicas: int) -> dict[str, serve.Application]:
    """Both, by their path."""
    source = (Path(__file__).parent / "plainly.py").read_text()

    def model() -> Any:
        found: dict[str, Any] = {"__name__": "plainly"}
        exec(compile(source, "plainly.py", "exec"), found)  # this bench's own file; replicas have another import path
        return found["Model"](folder)

    class Bare:
        def __init__(self) -> None:
            self._model = model()

        async def __call__(self, request: Request) -> Response:
            return Response(self._model.answer(await request.body()), media_type="application/json")

    class Arm:
        def __init__(self) -> None:
            self._model = model()

        async def answer(self, body: bytes) -> bytes:
            return bytes(self._model.answer(body))

    class Router:
        def __init__(self, stable: Any, canary: Any) -> None:
            self._stable, self._canary = stable, canary

        async def __call__(self, request: Request) -> Response:
            arm = self._canary if random.random() < 0.1 else self._stable
            return Response(await arm.answer.remote(await request.body()), media_type="application/json")

    def bound(of: type[Any], name: str, count: int, *given: Any) -> Any:
        return serve.deployment(name=name, num_replicas=count, **OPTIONS)(of).bind(*given)

    arms = [bound(Arm, "stable", replicas), bound(Arm, "canary", 1)]
    return {"bare": bound(Bare, "bare", replicas), "router": bound(Router, "router", replicas, *arms)}


def main() -> None:
    """Deploy both and say so."""
    root, folder, replicas = sys.argv[1:]
    local.connect(settings.load(root, environ={}))
    for name, application in applications(folder, int(replicas)).items():
        serve.run(application, name=name, route_prefix=f"/{name}")
    print("ready", flush=True)


if __name__ == "__main__":
    main()
