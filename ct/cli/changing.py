"""Commands that change something: init, ingest, train, deploy, predict, label, watch. Each has --dry-run where it matters."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ct.cli import output
from ct.cli.place import AsJson, DryRun, PipelineFile, Root, actor, settings
from ct.errors import InvalidSettings
from ct.settings import Workers, workers_of

if TYPE_CHECKING:
    from ct.control.act import Actor
    from ct.data.ingest import Outcome


def init(
    folder: Annotated[Path, typer.Argument(help="The new project's folder.")] = Path("."),
    dry_run: DryRun = False,
) -> None:
    """Write ct.toml and a first pipeline file, and make a pair of keys for signing models; existing files are left alone."""
    with output.errors():
        from ct.control.template import files
        from ct.store import signing

        fresh = not (folder / "ct.toml").exists()
        key = signing.make() if fresh and not dry_run else ""
        if key:
            output.line(f"made the private key {signing.folder() / signing.key_id(key)}; keep it, and keep it secret")
        elif fresh:
            output.line(f"would make a pair of keys in {signing.folder()}")
        for name, text in files(key).items():
            target = folder / name
            if target.exists():
                output.line(f"{target} exists, left alone")
            elif dry_run:
                output.line(f"would write {target}")
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(text, encoding="utf-8")
                output.line(f"wrote {target}")


def ingest(
    table: str,
    files: Annotated[list[Path] | None, typer.Argument()] = None,
    root: Root = None,
    pipeline: PipelineFile = None,
    new: Annotated[bool, typer.Option("--new", help="Take what is new at the table's source.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="With --new: so many arrivals at most.")] = None,
    after: Annotated[
        str,
        typer.Option(
            help="With --new: count this snapshot or version of the source, and all before it, as taken; it is journaled."
        ),
    ] = "",
    dry_run: DryRun = False,
    json: AsJson = False,
) -> None:
    """Check FILES, or with --new what TABLE's source has, and publish each as one shard or quarantine it. Exit code 2 when one was quarantined."""
    if bool(files) == new:
        raise typer.BadParameter("name files to ingest, or say --new")
    if not new and (limit or after):
        raise typer.BadParameter("--limit and --after go with --new")
    with output.errors(), actor(root, pipeline) as act:
        if new:
            _ingest_new(act, table, limit, after, dry_run, json)
            return
        if dry_run:
            act.table(table)
            named = [str(file) for file in files or ()]
            output.show(named, json, lambda: output.line("\n".join(f"would ingest {file} into {table}" for file in named)))
            return
        outcomes = []
        with output.progress(f"ingest {table}") as step:
            for file in files or ():
                step(file.name)
                outcomes.append(act.ingest(table, file))
        _show_shards(outcomes, json)
        _fail_if_quarantined(outcomes)


def _ingest_new(act: Actor, table: str, limit: int | None, after: str, dry_run: bool, json: bool) -> None:
    """What was taken is shown even when the source cannot be read on; its fault is raised after that."""
    from ct.errors import CtError

    declared, taker = act.table(table), act.looks.taker
    if dry_run and after:
        output.line(f"would go on after {taker.locate(declared, after)}")
        return
    if dry_run:
        found = taker.pending(declared)[:limit]

        def view() -> None:
            output.table("new", ("arrival", "bytes", "position"), ((item.name, item.size, item.position) for item in found))

        output.show([{"name": item.name, "bytes": item.size, "position": item.position} for item in found], json, view)
        return
    if after:
        taker.skip(declared, after)
    outcomes: list[Outcome] = []
    fault: CtError | None = None
    with output.progress(f"ingest {table}") as step:
        try:
            for outcome in taker.take_new(declared, limit=limit, say=step):
                outcomes.append(outcome)
        except CtError as error:
            fault = error
    if outcomes or not fault:
        _show_shards(outcomes, json)
    if fault:
        raise fault
    _fail_if_quarantined(outcomes)


def _show_shards(outcomes: list[Outcome], json: bool) -> None:
    def view() -> None:
        columns = ("shard", "outcome", "rows", "set aside")
        output.table("shards", columns, ((o.shard, o.kind, o.rows, o.aside) for o in outcomes))
        for outcome in outcomes:
            for reason in (*outcome.reasons, *outcome.warnings):
                output.line(f"{outcome.shard}: {reason.check}: {reason.found}")

    output.show([outcome.to_json() for outcome in outcomes], json, view)


def _fail_if_quarantined(outcomes: list[Outcome]) -> None:
    if any(outcome.kind == "quarantined" for outcome in outcomes):
        raise typer.Exit(2)


def _workers(text: str | None) -> Workers | None:
    try:
        return None if text is None else workers_of(text)
    except ValueError as error:
        raise InvalidSettings(f"--workers {text}", str(error), "for example --workers 2, or --workers 1:4") from None


