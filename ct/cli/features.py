"""Commands about features: materialize, skew, features. Each has --json."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from ct.cli import output
from ct.cli.place import AsJson, DryRun, PipelineFile, Root, declared


def materialize(
    root: Root = None,
    pipeline: PipelineFile = None,
    since: Annotated[
        str,
        typer.Option(
            help="Earliest event time of requests to come, such as 2024-05-01; the newest shard's beginning by default."
        ),
    ] = "",
    dry_run: DryRun = False,
    json: AsJson = False,
) -> None:
    """Fill the online store from published shards, so that requests find the history of their entities."""
    with output.errors():
        from ct.control import filling, report

        place, line = declared(root, pipeline)
        here, moment = report.place(place, line), _moment(since)
        if dry_run:
            kept = since or "the beginning of the newest shard"
            output.line(f"would fill the online store from published shards, for requests from {kept} on")
            return
        with output.progress("materialize") as step:
            stored = filling.materialize(here, since=moment, on_step=step)
        held = filling.sources(here)

        def view() -> None:
            output.line(f"{stored:,} new entries")
            output.table(
                "online store",
                ("source", "rows", "entities", "newest", "stored"),
                ((s["source"], s["rows"], s["entities"], s["newest"], s["stored"]) for s in held),
            )

        output.show({"stored": stored, "sources": held}, json, view)


def skew(
    root: Root = None,
    pipeline: PipelineFile = None,
    since: Annotated[str, typer.Option(help="Only predictions answered from then on, such as 2024-05-01.")] = "",
    last: Annotated[int | None, typer.Option(min=1, help="Only the newest so many predictions.")] = None,
    json: AsJson = False,
) -> None:
    """Compare features as predictions were made from them with the published shards, bit for bit. Exit code 2 when some differ."""
    with output.errors():
        from ct.control import report
        from ct.control import skew as skewing

        place, line = declared(root, pipeline)
        found = skewing.measure(report.place(place, line), since=_moment(since), last=last)

        def view() -> None:
            output.line(
                f"{found.compared:,} of {found.predictions:,} predictions compared, {found.pending:,} not yet comparable"
            )
            for version, reason in found.refused.items():
                output.line(f"{version} cannot be compared: {reason}")
            output.table(
                "features",
                ("feature", "compared", "equal", "late data", "too old to tell", "different", "share", "for example"),
                (
                    (
                        f.name,
                        f.compared,
                        f.equal,
                        f.late,
                        f.forgotten,
                        f.different,
                        f.share,
                        ", ".join(name for _, name in f.examples[:2]),
                    )
                    for f in found.features
                ),
            )

        output.show(found.to_json(), json, view)
        if found.skewed:
            raise typer.Exit(2)


def features(
    name: Annotated[str, typer.Argument(help="One feature column; all of them by default.")] = "",
    root: Root = None,
    pipeline: PipelineFile = None,
    json: AsJson = False,
) -> None:
    """What each feature is: owner, meaning, where it comes from, which versions use it, how it changed over time."""
    with output.errors():
        from ct.control import report, usage

        place, line = declared(root, pipeline)
        here = report.place(place, line)
        if name:
            one = usage.feature(here, name)
            output.show(one, json, lambda: _feature_view(one))
            return
        every = usage.features(here)
        output.show(
            every,
            json,
            lambda: output.table(
                "features",
                ("feature", "kind", "type", "owner", "reads", "versions", "description"),
                (
                    (
                        f["name"],
                        f["kind"],
                        f["type"],
                        f["owner"] or "nobody",
                        ", ".join(f["tables"]),
                        ", ".join(v["version"] for v in f["versions"]),
                        f["description"],
                    )
                    for f in every
                ),
            ),
        )


def _feature_view(one: dict[str, Any]) -> None:
    plain = {key: value for key, value in one.items() if key not in ("versions", "profiles", "reads", "definition")}
    output.table(one["name"], ("", ""), ((key, "" if value is None else str(value)) for key, value in plain.items()))
    output.line(f"definition: {one['definition']}")
    output.table("reads", ("table", "columns"), ((table, ", ".join(columns)) for table, columns in one["reads"].items()))
    output.table(
        "versions",
        ("version", "alias", "live since", "same definition"),
        ((v["version"], v["alias"], v["live_since"], "yes" if v["same"] else "no") for v in one["versions"]),
    )
    output.table(
        "profile over time",
        ("of", "until", "rows", "missing", "mean", "p05", "p50", "p95", "most frequent"),
        (
            (p["of"], p["until"], p["rows"], p["missing"], p["mean"], p["p05"], p["p50"], p["p95"], ", ".join(p["frequent"]))
            for p in one["profiles"]
        ),
    )


def _moment(text: str) -> int | None:
    """A time in microseconds UTC; a date is its midnight UTC. None for no text. Raises InvalidRequest."""
    from ct.errors import InvalidRequest

    if not text:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidRequest(f"{text!r} is no time", "2024-05-01 or 2024-05-01T10:00:00Z", "mend --since") from None
    if found.tzinfo is None:
        if len(text) > 10:
            raise InvalidRequest(f"{text!r} has no zone", "a date, or a time with its zone", f"write {text}Z for UTC")
        found = found.replace(tzinfo=UTC)
    return round(found.timestamp() * 1_000_000)
