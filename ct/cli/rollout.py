"""`ct rollout`: start, watch and steer a rollout by hand."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ct.cli import output
from ct.cli.place import AsJson, DryRun, PipelineFile, Root, actor, declared, name_and_journal

if TYPE_CHECKING:
    from ct.store.journal import Journal

app = typer.Typer(help="Give a candidate its traffic, or take it back.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def start(
    version: Annotated[list[str], typer.Argument(help="The candidate, or several for an A/B test.")],
    root: Root = None,
    pipeline: PipelineFile = None,
    override: Annotated[str, typer.Option(help="Reason to overrule a gate that did not pass; it is journaled.")] = "",
    apart: Annotated[bool, typer.Option("--apart", help="Run it in an application of its own.")] = False,
    dry_run: DryRun = False,
) -> None:
    """Begin a rollout of VERSION by the pipeline's plan."""
    with output.errors(), actor(root, pipeline) as act:
        names = ", ".join(version)
        if dry_run:
            output.line(f"would start a rollout of {names} against {act.stable_name()}")
            return
        rollout = act.start_rollout(*version, apart=apart, override=override)
        held = f", and is {rollout.shown}: {rollout.cause}" if rollout.cause else ""
        output.line(f"rollout {rollout.id} of {names} against {rollout.baseline} has begun{held}")


@app.command()
def status(root: Root = None, pipeline: PipelineFile = None, json: AsJson = False) -> None:
    """The route in force and the rollout in progress with its evidence."""
    with output.errors():
        name, journal = name_and_journal(root, pipeline)
        data = _data(name, journal)
        output.show(data, json, lambda: _view(name, data))


@app.command()
def watch(
    root: Root = None,
    pipeline: PipelineFile = None,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Look once and end.")] = False,
) -> None:
    """Show a rollout until it ends: a live table on a terminal, a line for each change elsewhere."""
    with output.errors():
        name, journal = name_and_journal(root, pipeline)
        last = ""
        while True:
            data = _data(name, journal)
            line = _line(name, data)
            if sys.stdout.isatty():
                typer.echo("\x1b[2J\x1b[H", nl=False)
                _view(name, data)
            elif line != last:
                output.line(line)
            last = line
            if once or not data["rollout"] or data["rollout"]["phase"] == "ended":
                return
            time.sleep(every)


@app.command()
def history(root: Root = None, pipeline: PipelineFile = None, json: AsJson = False) -> None:
    """What was live when, and why."""
    with output.errors():
        from ct.registry import routes

        name, journal = name_and_journal(root, pipeline)
        rows = [
            {
                "at": entry.at.isoformat(timespec="milliseconds"),
                "epoch": entry.route.epoch,
                "stable": entry.route.stable.version,
                "canary": entry.route.canary.version if entry.route.canary else None,
                "share": entry.route.share,
                "cause": entry.cause,
            }
            for entry in routes.history(journal, name)
        ]
        output.show(
            rows,
            json,
            lambda: output.table(f"routes of {name}", tuple(rows[0]) if rows else (), (tuple(r.values()) for r in rows)),
        )


def _data(name: str, journal: Journal) -> dict[str, Any]:
    """The route, and the rollout in progress or else the last one."""
    from ct.registry import routes
    from ct.rollout import state

    route, told = routes.current(journal, name), state.history(journal, name)
    said = route.to_json() if route else None
    if said:
        said.pop("key")
    shares = {arm: weight / routes.WHOLE for arm, weight in route.shares.items()} if route else {}
    last = asdict(told[-1]) | {"shown": told[-1].shown} if told else None
    return {"route": said, "shares": shares, "rollout": last}


def _line(name: str, data: dict[str, Any]) -> str:
    route, rollout = data["route"], data["rollout"]
    if route is None:
        return f"{name} is not deployed"
    left = [share for share in route["candidates"] if not share["out"]]
    names = [route["stable"]["version"], *(share["arm"]["version"] for share in left)]
    shares = ", ".join(
        f"{arm} {version} {share:.4g}" for (arm, share), version in zip(data["shares"].items(), names, strict=True)
    )
    said = f"; rollout {rollout['id']} {rollout['shown']} {rollout['cause']}" if rollout else ""
    return f"{name}: epoch {route['epoch']}, {shares}{said}".rstrip()


