"""`ct token`: make, list, rotate and revoke the tokens that open the endpoint and the control API. A secret is printed once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ct.cli import output
from ct.cli.place import AsJson, DryRun, Root, settings

if TYPE_CHECKING:
    from ct.store.journal import Journal

app = typer.Typer(help="Who may do what: tokens with a role, kept as hashes.", no_args_is_help=True, rich_markup_mode=None)
Expires = Annotated[str, typer.Option(help="How long it is good for, such as 90d; for ever when empty.")]
Out = Annotated[
    Path | None, typer.Option("--out", help="Write the secret to this file, for its owner alone, instead of printing it.")
]


@contextmanager
def _journal(root: str | None) -> Iterator[Journal]:
    import os

    from ct.store.journal import Journal

    found = Journal(settings(root).database, actor=os.environ.get("USER", "ct"))
    try:
        yield found
    finally:
        found.close()


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Who will hold it: a-z, 0-9 and -.")],
    role: Annotated[str, typer.Option(help="predict, feedback, read, operate or admin.")],
    expires: Expires = "",
    out: Out = None,
    root: Root = None,
    dry_run: DryRun = False,
) -> None:
    """Make a token. Its secret is shown this once; the journal keeps its hash."""
    with output.errors():
        from ct.governance import access

        until = _until(expires)
        if dry_run:
            output.line(f"would make a token {name!r} with the role {role}, good until {until or 'it is revoked'}")
            return
        with _journal(root) as journal:
            token, secret = access.create(journal, name, role, until)
        _give(secret, out)
        _say(f"{token.name} ({token.role}), good until {token.expires or 'it is revoked'}")


@app.command("list")
def listed(root: Root = None, json: AsJson = False) -> None:
    """Show every token, also those that have ended; no secret and no hash."""
    with output.errors():
        from ct.clock import SystemClock
        from ct.governance import access

        now = SystemClock().now()
        with _journal(root) as journal:
            found = [
                {
                    "name": token.name,
                    "role": token.role,
                    "id": token.id,
                    "state": "live" if token.live(now) else "revoked" if token.revoked else "expired",
                    "created": token.created,
                    "expires": token.expires,
                    "revoked": token.revoked,
                }
                for token in access.tokens(journal)
            ]
        columns = ("name", "role", "id", "state", "created", "expires", "revoked")
        output.show(
            found, json, lambda: output.table("tokens", columns, ([_cell(row[name]) for name in columns] for row in found))
        )


@app.command()
def rotate(
    name: str,
    overlap: Annotated[str, typer.Option(help="How long the old secret is good for yet; 0 ends it at once.")] = "1h",
    expires: Annotated[
        str, typer.Option(help="How long the new one is good for; as long as the old one was, when empty.")
    ] = "",
    out: Out = None,
    root: Root = None,
    dry_run: DryRun = False,
) -> None:
    """Make a new secret for NAME; callers change over while both are good."""
    with output.errors():
        from ct.clock import duration
        from ct.governance import access

        span = timedelta(0) if overlap.strip() == "0" else duration(overlap)
        until = _until(expires)
        if dry_run:
            output.line(f"would make a new secret for {name!r}; the old one would be good for {overlap} more")
            return
        with _journal(root) as journal:
            token, secret = access.rotate(journal, name, overlap=span, expires=until)
        _give(secret, out)
        _say(f"{token.name} ({token.role}): the old secret is good for {overlap} more")


@app.command()
def revoke(
    name: str,
    reason: Annotated[str, typer.Option(help="Why; it is journaled.")] = "",
    root: Root = None,
    dry_run: DryRun = False,
) -> None:
    """End every secret of NAME. Replicas refuse it within about two seconds."""
    with output.errors():
        from ct.governance import access

        if dry_run:
            output.line(f"would revoke {name!r}")
            return
        with _journal(root) as journal:
            access.revoke(journal, name, reason=reason)
        output.line(f"{name} opens nothing any more")


def _until(text: str) -> datetime | None:
    from ct.clock import SystemClock, duration

    return SystemClock().now() + duration(text) if text else None


def _give(secret: str, out: Path | None) -> None:
    """The secret alone on standard output, so that it can be piped; or in a file of mode 0600."""
    if out is None:
        output.line(secret)
        return
    from ct.governance import secretfiles

    secretfiles.write(out, secret + "\n")


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _cell(value: object) -> object:
    return value.isoformat(timespec="seconds") if isinstance(value, datetime) else value
