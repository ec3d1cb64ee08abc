"""`ct rollout`: start, watch and steer a rollout by hand."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from ct.cli import output
from ct.cli.place import AsJson, DryRun, PipelineFile, Root, actor, name_and_journal

app = typer.Typer(help="Give a candidate its traffic, or take it back.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def start(
    version: str,
    root: Root = None,
    pipeline: PipelineFile = None,
    override: Annotated[str, typer.Option(help="Reason to overrule a gate that did not pass; it is journaled.")] = "",
    dry_run: DryRun = False,
) -> None:
    """Begin a rollout of VERSION by the pipeline's plan."""
    with output.errors(), actor(root, pipeline) as act:
        if dry_run:
            output.line(f"would start a rollout of {version} against {act.stable_name()}")
            return
        if override:
            act.overrule(version, override)
        rollout = act.start_rollout(version)
        output.line(f"rollout {rollout.id} of {rollout.version} against {rollout.baseline} has begun")


@app.command()
def status(root: Root = None, pipeline: PipelineFile = None, json: AsJson = False) -> None:
    """The route in force and the rollout in progress with its evidence."""
    with output.errors():
        from ct.registry import routes
        from ct.rollout import state

        name, journal = name_and_journal(root, pipeline)
        route, active = routes.current(journal, name), state.active(journal, name)
        data = {"route": route.to_json() if route else None, "rollout": asdict(active) if active else None}
        if data["route"]:
            data["route"].pop("key")

        def view() -> None:
            if route is None:
                output.line(f"{name} is not deployed")
                return
            canary = f", canary {route.canary.version} {route.share:.0%}" if route.canary else ""
            output.line(f"{name}: epoch {route.epoch}, stable {route.stable.version}{canary}")
            if active:
                output.line(f"rollout {active.id}: {active.phase} {active.cause}")
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
                        for e in active.evidence
                    ),
                )

        output.show(data, json, view)


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


def _act(verb: str, root: str | None, pipeline: str | None, dry_run: bool, *args: object) -> None:
    with output.errors(), actor(root, pipeline) as act:
        if dry_run:
            output.line(f"would {verb} {' '.join(map(str, args))}".rstrip())
            return
        output.line(str(getattr(act, verb.replace("-", "_"))(*args)))


@app.command()
def pause(root: Root = None, pipeline: PipelineFile = None, dry_run: DryRun = False) -> None:
    """Keep the weights as they are until `resume`."""
    _act("pause", root, pipeline, dry_run)


@app.command()
def resume(root: Root = None, pipeline: PipelineFile = None, dry_run: DryRun = False) -> None:
    """Go on after `pause`."""
    _act("resume", root, pipeline, dry_run)


@app.command()
def promote(root: Root = None, pipeline: PipelineFile = None, dry_run: DryRun = False) -> None:
    """Make the canary stable now."""
    _act("promote", root, pipeline, dry_run)


@app.command()
def abort(root: Root = None, pipeline: PipelineFile = None, dry_run: DryRun = False) -> None:
    """Take the canary's traffic back now."""
    _act("abort", root, pipeline, dry_run)


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
    """Give the canary PERCENT of the traffic."""
    _act("set-weight", root, pipeline, dry_run, percent)
