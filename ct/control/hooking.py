"""Hooks of a rollout: a user's callable or webhook is asked before it goes on, and told of what happened. Each call has a deadline and is journaled."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ct.clock import duration
from ct.errors import InvalidPipeline
from ct.rollout import state
from ct.settings import HOOKS

if TYPE_CHECKING:
    from ct.control.act import Actor
    from ct.rollout.state import Rollout

WEBHOOK_SECONDS = 10.0
_MOST_LETTERS = 200


MOST_SECONDS = 30
"""While a hook is asked nothing else is looked at."""


@dataclass(frozen=True)
class Hook:
    """`call` is asked at `name` with a mapping: hook, endpoint, rollout, version, baseline, step, weights, cause.

    It refuses by returning False, by raising, and by taking longer than `timeout`.
    """

    name: str
    call: Callable[[Mapping[str, Any]], object]
    timeout: str = "10s"

    def validate(self) -> list[str]:
        """What is wrong with its fields."""
        faults = [] if self.name in HOOKS else [f"Hook({self.name!r}), expected one of {list(HOOKS)}"]
        if not callable(self.call):
            faults.append(f"Hook({self.name!r}) calls {self.call!r}, expected a function of one mapping")
        try:
            if not 0 < duration(self.timeout).total_seconds() <= MOST_SECONDS:
                faults.append(f"Hook({self.name!r}): timeout {self.timeout!r}, expected at most {MOST_SECONDS} s")
        except InvalidPipeline as error:
            faults.append(f"Hook({self.name!r}): timeout {error}")
        return faults


def ask(act: Actor, rollout: Rollout, name: str, **facts: Any) -> str:
    """Call every hook of that name. Returns why one refuses, empty when none does. Each call is journaled."""
    body = {
        "hook": name,
        "endpoint": act.pipeline.name,
        "rollout": rollout.id,
        "version": rollout.version,
        "baseline": rollout.baseline,
        "step": rollout.step,
    } | facts
    refused = ""
    for target, seconds, call in _targets(act, name):
        began = time.monotonic()
        said = _bounded(lambda call=call: call(body), seconds)  # type: ignore[misc]
        took = {"ms": round((time.monotonic() - began) * 1000), "target": target, "refused": said}
        state.note(act.journal, act.pipeline.name, rollout.id, "HookCalled", {"hook": name, **took})
        refused = refused or (said and f"hook {name} ({target}): {said}")
    return refused


def _targets(act: Actor, name: str) -> list[tuple[str, float, Callable[[Mapping[str, Any]], object]]]:
    found = [
        (getattr(hook.call, "__qualname__", type(hook.call).__name__), duration(hook.timeout).total_seconds(), hook.call)
        for hook in act.pipeline.hooks
        if hook.name == name
    ]
    if url := act.settings.hooks.get(name):
        # Its path and query may hold a secret.
        found.append((str(urlsplit(url).hostname), WEBHOOK_SECONDS, lambda body: _post(url, body)))
    return found


def _bounded(call: Callable[[], object], seconds: float) -> str:
    """Why the call refuses; a thread that hangs is left behind."""
    said = [f"no answer within {seconds:g} s"]

    def run() -> None:
        try:
            answer = call()
        except BaseException as error:  # whatever a foreign function raises, it may not end the loop
            said[0] = f"{type(error).__name__}: {error}"[:_MOST_LETTERS]
        else:
            said[0] = "it said no" if answer is False else ""

    thread = threading.Thread(target=run, name="ct-hook", daemon=True)
    thread.start()
    thread.join(seconds)
    return said[0]


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Nobody is followed elsewhere: 3xx is an error."""


def _post(url: str, body: Mapping[str, Any]) -> object:
    data = json.dumps(body, default=str).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"}, method="POST")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect)
    with opener.open(request, timeout=WEBHOOK_SECONDS) as answer:
        return 200 <= answer.status < 300
