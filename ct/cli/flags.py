"""`ct flag`: set and list an endpoint's feature flags."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from ct.cli import output
from ct.cli.place import AsJson, DryRun, PipelineFile, Root, declared

app = typer.Typer(help="Switch parts of an endpoint on and off, without a deploy.", no_args_is_help=True, rich_markup_mode=None)


@app.command("set")
def set_(
    name: Annotated[str, typer.Argument(help="canary, shadow, log, batching, or own.NAME.")],
    value: Annotated[str, typer.Argument(help="on, off, durable, fast; JSON or text for an own flag, null to take it away.")],
    reason: Annotated[str, typer.Option(help="Why; it is journaled.")] = "",
    root: Root = None,
    pipeline: PipelineFile = None,
    json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Set one flag. Replicas obey within two seconds; the journal keeps who and why."""
    with output.errors():
        from ct.registry import flags
        from ct.store.journal import Journal

        place, line = declared(root, pipeline)
        said = flags.checked(name, _value(value) if name.startswith(flags.OWN) else value)
        if dry_run:
            output.show(
                {"would_set": {name: said}}, json, lambda: output.line(f"would set {name} of {line.name} to {_shown(said)}")
            )
            return
        journal = Journal(place.database, actor=os.environ.get("USER", "ct"))
        try:
            found = flags.set_(journal, line.name, name, said, reason=reason)
        finally:
            journal.close()
        output.show(found.to_json(), json, lambda: output.line(f"{name} of {line.name} is {_shown(said)}"))


@app.command("list")
def listed(root: Root = None, pipeline: PipelineFile = None, json: AsJson = False) -> None:
    """Show every flag that is in force."""
    with output.errors():
        from ct.registry import flags
        from ct.store.journal import Journal

        place, line = declared(root, pipeline)
        journal = Journal(place.database)
        try:
            found = flags.current(journal, line.name).to_json()
        finally:
            journal.close()
        output.show(
            found,
            json,
            lambda: output.table(
                f"flags of {line.name}", ("flag", "value"), ((name, _shown(value)) for name, value in found.items())
            ),
        )


def _value(text: str) -> Any:
    import json

    def never(word: str) -> Any:
        raise ValueError(word)

    try:
        return json.loads(text, parse_constant=never)
    except ValueError:
        return text


def _shown(value: Any) -> str:
    import json

    if isinstance(value, bool):
        return "on" if value else "off"
    return value if isinstance(value, str) else json.dumps(value)
