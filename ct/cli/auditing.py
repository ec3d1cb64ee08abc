"""Commands of an auditor: reproduce a version, sign one. Each has --json or --dry-run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ct.cli import output
from ct.cli.place import AsJson, DryRun, PipelineFile, Root, actor, declared

if TYPE_CHECKING:
    from ct.control.reproducing import Answer


def reproduce(
    version: str,
    root: Root = None,
    pipeline: PipelineFile = None,
    workers: Annotated[int, typer.Option(min=0, help="Ray Train workers; any number gives the same bytes.")] = 0,
    tolerance: Annotated[
        float, typer.Option(min=0.0, help="So far may a golden row's score lie off under another numeric contract.")
    ] = 0.01,
    dry_run: DryRun = False,
    json: AsJson = False,
) -> None:
    """Train VERSION again from its recorded code and inputs. Exit code 0: identical, 3: within tolerance, 4: an input diverged."""
    with output.errors():
        from ct.control import report, reproducing

        place, line = declared(root, pipeline)
        here = report.place(place, line)
        if dry_run:
            output.line(f"would train {version} of {line.name} again in a scratch folder, and record the outcome")
            return
        with output.progress(f"reproduce {version}") as step:
            answer = reproducing.reproduce(here, version, workers=workers, tolerance=tolerance, on_step=step)
        output.show(answer.to_json(), json, lambda: _answer(answer))
        if answer.exit_code:
            raise typer.Exit(answer.exit_code)


def _answer(answer: Answer) -> None:
    output.line(f"{answer.version} ({answer.run}): {answer.outcome}, in {answer.seconds:.0f} s")
    for title, found in (("inputs that differ", answer.differs), ("numeric contract", answer.contract)):
        if found:
            output.table(title, ("what", "recorded", "now"), ((d.what, d.recorded[:24], d.found[:40]) for d in found))
    if answer.gaps and answer.outcome != "identical":
        output.table("largest differences", ("of", "by"), ((name, f"{gap:.2e}") for name, gap in answer.gaps.items()))
    if answer.files:
        equal = sum(answer.files.values())
        other = ", ".join(name for name, same in answer.files.items() if not same)
        output.line(f"{equal} of {len(answer.files)} files are equal" + (f"; not {other}" if other else ""))
    for note in answer.notes:
        output.line(f"note: {note}")


def sign(
    version: str,
    reason: Annotated[str, typer.Option(help="Why these files may be trusted; it is journaled.")],
    root: Root = None,
    pipeline: PipelineFile = None,
    dry_run: DryRun = False,
) -> None:
    """Sign the files of a registered VERSION with this machine's key: for one that was made elsewhere, or signed by a key that is gone."""
    with output.errors(), actor(root, pipeline) as act:
        from ct.registry import versions

        known = versions.get(act.journal, act.pipeline.name, version)
        if dry_run:
            output.line(f"would sign the files of {version}, manifest {known.manifest}")
            return
        key = versions.sign(act.journal, act.artifacts, act.pipeline.name, known, reason=reason)
        output.line(f"{version} is signed by the key {key}")
