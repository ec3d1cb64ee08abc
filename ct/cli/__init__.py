"""The `ct` command. Each command parses, calls one function of a lower floor and prints; nothing is decided here."""

from __future__ import annotations

import typer

from ct.cli import auditing, changing, features, flags, judging, reading, rollout, serving_api, sweeping, tables, tokens

app = typer.Typer(
    name="ct",
    help="Continuous training on Ray: from arriving shards to a model that is proven, served by weight, watched and retrained.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for command in (
    changing.init,
    reading.check,
    reading.plan,
    changing.ingest,
    changing.train,
    sweeping.sweep,
    judging.evaluate,
    judging.card,
    changing.deploy,
    changing.predict,
    changing.label,
    reading.drift,
    changing.watch,
    serving_api.api,
    features.materialize,
    features.skew,
    features.features,
    reading.status,
    reading.why,
    auditing.reproduce,
    auditing.sign,
    tables.tables,
    tables.maintain,
    tables.erase,
):
    app.command()(command)
app.add_typer(rollout.app, name="rollout")
app.add_typer(tokens.app, name="token")
app.add_typer(flags.app, name="flag")


def main() -> None:
    """The console script's entry."""
    app()