def train(
    root: Root = None,
    pipeline: PipelineFile = None,
    workers: Annotated[
        str | None, typer.Option(help="Ray Train workers: 0 one local process, 2 a kept group, 1:4 elastic.")
    ] = None,
    cause: Annotated[str, typer.Option(help="Why, for the journal.")] = "asked for by hand",
    seeds: Annotated[
        int, typer.Option(min=1, max=100, help="Train with so many seeds and show how far the metrics spread.")
    ] = 1,
    accept_labels: Annotated[
        str, typer.Option(help="Why labels that jumped since the champion's training are right; it is journaled.")
    ] = "",
    dry_run: DryRun = False,
    json: AsJson = False,
) -> None:
    """Train on all published shards, evaluate against the champion, register the version with its verdict."""
    with output.errors(), actor(root, pipeline) as act:
        from ct.control import runs

        if dry_run:
            inputs = act.run_inputs()
            counts = ", ".join(f"{len(digests)} of {table}" for table, digests in inputs["shards"].items())
            output.line(f"would train on {counts} shards with {inputs['params']}, {seeds} seed(s)")
            return
        with output.progress("train") as step:
            more: dict[str, Any] = {"seeds": seeds} if seeds > 1 else {}
            if accept_labels.strip():
                more["accepts"] = {"labels": accept_labels}
            version = act.train(act.start_run(cause, **more), workers=_workers(workers), on_step=step)
        found = runs.get(act.journal, act.pipeline.name, version.run)
        spread = found.facts.get("seeds") if found else None
        data = {
            "version": version.name,
            "verdict": version.verdict,
            "metrics": dict(version.metrics),
            "reasons": version.reasons,
            **({"seeds": spread} if spread else {}),
        }

        def view() -> None:
            output.table(version.name, ("metric", "value"), version.metrics.items())
            if spread:
                rows = ((name, found["mean"], found["deviation"]) for name, found in spread["metrics"].items())
                output.table(f"seeds {', '.join(map(str, spread['seeds']))}", ("metric", "mean", "deviation"), rows)
            output.line(f"verdict: {version.verdict}")
            for reason in version.reasons:
                output.line(f"  {reason}")

        output.show(data, json, view)


def deploy(
    version: Annotated[str, typer.Argument(help="Version to serve first; the newest cleared one by default.")] = "",
    root: Root = None,
    pipeline: PipelineFile = None,
    down: Annotated[bool, typer.Option("--down", help="Stop the endpoint and the local Ray that ct started.")] = False,
    override: Annotated[str, typer.Option(help="Reason to overrule a gate that did not pass; it is journaled.")] = "",
    dry_run: DryRun = False,
) -> None:
    """Start the endpoint. A later version gets its traffic by `ct rollout start`."""
    with output.errors(), actor(root, pipeline) as act:
        if dry_run:
            output.line("would stop the endpoint" if down else f"would serve {version or 'the newest cleared version'}")
            return
        if down:
            output.line(act.down())
            return
        if override and version:
            act.overrule(version, override)
        with output.progress("deploy") as step:
            route = act.deploy(version, on_step=step)
        output.line(f"{route.stable.version} answers at {act.settings.endpoint}/predict (epoch {route.epoch})")


def predict(
    source: Annotated[
        str,
        typer.Argument(help="A JSON object, or a file of JSON (one object, a list, or JSON lines); - reads standard input."),
    ],
    root: Root = None,
) -> None:
    """Ask the endpoint for predictions."""
    with output.errors():
        from ct.control.calls import post

        answer = post(settings(root), "/predict", {"instances": _rows(source)})
        output.line(jsonlib.dumps(answer, indent=2))


def label(
    source: Annotated[str, typer.Argument(help="JSON objects with prediction_id and label or value, as for predict.")],
    root: Root = None,
) -> None:
    """Tell the endpoint what turned out to be true."""
    with output.errors():
        from ct.control.calls import post

        answer = post(settings(root), "/labels", {"labels": _rows(source)})
        output.line(jsonlib.dumps(answer, indent=2))


def _rows(source: str) -> list[dict[str, Any]]:
    from ct.errors import InvalidRequest

    text = typer.get_text_stream("stdin").read() if source == "-" else source
    if source != "-" and not source.lstrip().startswith(("{", "[")):
        path = Path(source)
        if not path.is_file():
            raise InvalidRequest(f"{source!r} is neither JSON nor a file", "a JSON object or a path", "check the spelling")
        text = path.read_text(encoding="utf-8")
    try:
        found = jsonlib.loads(text)
    except jsonlib.JSONDecodeError:
        try:
            found = [jsonlib.loads(row) for row in text.splitlines() if row.strip()]
        except jsonlib.JSONDecodeError as error:
            raise InvalidRequest(f"the input is not JSON: {error}", "an object, a list or JSON lines", "mend it") from None
    return found if isinstance(found, list) else [found]


def watch(
    root: Root = None,
    pipeline: PipelineFile = None,
    once: Annotated[bool, typer.Option("--once", help="Stop when there is nothing left to do.")] = False,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between looks.")] = 1.0,
    dry_run: DryRun = False,
) -> None:
    """Run the loop: take arriving shards, retrain, roll out, watch. Killed anywhere, it goes on where it was."""
    if dry_run:
        from ct.cli.reading import plan

        plan(root, pipeline, False)
        return
    with output.errors(), actor(root, pipeline) as act:
        from ct.control.loop import run

        run(act, every=every, once=once, say=output.line)
