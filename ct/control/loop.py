"""The loop: observe, decide, act, record. Short enough to read in one sitting; killed anywhere, it goes on where it was."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from ct.control import runs, sweeps, turning, watching
from ct.control.act import Actor
from ct.control.decide import Action, Judge, State, decide
from ct.control.triggers import Observed
from ct.data import catalog
from ct.errors import Conflict, CtError
from ct.registry import routes, versions
from ct.rollout import state as rollouts

MOST_FAILURES = 3
"""So many looks in a row may fail before `once` gives up; without it the loop goes on for ever."""


def run(act: Actor, *, every: float = 1.0, once: bool = False, say: Callable[[str], None] = print) -> None:
    """Turn the loop until the process ends, or with `once` until there is nothing left to do.

    With `once`, raises the error that three looks in a row have met.
    """
    with _alone(act.settings.home / "watch.lock"):
        act.start_ray_soon()
        failures = 0
        while True:
            _heed(act, say)
            actions = decide(act.pipeline, observe(act))
            failed = [error for action in actions if (error := _try(act, action, say))]
            failures = failures + 1 if failed else 0
            if once and failures == MOST_FAILURES:
                raise failed[-1]
            act.commit_predictions()
            if once and not [action for action in actions if action != Judge(paused=True)]:  # that one waits for a person
                return
            if failed or all(isinstance(action, Judge) for action in actions):
                act.clock.sleep(every)


def _heed(act: Actor, say: Callable[[str], None]) -> None:
    try:
        if said := turning.heed(act):
            say(said)
    except CtError as error:  # the replicas follow the order on their disk anyway; the next look journals it
        say(f"an order on disk is not journaled yet: {error}")


def _try(act: Actor, action: Action, say: Callable[[str], None]) -> CtError | None:
    """Carry an action out. What `ct` knows to fail is said, alerted and returned; the next look decides anew."""
    try:
        if said := act.carry_out(action):
            say(said)
    except CtError as error:
        say(f"{type(action).__name__} failed: {error}")
        act.alert("PAGE", f"{type(action).__name__} failed: {error.found}", detail=str(error))
        return error
    return None


def observe(act: Actor, *, ask_endpoint: bool = True) -> State:
    """All that a decision may look at, read from the journal, the tables' sources and the endpoint."""
    name, journal = act.pipeline.name, act.journal
    known = versions.all_versions(journal, name)
    history = routes.history(journal, name)
    tried = {rollout.version for rollout in rollouts.history(journal, name)} | {entry.route.stable.version for entry in history}
    route = history[-1].route if history else None
    return State(
        arrivals=tuple(act.looks.arrivals()),
        undrifted=watching.unchecked(act.place),
        # A sweep's run is not to be trained as if nothing were searched: who began the sweep, or asks for it again, ends it.
        run=next((item for item in runs.all_runs(journal, name) if not item.outcome and item.cause != sweeps.CAUSE), None),
        versions=known,
        tried=frozenset(tried),
        route=route,
        rollout=rollouts.active(journal, name),
        served_epoch=act.served_epoch() if ask_endpoint and route else (route.epoch if route else None),
        observed=observed(act),
    )


def observed(act: Actor) -> Observed:
    """What the triggers may look at."""
    shards = catalog.published(act.journal, act.pipeline.table.name)
    known = runs.all_runs(act.journal, act.pipeline.name)
    last = known[-1] if known else None
    seen = set(last.shards[act.pipeline.table.name]) if last else set()
    fresh = [shard for shard in shards if shard.sha256 not in seen]
    newest = max((shard.time_max for shard in shards), default=None)
    found = {item["sha256"]: item["drifted"] for item in watching.drifts(act.journal, act.pipeline.name)}
    drifted = [column for shard in fresh for column in found.get(shard.sha256, ())]
    return Observed(
        new_rows=sum(shard.rows for shard in fresh),
        data_time=None if newest is None else datetime.fromtimestamp(newest / 1e6, UTC),
        trained_until=last.data_time if last else None,
        drifted=tuple(dict.fromkeys(drifted)),
    )


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise Conflict(
                f"another `ct watch` runs here (process {file.read().strip() or 'unknown'})",
                "one loop a project",
                "stop the other one first",
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
