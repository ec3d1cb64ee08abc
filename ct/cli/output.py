"""How the command line speaks: tables on a terminal, JSON on request, one-line errors, progress bars where a person looks on."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer

from ct.errors import CtError

Step = Callable[[str], None]
WIDE = 160
"""Letters a line where no terminal says how wide it is."""


def show(data: Any, as_json: bool, view: Callable[[], None]) -> None:
    """Print `data` as JSON, or let `view` print it for a person."""
    if as_json:
        typer.echo(json.dumps(data, indent=2, default=str))
    else:
        view()


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table."""
    from rich.console import Console
    from rich.table import Column, Table

    cells = [[_cell(item) for item in row] for row in rows]
    short = all(len(row[0]) <= WIDE // 4 for row in cells if row)
    # What a row is about is not cut off, unless it is a sentence.
    heads = [Column(name, no_wrap=short and at == 0) for at, name in enumerate(columns)]
    grid = Table(*heads, title=title, title_justify="left", header_style="bold")
    for row in cells:
        grid.add_row(*row)
    Console(width=None if sys.stdout.isatty() else WIDE).print(grid)


def line(text: str) -> None:
    """Print one line."""
    typer.echo(text)


@contextmanager
def progress(title: str) -> Iterator[Step]:
    """A spinner with the current step on a terminal, plain lines elsewhere."""
    if not sys.stderr.isatty():
        yield lambda step: typer.echo(f"{title}: {step}", err=True)
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=Console(stderr=True), transient=True
    ) as bar:
        task = bar.add_task(title)
        yield lambda step: bar.update(task, description=f"{title}: {step}")


@contextmanager
def errors() -> Iterator[None]:
    """Turn an error of `ct` into its sentence and exit code 1."""
    try:
        yield
    except CtError as error:
        typer.echo(f"error: {error.found}", err=True)
        if error.expected:
            typer.echo(f"  expected: {error.expected}", err=True)
        if error.remedy:
            typer.echo(f"  do: {error.remedy}", err=True)
        raise typer.Exit(1) from None


def _cell(item: object) -> str:
    if isinstance(item, float):
        return f"{item:.4f}"
    if isinstance(item, int) and not isinstance(item, bool):
        return f"{item:,}"
    return "" if item is None else str(item)
