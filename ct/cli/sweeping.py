"""`ct sweep`: begin a sweep or go on with one, show the last one, draw its trials."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ct.cli import output
from ct.cli.place import AsJson, DryRun, PipelineFile, Root, actor

if TYPE_CHECKING:
    from ct.control.act import Actor
    from ct.control.sweeping import Swept
    from ct.training.ledger import Ledger


def sweep(
    root: Root = None,
    pipeline: PipelineFile = None,
    trials: Annotated[int | None, typer.Option(min=1, help="How many settings to try (default: as declared, else 8).")] = None,
    search: Annotated[str, typer.Option(help="Who chooses: random, asha, bayes or population (default: as declared).")] = "",
    parallel: Annotated[int, typer.Option(min=1, help="How many at a time; it changes no result.")] = 2,
    show: Annotated[bool, typer.Option("--show", help="Show the last sweep and run nothing.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw the trials into this file: .svg, .png or .pdf.")] = None,
    dry_run: DryRun = False,
    json: AsJson = False,
) -> None:
    """Try the pipeline's search space on the newest data; the best trial is trained whole and meets the same gate.

    A sweep that was killed goes on when it is asked for again.
    """
    with output.errors(), actor(root, pipeline) as act:
        from ct.control import sweep_plot, sweeping

        target = sweep_plot.allowed(plot) if plot else None
        if show:
            found = sweeping.last(act)
        else:
            chosen = sweeping.chooser(act.pipeline, name=search, trials=trials or 0)
            if dry_run:
                _plan(act, chosen, json)
                return
            with _progress() as told:
                found = act.sweep(chosen, parallel=parallel, on_step=told.step, on_trials=told.trials)
            target = target or act.settings.home / "sweeps" / found.sweep.run / "trials.svg"
        if target and found.sweep.trials:
            sweep_plot.draw(found.sweep, target)
        output.show(found.to_json(), json, lambda: _view(found, target))


def _plan(act: Actor, chosen: Any, json: bool) -> None:
    """Say what a sweep begun now would try first."""
    from ct.control import sweeping

    begun = sweeping.first(act)
    legs = sweeping.plan(act.pipeline, chosen, begun).open()
    space = act.pipeline.model.searches()
    data = {
        "search": chosen.name,
        "trials": chosen.trials,
        "space": {name: repr(search) for name, search in space.items()},
        "round": [{"trial": leg.number, "epochs": leg.until, "params": dict(leg.params)} for leg in legs],
    }

    def view() -> None:
        output.line(f"would try {chosen.trials} settings of {', '.join(space)} by {chosen!r}; the first round:")
        names = list(space)
        output.table("", ("trial", *names, "epochs"), ((leg.number, *map(leg.params.get, names), leg.until) for leg in legs))

    output.show(data, json, view)


def _view(found: Swept, picture: Path | None) -> None:
    sweep, names = found.sweep, sorted(found.sweep.asked["space"])
    rows = [
        (
            f"{trial.number}{' *' if trial.number == sweep.best else ''}",
            *(_value(trial.now.get(name)) for name in names),
            trial.epochs,
            trial.loss,
            trial.state,
            trial.error,
        )
        for trial in sweep.trials
    ]
    head = ("trial", *names, "epochs", "loss", "state", *(("why",) if any(trial.error for trial in sweep.trials) else ()))
    output.table(f"{sweep.run}: {sweep.asked['chooser']['name']}", head, [row[: len(head)] for row in rows])
    if winner := sweep.winner:
        said = f" -> {found.version.name}, verdict {found.version.verdict}" if found.version else ""
        values = ", ".join(f"{name}={_value(winner.now.get(name))}" for name in names)
        output.line(f"best: trial {winner.number}, {values}, loss {winner.loss:.4f}{said}")
    if not sweep.ended:
        output.line("not ended: `ct sweep` with the same options goes on with it")
    if picture and sweep.trials:
        output.line(f"picture: {picture}")


def _value(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else value if value is None else str(value)


class _Told:
    """Where a sweep's progress goes."""

    def __init__(self, step: Callable[[str], None], ended: Callable[[int, int, str], None]) -> None:
        self.step = step
        self._ended = ended
        self._seen: int | None = None

    def trials(self, ledger: Ledger) -> None:
        """Say how many trials are in and which is best; the first word is only of those from before."""
        states = [trial for trial in ledger.trials() if trial.loss is not None or trial.error]
        best = ledger.best()
        said = f"best {best.loss:.4f} (trial {best.number})" if best and best.loss is not None else "none has a loss yet"
        count = len(ledger.known)
        if self._seen is None and count:
            self.step(f"going on after {count} of {ledger.legs} legs, {said}")
        elif count:
            self._ended(count, ledger.legs, f"{len(states)} trials, {said}")
        self._seen = count


@contextmanager
def _progress() -> Iterator[_Told]:
    """A bar with the best so far on a terminal, plain lines elsewhere."""
    if not sys.stderr.isatty():
        with output.progress("sweep") as step:
            yield _Told(step, lambda count, of, said: step(f"leg {count} of {of}, {said}"))
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("sweep", total=None)
        yield _Told(
            lambda said: bar.update(task, description=f"sweep: {said}"),
            lambda count, of, said: bar.update(task, completed=count, total=of, description=f"sweep: {said}"),
        )
