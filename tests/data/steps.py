"""For scripts whose processes are killed at a step: counting the calls that change something outside the process."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from typing import Any

from ct.store.journal import Journal


def kill_at(step: int, calls: Sequence[tuple[Any, str]]) -> None:
    """Let this process kill itself when it reaches `step` of its `calls`, counted from 1."""
    passed = 0

    def tick() -> None:
        nonlocal passed
        passed += 1
        if passed == step:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(call: Callable[..., Any], last: bool) -> Callable[..., Any]:
        def around(*args: Any, **kwargs: Any) -> Any:
            tick()
            result = call(*args, **kwargs)
            if last:
                tick()
            return result

        return around

    for owner, name in calls:
        setattr(owner, name, counted(getattr(owner, name), last=owner is Journal))
