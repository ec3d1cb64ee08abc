"""A model card as Markdown, and its calibration plot as SVG. Text in, text out; matplotlib is loaded only to draw."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_MOST = 15
_TITLES = {
    "number": ("predicted", "mean truth"),
    "quantiles": ("quantile", "share of truths at or below it"),
    "classes": ("probability of the likeliest class", "share that is right"),
    "binary": ("score", "share that is true"),
}


def markdown(card: Mapping[str, Any], plot: str = "") -> str:
    """The card as a Markdown page. `plot` is the address of the calibration plot, "" for none."""
    model, verdict, data, metrics = card["model"], card["verdict"], card["data"], card["metrics"]
    parts = [
        f"# Model card: {model['pipeline']} {model['version']}",
        _table(
            ("", ""),
            [
                ("Owner", model["owner"]),
                ("Intended use", model["intended_use"]),
                ("Predicts", model["predicts"]),
                ("Stands as", model["alias"]),
                ("Registered", model["registered"]),
                ("Gate", verdict["decision"]),
                ("Overruled by", verdict["overruled_by"]),
            ],
        ),
    ]
    if model["pipeline_changed_since"]:
        parts.append("The pipeline file has changed since; owner and intended use are as it says now.")
    parts += ["## Verdict", *_verdict(verdict), "## Metrics", *_metrics(metrics, plot, model["objective"])]
    parts += ["## Data", *_data(data)]
    parts += ["## Features", _table(("column", "kind"), [(item["column"], item["kind"]) for item in card["features"]])]
    parts += [
        "## Requests",
        _table(("column", "kind"), list(card["requests"]["columns"].items())),
        *[f"Personal in {table}: {_pairs(kinds)}." for table, kinds in card["requests"]["personal"].items()],
        "## Training",
        _facts(card["training"]),
        "## Lineage",
        _facts(card["lineage"]),
        f"To make it again: `{card['reproduce']}`.",
        "## Limits",
        "\n".join(f"- {text}" for text in card["limits"]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _verdict(verdict: Mapping[str, Any]) -> list[str]:
    rows = [(item["part"], item["outcome"], item["reason"]) for item in verdict["findings"]]
    if not rows:
        rows = [("", verdict["decision"], reason) for reason in verdict["reasons"]]
    return [_table(("part", "outcome", "because"), rows), *[f"Warning: {text}." for text in verdict["warnings"]]]


def _metrics(metrics: Mapping[str, Any], plot: str, kind: str) -> list[str]:
    ours, base, champion = metrics["candidate"], metrics["baseline"], metrics["champion"] or {}
    others = {item["name"]: item["metrics"] for item in metrics["challengers"]}
    parts = [
        _table(
            ("metric", "this version", "champion then", "baseline", *others),
            [
                (name, value, champion.get(name), base.get(name), *(m.get(name) for m in others.values()))
                for name, value in ours.items()
            ],
        )
    ]
    gains = [
        (gain["metric"], gain["against"], gain["estimate"], gain["low"], gain["high"], gain["rows"], gain["blocks"])
        for gain in metrics["gains"]
    ]
    gains += [
        (
            item["metric"],
            item["name"],
            item["gain"]["estimate"],
            item["gain"]["low"],
            item["gain"]["high"],
            item["gain"]["rows"],
            item["gain"]["blocks"],
        )
        for item in metrics["challengers"]
        if item["gain"]
    ]
    if gains:
        parts += [
            f"How much better it is (positive is better), each bound with {metrics['confidence'] or 0.95:.0%} confidence, blocks of time as independent:",
            _table(("metric", "against", "better by", "at least", "at most", "rows", "blocks"), gains),
        ]
    if metrics["curve"]:
        parts.append(f"![Calibration]({plot})" if plot else "")
        parts.append(_table((*_TITLES[kind], "rows"), [(p["said"], p["true"], int(p["rows"])) for p in metrics["curve"]]))
    shown = [name for name in ("auroc", "log_loss", "accuracy", "ece", "mae", "rmse", "pinball", "coverage") if name in ours]
    for segment, values in metrics["by_slice"].items():
        largest = sorted(values.items(), key=lambda item: -item[1]["rows"])[:_MOST]
        rows = [(value, int(found["rows"]), *(found.get(name) for name in shown)) for value, found in largest]
        more = f" (the {_MOST} largest of {len(values)})" if len(values) > _MOST else ""
        parts += [f"By {segment}{more}:", _table((segment, "rows", *shown), rows)]
    if metrics["over_time"]:
        from datetime import UTC, datetime

        rows = [
            (
                f"{datetime.fromtimestamp(part['start'] / 1e6, UTC):%Y-%m-%d %H:%M}",
                int(part["rows"]),
                *(part.get(name) for name in shown),
            )
            for part in metrics["over_time"]
        ]
        parts += ["Over time:", _table(("from", "rows", *shown), rows)]
    told = {name: metrics[name] for name in ("threshold", "latency_ms", "size_mb") if metrics[name] is not None}
    return [*parts, _facts(told) if told else ""]


def _data(data: Mapping[str, Any]) -> list[str]:
    rows = [
        (name, table["rows"], len(table["shards"]), table["from"], table["until"], str(table["snapshot"]))
        for name, table in data["tables"].items()
    ]
    return [
        _table(("table", "rows", "shards", "from", "until", "snapshot"), rows),
        _facts({key: value for key, value in data.items() if key != "tables"}),
    ]


def _facts(facts: Mapping[str, Any]) -> str:
    return _table(("", ""), [(key.replace("_", " "), value) for key, value in facts.items() if value not in (None, "", {}, [])])


def _table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    made = [[_cell(item) for item in row] for row in rows]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}", *(f"| {' | '.join(row)} |" for row in made)]
    return "\n".join(lines) if made else ""


def _cell(item: Any) -> str:
    if isinstance(item, Mapping):
        return _escaped(_pairs(item))
    if isinstance(item, (list, tuple)):
        return _escaped(", ".join(_plain(part) for part in item))
    return _escaped(_plain(item))


def _pairs(item: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}: {_plain(value)}" for key, value in item.items() if value not in (None, "", {}, []))


def _plain(item: Any) -> str:
    if isinstance(item, Mapping):
        return f"({_pairs(item)})"
    if isinstance(item, bool) or item is None:
        return {True: "yes", False: "no", None: ""}[item]
    if isinstance(item, float):
        return f"{item:.4f}" if abs(item) >= 0.001 or item == 0 else f"{item:.3g}"
    return f"{item:,}" if isinstance(item, int) and abs(item) < 10**12 else str(item)


def _escaped(text: str) -> str:
    """Text that stays in its cell: what stands in data may look like Markdown or HTML."""
    for plain, safe in (("\\", "\\\\"), ("|", "\\|"), ("<", "&lt;"), ("\n", " ")):
        text = text.replace(plain, safe)
    return text


def plot(card: Mapping[str, Any]) -> bytes:
    """The calibration plot as SVG, b"" where nothing was recorded. The same card gives the same bytes."""
    curve, kind = card["metrics"]["curve"], card["model"]["objective"]
    if not curve:
        return b""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    said, true = [part["said"] for part in curve], [part["true"] for part in curve]
    rows = [part["rows"] for part in curve]
    with mpl.rc_context({"svg.hashsalt": "ct", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(5, 5), layout="constrained")
        axes = figure.subplots()
        ends = [min(*said, *true), max(*said, *true)] if kind == "number" else [0.0, 1.0]
        axes.plot(ends, ends, color="0.6", linewidth=1, linestyle="--", label="perfect")
        axes.plot(said, true, color="#1b6ca8", linewidth=1.5, label=card["model"]["version"])
        axes.scatter(said, true, s=[12 + 120 * count / max(rows) for count in rows], color="#1b6ca8")
        axes.set(xlabel=_TITLES[kind][0], ylabel=_TITLES[kind][1], title="Calibration; points grow with their rows")
        axes.legend(frameon=False)
        made = io.BytesIO()
        figure.savefig(made, format="svg", metadata={"Date": None})
    return made.getvalue()
