"""Commands that say what a version is worth: evaluate, card. Each has --json."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ct.cli import output
from ct.cli.place import AsJson, PipelineFile, Root, actor, declared


def evaluate(version: str, root: Root = None, pipeline: PipelineFile = None, json: AsJson = False) -> None:
    """Score VERSION and the champion on the newest mature window and give the gate's verdict. Changes nothing."""
    with output.errors(), actor(root, pipeline) as act:
        report = act.evaluate(version)

        def view() -> None:
            ours, champion = report.candidate.metrics, report.champion.metrics if report.champion else {}
            output.table(
                version,
                ("metric", version, "champion", "baseline"),
                (
                    (name, value, champion.get(name), ours.get(f"base_{name}"))
                    for name, value in ours.items()
                    if not name.startswith("base_") or name == "base_rate"
                ),
            )
            output.table(
                "gate",
                ("part", "outcome", "because"),
                ((found.part, found.outcome, found.reason) for found in report.verdict.findings),
            )
            output.line(f"judged on {report.candidate.rows:,} rows of {report.window}")
            for warning in report.verdict.warnings:
                output.line(f"warning: {warning}")
            output.line(f"verdict: {report.verdict.decision}")
            for reason in report.verdict.reasons:
                output.line(f"  {reason}")

        output.show(report.to_json(), json, view)


def card(
    version: str,
    root: Root = None,
    pipeline: PipelineFile = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Write Markdown to this file, or JSON where it ends in .json, and the plot beside it."),
    ] = None,
    json: AsJson = False,
) -> None:
    """The model card of VERSION: use, owner, data, features, metrics by slice, calibration, verdict, lineage, limits."""
    with output.errors():
        from ct.control import card as cards
        from ct.control import drawing, report

        place, line = declared(root, pipeline)
        found = cards.card(report.place(place, line), version)
        if out is None:
            output.show(found, json, lambda: output.line(drawing.markdown(found).rstrip()))
            return
        if json or out.suffix == ".json":
            _write(out, cards.to_json(found).encode())
            return
        drawn = drawing.plot(found)
        if drawn:
            _write(out.with_suffix(".svg"), drawn)
        _write(out, drawing.markdown(found, out.with_suffix(".svg").name if drawn else "").encode())


def _write(path: Path, data: bytes) -> None:
    from ct.errors import InvalidRequest

    try:
        path.write_bytes(data)
    except OSError as error:
        raise InvalidRequest(
            f"{path} cannot be written: {error.strerror}", "a file in a folder that is there", "choose another"
        ) from None
    output.line(f"wrote {path}")
