"""Commands about tables: what they hold, keeping them small, erasing a key. Whatever removes something says first what it would remove."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ct.cli import output
from ct.cli.place import AsJson, DryRun, PipelineFile, Root, actor, declared

if TYPE_CHECKING:
    from ct.control.erasing import Erasure

Apply = Annotated[bool, typer.Option("--apply", help="Do it; without this nothing is changed.")]


def tables(
    name: Annotated[str, typer.Argument(help="One table; all in short by default.")] = "",
    root: Root = None,
    pipeline: PipelineFile = None,
    tag: Annotated[str, typer.Option(help="Give a snapshot of the table this name, so that it stays.")] = "",
    snapshot: Annotated[int | None, typer.Option(help="The snapshot to be tagged; the newest by default.")] = None,
    dry_run: DryRun = False,
    json: AsJson = False,
) -> None:
    """The tables in short, or everything known of one: columns, history, snapshots, readers, checks, quarantine."""
    with output.errors():
        if tag:
            _tag(name, tag, snapshot, root, pipeline, dry_run=dry_run, json=json)
            return
        from ct.control import describing, report

        place, line = declared(root, pipeline)
        here = report.place(place, line)
        if name:
            data = describing.details(here, name)
            output.show(data, json, lambda: _details(data))
            return
        rows = describing.overview(here)
        titles = ("table", "owner", "rows", "shards", "newest", "aside", "snapshot")
        output.show(rows, json, lambda: output.table("tables", titles, map(_short, rows)))


def _short(row: dict[str, Any]) -> tuple[object, ...]:
    held = [f"{row['quarantined']} shards" if row["quarantined"] else "", f"{row['aside']:,} rows" if row["aside"] else ""]
    newest = f"{row['fresh']} ago" if row["newest"] else "none"
    snapshot = "" if row["snapshot"] is None else str(row["snapshot"])
    return row["table"], row["owner"], row["rows"], row["shards"], newest, ", ".join(filter(None, held)), snapshot


def _time(text: str) -> str:
    """A moment in UTC, to the minute."""
    return text[:16].replace("T", " ")


def _tag(
    name: str, tag: str, snapshot: int | None, root: str | None, pipeline: str | None, *, dry_run: bool, json: bool
) -> None:
    from ct.control import keeping
    from ct.errors import InvalidRequest

    if not name:
        raise InvalidRequest("--tag without a table", "ct tables NAME --tag TAG", "name the table")
    with actor(root, pipeline) as act:
        said = keeping.tag(act, name, tag, snapshot, dry_run=dry_run)
    would = "would tag" if dry_run else "tagged"
    output.show(said, json, lambda: output.line(f"{would} snapshot {said['snapshot']} of {name} as {tag}"))


def _details(data: dict[str, Any]) -> None:
    facts = [
        ("owner", data["owner"] or "nobody"),
        ("description", data["description"]),
        ("key", ", ".join(data["key"])),
        ("event time", data["time"]),
        ("comes from", data["source"]),
        ("rows", f"{data['rows']:,} in {data['shards']} shard(s)"),
        ("newest event", f"{_time(data['newest'])} UTC, {data['fresh']} ago" if data["newest"] else "none yet"),
        ("retention", data["retention"] or "for ever"),
        ("differing columns", ", ".join(f"{kind}: {what}" for kind, what in data["policy"].items())),
    ]
    output.table(data["table"], ("", ""), facts)
    output.table("columns", ("column", "type", "kind", "missing", "distinct", "about"), map(_column, data["columns"]))
    _some("checks", ("rule", "does", "up to"), [(c["check"], c["does"], f"{c['up_to']:.2%}") for c in data["checks"]])
    _some("history of the columns", ("at", "shard", "what"), [(_time(h["at"]), h["shard"], h["what"]) for h in data["history"]])
    _some(
        "read by",
        ("makes", "transformation", "hash"),
        [(", ".join(r["makes"]), r["text"], r["hash"][:12]) for r in data["read_by"]],
    )
    _some(
        "snapshots",
        ("snapshot", "at", "operation", "rows", "named"),
        [(str(s["snapshot"]), _time(s["at"]), s["operation"], s["rows"], ", ".join(s["names"])) for s in data["snapshots"]],
    )
    _some(
        "shards",
        ("shard", "rows", "from", "to", "tags"),
        [(s["shard"], s["rows"], _time(s["from"]), _time(s["to"]), _tags(s["tags"])) for s in data["published"]],
    )
    aside = [(r["shard"], _time(r["at"]), f"{r['rows']:,} rows aside", "; ".join(r["reasons"])) for r in data["rows_aside"]]
    held = [(q["shard"], _time(q["at"]), "refused", "; ".join(q["reasons"])) for q in data["quarantine"]]
    _some("quarantine", ("shard", "at", "what", "why"), held + aside)
    _some(
        "erasures",
        ("erasure", "at", "rows", "state", "versions that saw them"),
        [(e["erasure"], _time(e["at"]), e["rows"], e["state"], ", ".join(e["versions"])) for e in data["erasures"]],
    )


def _some(title: str, columns: tuple[str, ...], rows: Sequence[Sequence[object]]) -> None:
    """A table that has rows; of many the newest twenty."""
    if rows:
        output.table(title if len(rows) <= 20 else f"{title}: the last 20 of {len(rows):,}", columns, rows[-20:])


def _column(row: dict[str, Any]) -> tuple[object, ...]:
    missing = "" if row["missing"] is None else f"{row['missing']:.2%}"
    personal = f"personal, {row['personal']}" if row["personal"] else ""
    about = "; ".join(filter(None, (row["role"], personal, row["description"])))
    return row["column"], row["type"].partition("[")[0], row["kind"], missing, row["distinct"], about


def _tags(tags: dict[str, Any]) -> str:
    from datetime import timedelta

    from ct.control.describing import span

    said = []
    for name, value in tags.items():
        if name == "slices":
            said += [f"{column}: {len(values)} values" for column, values in value.items()]
        elif name == "freshness":
            said.append(f"{span(timedelta(microseconds=value))} old on arrival")
        else:
            said.append(f"{name}={value}")
    return ", ".join(said)


def maintain(
    table: Annotated[str, typer.Argument(help="One table; all and the folders beside them by default.")] = "",
    root: Root = None,
    pipeline: PipelineFile = None,
    apply: Apply = False,
    dry_run: DryRun = False,
    small: Annotated[int, typer.Option(min=1, help="A file of fewer rows is merged with its small neighbours.")] = 50_000,
    least: Annotated[int, typer.Option(min=2, help="How many small neighbours are worth it.")] = 4,
    keep: Annotated[int, typer.Option(min=1, help="How many of the newest snapshots stay.")] = 10,
    age: Annotated[str, typer.Option(help="Younger snapshots stay.")] = "7d",
    safety: Annotated[str, typer.Option(help="Younger files stay; longer than the longest write or run.")] = "1d",
    json: AsJson = False,
) -> None:
    """Merge small files, drop rows past retention, expire snapshots, remove files nobody needs. Says what it would do; --apply does it."""
    _either(apply, dry_run)
    with output.errors(), actor(root, pipeline) as act:
        from ct.clock import duration
        from ct.control import keeping
        from ct.data.maintenance import Limits

        limits = Limits(small=small, least=least, keep=keep, age=duration(age), safety=duration(safety))
        planned = keeping.plan(act, table=table, limits=limits)
        data = planned.to_json()
        if apply:
            data["done"] = keeping.carry_out(act, planned, limits=limits)
        output.show(data, json, lambda: _plan(data, applied=apply))


def _either(apply: bool, dry_run: bool) -> None:
    if apply and dry_run:
        raise typer.BadParameter("say --apply or --dry-run; without either nothing is changed")


def _plan(data: dict[str, Any], *, applied: bool) -> None:
    from ct.control.keeping import summary

    rows = [(item["table"], summary(item) or "nothing to do") for item in data["tables"]]
    size = sum(stray["bytes"] for stray in data["strays"])
    if data["strays"]:
        rows.append(("beside the tables", f"{len(data['strays'])} files, {size:,} bytes"))
    output.table("done" if applied else "would be done", ("table", "what"), rows)
    kept = [
        (item["table"], str(s["snapshot"]), _time(s["at"]), s["kept"] or "expires")
        for item in data["tables"]
        for s in item["snapshots"]
    ]
    _some("snapshots", ("table", "snapshot", "at", "why it stays"), kept)
    strays = [*(stray for item in data["tables"] for stray in item["strays"]), *data["strays"]]
    _some("files that nobody needs", ("file", "bytes", "why"), [(s["file"], s["bytes"], s["why"]) for s in strays])
    for name, done in data.get("done", {}).items():
        for what in done.get("left_for_next_time", ()):
            output.line(f"{name}: left for the next time, {what}")
    if not applied:
        output.line("nothing was changed; --apply does it")


def erase(
    table: str,
    key: Annotated[list[str], typer.Argument(help="The key; of several columns as a|b or one after the other.")],
    root: Root = None,
    pipeline: PipelineFile = None,
    apply: Apply = False,
    dry_run: DryRun = False,
    landing: Annotated[bool, typer.Option("--landing", help="Also remove the files it arrived in, where they landed.")] = False,
    json: AsJson = False,
) -> None:
    """Erase the rows of KEY from TABLE and everything made of them. Says what would go; --apply does it. Exit code 2 when a trace is left."""
    _either(apply, dry_run)
    with output.errors(), actor(root, pipeline) as act:
        from ct.control import erasing

        if apply:
            with output.progress("erase") as step:
                found = erasing.carry_out(act, table, key, landing=landing, on_step=step)
        else:
            found = erasing.plan(act, table, key)
        output.show(found.to_json(), json, lambda: _erasure(found))
        if found.left:
            raise typer.Exit(2)


def _erasure(found: Erasure) -> None:
    rows = [
        ("rows", f"{sum(found.rows.values()):,} in {len(found.rows)} shard(s): {', '.join(found.rows)}"),
        ("predictions and labels", found.predictions),
        ("data files rewritten" if not found.applied else "old data files removed", len(found.files)),
        ("tags and branches dropped", ", ".join(found.refs)),
        ("snapshots dropped", len(found.snapshots)),
        ("quarantined files", len(found.quarantine)),
        ("feature files", found.features),
        ("training set files", found.sets),
        ("files where they landed", len(found.landing)),
        ("model versions that saw the rows", ", ".join(found.versions) or "none"),
    ]
    output.table("erased" if found.applied else "would be erased", ("what", "how much"), rows)
    if not found.applied:
        output.line("nothing was changed; --apply does it")
    elif found.left:
        output.table("still there", ("where", "what"), found.left)
    else:
        raw = "" if found.searched["raw"] else "; so short a key is looked for in its own columns only"
        output.line(f"verified: {found.searched['files']:,} files, {found.searched['bytes']:,} bytes hold no trace{raw}")
    if found.versions:
        output.line("these versions can be reproduced in part only: some of the rows they saw are gone")
