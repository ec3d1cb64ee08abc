"""`ct rollout`: start, watch and steer a rollout by hand."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ct.cli import output, rollout_view
from ct.cli.place import AsJson, DryRun, PipelineFile, Root, actor, declared, name_and_journal

TAKEN_BACK = 3
"""How `watch` ends where the candidate did not become stable."""
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
        try:
            data = rollout_view.data(name, journal)
        finally:
            journal.close()
        output.show(data, json, lambda: rollout_view.view(name, data))


@app.command()
def watch(
    root: Root = None,
    pipeline: PipelineFile = None,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Look once and end.")] = False,
) -> None:
    """Show a rollout until it ends: a live table on a terminal, a line for each change elsewhere.

    Ends with 0 when the candidate is stable, and with 3 when it was taken back. Ctrl-C ends the looking, not the rollout.
    """
    with output.errors(), actor(root, pipeline) as act:
        from ct.cli.rollout_watch import follow

        try:
            outcome = follow(act, every=every, once=once)
        except KeyboardInterrupt:
            typer.echo("the rollout goes on; `ct rollout abort` takes its traffic back", err=True)
            raise typer.Exit(130) from None
        if outcome not in ("", "promoted"):
            raise typer.Exit(TAKEN_BACK)


@app.command()
def history(root: Root = None, pipeline: PipelineFile = None, json: AsJson = False) -> None:
    """What was live when, and why."""
    with output.errors():
        from ct.registry import routes

        name, journal = name_and_journal(root, pipeline)
        rows: list[dict[str, Any]] = [
            {
                "at": entry.at.isoformat(timespec="milliseconds"),
                "epoch": entry.route.epoch,
                "stable": entry.route.stable.version,
                "canary": entry.route.canary.version if entry.route.canary else None,
                "share": entry.route.share,
                "shares": {arm: weight / routes.WHOLE for arm, weight in entry.route.shares.items()},
                "cause": entry.cause,
            }
            for entry in routes.history(journal, name)
        ]
        columns = ("at", "epoch", "stable", "canary", "shares", "cause")
        shown = ({**row, "shares": ", ".join(f"{arm} {share:.4g}" for arm, share in row["shares"].items())} for row in rows)
        output.show(
            rows,
            json,
            lambda: output.table(f"routes of {name}", columns, ([row[column] for column in columns] for row in shown)),
        )


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
    reason: Annotated[str, typer.Option(help="Why, for the journal.")] = "",
    dry_run: DryRun = False,
) -> None:
    """Take the canary's traffic back now."""
    if not offline or dry_run:
        _act("abort", root, pipeline, dry_run, reason)
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
def set_weight(
    weight: Annotated[
        list[str], typer.Argument(help="PERCENT for the one candidate, or VERSION=PERCENT for each that changes.")
    ],
    root: Root = None,
    pipeline: PipelineFile = None,
    dry_run: DryRun = False,
) -> None:
    """Give candidates so many percent of the traffic each, and pause."""
    with output.errors():
        given = _percents(weight)
        if dry_run:
            output.line(f"would set-weight {' '.join(weight)}")
            return
        with actor(root, pipeline) as act:
            from ct.control import rollouts

            output.line(rollouts.set_weights(act, given) if "" not in given else act.set_weight(given[""]))


def _percents(told: list[str]) -> dict[str, int]:
    """The percentage by version; by "" where one stands alone. Raises InvalidRequest."""
    from ct.errors import InvalidRequest

    found: dict[str, int] = {}
    for text in told:
        name, _, percent = text.rpartition("=")
        if not percent.isdecimal() or int(percent) > 100 or name in found or (not name and len(told) > 1):
            expected = "a whole number from 0 to 100, or VERSION=NUMBER once for each candidate"
            raise InvalidRequest(f"the weight {text[:80]!r}", expected, "such as `25`, or `v2=20 v3=10`")
        found[name] = int(percent)
    return found
