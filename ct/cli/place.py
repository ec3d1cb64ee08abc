"""The options every command shares, and what they lead to: settings, pipeline, journal, actor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ct.control.act import Actor
    from ct.pipeline import Pipeline
    from ct.settings import Settings
    from ct.store.journal import Journal

Root = Annotated[str | None, typer.Option("--root", help="The project's folder (default: CT_ROOT, else here).")]
PipelineFile = Annotated[str | None, typer.Option("--pipeline", "-p", help="FILE.py or FILE.py:NAME (default: ct.toml).")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done and change nothing.")]


def settings(root: str | None, pipeline: str | None = None) -> Settings:
    """The project's settings."""
    from ct.settings import load

    return load(root, pipeline=pipeline)


def declared(root: str | None, pipeline: str | None) -> tuple[Settings, Pipeline]:
    """The settings and the pipeline they name."""
    from ct.pipeline import load

    place = settings(root, pipeline)
    path, _, name = place.pipeline.partition(":")
    return place, load(f"{place.root / path}:{name}" if name else str(place.root / path))


def name_and_journal(root: str | None, pipeline: str | None) -> tuple[str, Journal]:
    """The pipeline's name and the journal."""
    from ct.store.journal import Journal

    place, line = declared(root, pipeline)
    return line.name, Journal(place.database)


@contextmanager
def actor(root: str | None, pipeline: str | None) -> Iterator[Actor]:
    """The one who carries things out; closed afterwards."""
    from ct.control.act import Actor

    place, line = declared(root, pipeline)
    act = Actor(line, place)
    try:
        yield act
    finally:
        act.close()
