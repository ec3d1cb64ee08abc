"""One warm Ray process that trains, exports and sweeps for this driver, started with the numeric contract's environment."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from ct.errors import CtError, Unavailable
from ct.training.determinism import ENVIRONMENT

T = TypeVar("T")
_POLL_S = 0.1


def start(workers: object = 0) -> None:
    """Begin to warm the process up without waiting: it imports what training needs and makes the slow first export. With a fixed number of
    `workers` it starts their group as well.

    About 10 s of one core, best spent while data is still being read.
    """
    _process(_driver()).call.remote(_prepare, workers)


def _prepare(workers: object) -> None:
    from ray.train import torch as _  # noqa: F401

    from ct.training import export, groups, loop  # noqa: F401

    if isinstance(workers, int) and workers:
        groups.kept(workers)
    export.rehearse()


def call(
    function: Callable[..., T],
    *args: Any,
    progress: Path | None = None,
    on_progress: Callable[[Mapping[str, Any]], None] | None = None,
    watch: Callable[[], None] | None = None,
) -> T:
    """`function(*args)` in the warm process. Lines that appear in the file `progress` go to `on_progress` meanwhile, and `watch` is called.

    Raises what the function raises, and Unavailable when there is no Ray or the process cannot be kept alive.
    """
    import ray

    process = _process(_driver())
    waiting = process.call.remote(function, *args)
    try:
        seen = 0
        while not ray.wait([waiting], timeout=_POLL_S if on_progress or watch else None)[0]:
            seen = _tell(progress, seen, on_progress)
            if watch:
                watch()
        _tell(progress, seen, on_progress)
        result: T = ray.get(waiting)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, CtError):
            raise error.cause from None
        raise
    except ray.exceptions.RayActorError as error:
        _process.cache_clear()
        raise Unavailable(
            f"the training process died: {str(error).splitlines()[0]}", "enough memory for it", "see Ray's logs, then try again"
        ) from None
    return result


def _tell(progress: Path | None, seen: int, on_progress: Callable[[Mapping[str, Any]], None] | None) -> int:
    if progress is None or on_progress is None or not progress.is_file():
        return seen
    text = progress.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    for line in whole[seen:].splitlines():
        on_progress(json.loads(line))
    return len(whole)


def _driver() -> str:
    import ray

    if not ray.is_initialized():
        raise Unavailable("Ray is not connected", "a Ray cluster", "call ray.init() or let ct connect first")
    return str(ray.get_runtime_context().get_worker_id())


@cache  # the handle must stay alive, for Ray ends an actor nobody holds; one for each connection to a cluster
def _process(driver: str) -> Any:
    import ray

    class Warm:
        """Runs one function after the other."""

        def call(self, function: Callable[..., Any], *args: Any) -> Any:
            """The function's result, with the user's modules as they are now."""
            from ct.training.code import forget_changed_modules

            forget_changed_modules()
            return function(*args)

    # Ray Train asks its workers every 0.2 s instead of 2 s, and starts no watcher for preemptions: our loop saves often enough.
    environment = {**ENVIRONMENT, "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
    # No CPU is reserved, because it idles between runs and must not keep others from theirs. A killed one is restarted and asked
    # again: training then goes on from its newest checkpoint. Restarts are not counted over the driver's life, only tries of one call;
    # and the name is new each time, because a dead process may hold its own for a while.
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": 3, "runtime_env": {"env_vars": environment}}
    return ray.remote(Warm).options(name=f"ct-training-{driver[:16]}-{secrets.token_hex(4)}", **options).remote()
