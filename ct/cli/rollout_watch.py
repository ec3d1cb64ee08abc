"""`ct rollout watch`: looks again and again until a rollout has ended. Counts as the controller does, and changes nothing."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import typer

from ct.cli import output, rollout_view
from ct.control import rollouts
from ct.control.counting import Counting
from ct.errors import CtError, Unavailable
from ct.registry import routes
from ct.rollout import state

if TYPE_CHECKING:
    from ct.control.act import Actor


def follow(act: Actor, *, every: float, once: bool) -> str:
    """Show what changes every `every` seconds. Returns how the rollout ended; empty with `once`, and where there is none."""
    counting, last, away = Counting(act), "", ""
    while True:
        try:
            data = rollout_view.data(act.pipeline.name, act.journal) | {"now": _now(act, counting)}
            away = ""
        except Unavailable as error:
            if once:
                raise
            if away != error.found:
                typer.echo(f"not seen: {error.found}; looking again", err=True)
            away = error.found
        else:
            last = _show(act.pipeline.name, data, last)
            rollout = data["rollout"]
            if once or not rollout:
                return ""
            if rollout["phase"] == "ended":
                return str(rollout["outcome"])
        act.clock.sleep(every)


def _show(name: str, data: dict[str, Any], last: str) -> str:
    line = rollout_view.line(name, data)
    if sys.stdout.isatty():
        typer.echo("\x1b[2J\x1b[H", nl=False)
        rollout_view.view(name, data)
    elif line != last:
        output.line(line)
        sys.stdout.flush()
    return line


def _now(act: Actor, counting: Counting) -> dict[str, Any] | None:
    """The verdict on what this machine's prediction log and the table hold now. None before the first step, and where they cannot be read."""
    rollout, route = state.active(act.journal, act.pipeline.name), routes.current(act.journal, act.pipeline.name)
    if rollout is None or route is None or rollout.step < 0 or rollout.ending or not route.candidates:
        return None
    elapsed = (act.clock.now() - (rollout.step_at or rollout.started)).total_seconds()
    try:
        version, found = counting.verdict(rollout, route, rollouts.plan_of(act, rollout), elapsed)
    except CtError:  # what the journal says is shown all the same
        return None
    return {"version": version, **found.recorded()}