def _view(name: str, data: dict[str, Any]) -> None:
    output.line(_line(name, data))
    if not data["rollout"]:
        return
    output.table(
        "evidence",
        ("metric", "e-value", "alarm at", "stable bad/n", "canary bad/n"),
        (
            (
                e["metric"],
                e["e_value"],
                e["limit"],
                f"{e['stable_bad']}/{e['stable_n']}",
                f"{e['canary_bad']}/{e['canary_n']}",
            )
            for e in data["rollout"]["evidence"]
        ),
    )
    for said in _beside(data["rollout"]):
        output.line(said)


def _beside(rollout: dict[str, Any]) -> list[str]:
    """What the latest look says beside its evidence: the split, what answers are worth, the segments."""
    from ct.rollout.segments import Segment
    from ct.rollout.worth import Gain

    said = []
    if (split := rollout["split"]) and split["n"]:
        said.append(
            f"split: the canary got {split['canary']:,} of {split['n']:,} units, {split['ratio']:.2f} of what its weights promise"
        )
    said += [str(Gain(**_fields(gain))) for gain in rollout["gains"]]
    if segments := rollout["segments"]:
        harmed = [str(Segment(**_fields(row))) for row in segments["rows"] if row["harmed"]]
        said.append(f"segments: {len(harmed)} harmed of {segments['judged']:,} pairs of a metric and a value")
        said += [f"harmed: {row}" for row in harmed]
    return said


def _fields(told: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in told.items() if name != "kind"}


def _act(verb: str, root: str | None, pipeline: str | None, dry_run: bool, *args: object) -> None:
    with output.errors(), actor(root, pipeline) as act:
        if dry_run:
            output.line(f"would {verb} {' '.join(str(arg) for arg in args if arg is not False)}".rstrip())
            return
        output.line(str(getattr(act, verb.replace("-", "_"))(*args)))


@app.command()
def pause(root: Root = None, pipeline: PipelineFile = None, dry_run: DryRun = False) -> None:
    """Keep the weights as they are until `resume`."""
    _act("pause", root, pipeline, dry_run)


@app.command()
def resume(root: Root = None, pipeline: PipelineFile = None, dry_run: DryRun = False) -> None:
    """Go on after `pause`, at the step's own weight."""
    _act("resume", root, pipeline, dry_run)


@app.command()
def promote(
    root: Root = None,
    pipeline: PipelineFile = None,
    full: Annotated[bool, typer.Option("--full", help="Make the canary stable now, whatever steps are left.")] = False,
    version: Annotated[str, typer.Option(help="Which of several candidates becomes stable.")] = "",
    dry_run: DryRun = False,
) -> None:
    """Take the plan's next step now; after the last one the canary is stable."""
    _act("promote", root, pipeline, dry_run, full, version)


@app.command()
def abort(
    root: Root = None,
    pipeline: PipelineFile = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Without the database: the replicas of this node obey an order on its disk.")
    ] = False,
    reason: Annotated[str, typer.Option(help="Why, for the journal; with --offline.")] = "",
    dry_run: DryRun = False,
) -> None:
    """Take the canary's traffic back now."""
    if not offline or dry_run:
        _act("abort", root, pipeline, dry_run)
        return
    with output.errors():
        from ct.registry import pinned

        place, line = declared(root, pipeline)
        order = pinned.abort_offline(place, line.name, cause=reason)
        output.line(f"ordered for epoch {order.epoch}; `ct watch` journals it once the database answers")


@app.command()
def retry(root: Root = None, pipeline: PipelineFile = None, dry_run: DryRun = False) -> None:
    """Start the last rollout again that was taken back."""
    with output.errors(), actor(root, pipeline) as act:
        from ct.control import rollouts

        if dry_run:
            output.line("would retry the last rollout")
            return
        rollout = rollouts.retry(act)
        output.line(f"rollout {rollout.id} of {', '.join(rollout.versions)} against {rollout.baseline} has begun")


@app.command()
def undo(
    root: Root = None,
    pipeline: PipelineFile = None,
    to: Annotated[str, typer.Option(help="Version to go back to; the previous stable one by default.")] = "",
    dry_run: DryRun = False,
) -> None:
    """Make an earlier version stable again at once."""
    _act("undo", root, pipeline, dry_run, to)


@app.command("set-weight")
def set_weight(percent: int, root: Root = None, pipeline: PipelineFile = None, dry_run: DryRun = False) -> None:
    """Give the canary PERCENT of the traffic and pause."""
    _act("set-weight", root, pipeline, dry_run, percent)
