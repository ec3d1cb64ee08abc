"""Commands that only read: check, plan, drift, status, why. Each has --json."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ct.cli import output
from ct.cli.place import AsJson, PipelineFile, Root, actor, declared, settings

if TYPE_CHECKING:
    from ct.settings import Settings


def check(
    root: Root = None,
    pipeline: PipelineFile = None,
    infer: Annotated[
        tuple[str, Path] | None,
        typer.Option("--infer", metavar="TABLE FILE", help="Learn a declaration of TABLE from its first FILE."),
    ] = None,
    write: Annotated[
        bool, typer.Option("--write", help="With --infer: write it beside the pipeline file, as TABLE.py.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Load the pipeline file and say whether it can run; nothing is started. With --infer, print a table's declaration instead."""
    with output.errors():
        if infer is not None:
            _infer(*infer, place=settings(root, pipeline), write=write, json=json)
            return
        place, line = declared(root, pipeline)
        data = {
            "pipeline": line.name,
            "fingerprint": line.fingerprint(),
            "owner": line.owner,
            "request": list(line.request_columns),
            "features": [[column.name, column.kind] for column in line.outputs],
            "tables": [table.name for table in line.all_tables],
            "state": str(place.home),
        }

        def view() -> None:
            output.line(f"{line.name} is valid (fingerprint {data['fingerprint'][:12]}, owner {line.owner or 'nobody'})")
            output.line(f"a request carries: {', '.join(line.request_columns)}")
            output.table("features", ("column", "kind"), data["features"])

        output.show(data, json, view)


def _infer(table: str, path: Path, *, place: Settings, write: bool, json: bool) -> None:
    from ct.data.inference import infer
    from ct.errors import Conflict

    text = infer(path, table)
    target = (place.root / place.pipeline.partition(":")[0]).parent / f"{table.replace('-', '_')}.py"
    if write and target.exists():
        raise Conflict(f"{target} exists", "a new file", "it is yours; move it away, or leave out --write and compare")
    if write:
        target.write_text(text, encoding="utf-8")
    data = {"table": table, "declaration": text, "file": str(target) if write else ""}
    output.show(data, json, lambda: output.line(f"wrote {target}; look at it, it is yours" if write else text.rstrip()))


def plan(root: Root = None, pipeline: PipelineFile = None, json: AsJson = False) -> None:
    """Say what `ct watch` would do now."""
    with output.errors(), actor(root, pipeline) as act:
        from ct.control.decide import decide
        from ct.control.loop import observe

        actions = decide(act.pipeline, observe(act, ask_endpoint=False))
        data = [{"action": type(action).__name__, **_about(action)} for action in actions]

        def view() -> None:
            output.table("next", ("action", "about"), ((d["action"], d.get("about", "")) for d in data))
            if not data:
                output.line("nothing to do")

        output.show(data, json, view)


def _about(action: Any) -> dict[str, Any]:
    for key in ("cause", "shard"):
        if hasattr(action, key):
            return {"about": getattr(action, key)}
    for key, inner in (("arrival", "path"), ("run", "id"), ("version", "name")):
        if hasattr(action, key):
            part = getattr(action, key)
            return {"about": str(getattr(part, "fault", None) or getattr(part, inner))}
    return {}


def drift(
    root: Root = None,
    pipeline: PipelineFile = None,
    live: Annotated[
        bool, typer.Option("--live", help="Compare what the champion is asked live, instead of the shards.")
    ] = False,
    json: AsJson = False,
) -> None:
    """What drifted: each published shard against the training data of the champion of its time, or live traffic with --live."""
    with output.errors():
        from ct.control import report, watching

        place, line = declared(root, pipeline)
        here = report.place(place, line)
        found = [watching.live_drift(here)] if live else watching.drifts(here.journal, line.name)

        def view() -> None:
            for item in found:
                rows = [row for row in item["features"] if row["drifted"]]
                output.table(
                    f"shard {item['shard']} against {item['reference']}: {item['cause'] or 'no drift'}",
                    ("feature", "effect", "floor", "p-value", "missing before", "now", "note"),
                    (
                        (
                            r["column"],
                            r["effect"],
                            r["floor"],
                            f"{r['p_value']:.1e}",
                            r["missing_before"],
                            r["missing_now"],
                            r["note"],
                        )
                        for r in rows
                    ),
                )
                for part in item.get("slices", ()):
                    feature, where = part["feature"], f"{part['slice_column']} {part['slice_value']}"
                    output.line(f"  {where}: {feature['column']} by {feature['effect']:.2f} ({feature['note']})")
            if not found:
                output.line("no shard has been compared yet")

        output.show(found, json, view)


def status(
    root: Root = None,
    pipeline: PipelineFile = None,
    verify: Annotated[bool, typer.Option(help="Recompute the journal's hash chain and every served artifact's hash.")] = False,
    json: AsJson = False,
) -> None:
    """Tables, versions, route, runs and alerts."""
    with output.errors():
        from ct.control import report

        place, line = declared(root, pipeline)
        data = report.status(place, line, verify=verify)
        output.show(data, json, lambda: _status_view(data))


def _status_view(data: dict[str, Any]) -> None:
    if "verified" in data:
        output.line(f"journal verified: {data['verified']['events']} events, {data['verified']['files']} model files")
    output.table(
        "tables",
        ("table", "rows", "shards", "newest event", "quarantined"),
        ((t["table"], t["rows"], t["shards"], t["until"], t["quarantined"]) for t in data["tables"]),
    )
    output.table(
        "versions",
        ("version", "alias", "verdict", "metric", "at the gate", "live", "labelled", "runtime", "run"),
        (
            (
                v["version"],
                v["alias"],
                v["verdict"],
                m := v["metric"],
                v[m],
                v[f"live_{m}"],
                v["labelled"],
                v["runtime"],
                v["run"],
            )
            for v in data["versions"]
        ),
    )
    for v in data["versions"]:
        if v.get("instead"):
            output.line(f"{v['version']} is held by {v['runtime']}: {v['instead']}")
    if data["route"]:
        output.line(
            f"route: epoch {data['route']['epoch']}, stable {data['route']['stable']}, canary {data['route']['canary']}"
        )
    for alert in data["alerts"]:
        output.line(f"{alert['at']} {alert['tier']} {alert['title']} (owner {alert['owner'] or 'nobody'})")


def why(prediction: str, root: Root = None, pipeline: PipelineFile = None, json: AsJson = False) -> None:
    """Why PREDICTION_ID was answered as it was: answer, version, gate, run, code, shards, route."""
    with output.errors():
        from ct.control import report

        place, line = declared(root, pipeline)
        data = report.why(place, line, prediction)

        def view() -> None:
            for section, facts in data.items():
                rows = facts.items() if isinstance(facts, dict) else enumerate(facts, 1)
                output.table(section, ("", ""), ((str(key), _short(value)) for key, value in rows))

        output.show(data, json, view)


def _short(value: object) -> str:
    text = f"{value:.4f}" if isinstance(value, float) else str(value)
    return text if len(text) <= 100 else text[:97] + "..."
