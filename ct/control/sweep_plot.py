"""A picture of a sweep's trials: the loss by trial with the best so far, and the loss against each searched setting. SVG, PNG or PDF."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ct.control.sweeps import Sweep
from ct.errors import InvalidRequest
from ct.training.ledger import Trial

COLORS = {"finished": "#1f5fa8", "stopped": "#9db4cc", "waiting": "#c9c9c9"}
FAILED = "#b3261e"
ENDINGS = (".svg", ".png", ".pdf")


def allowed(path: Path) -> Path:
    """The path, if a picture can be written there. Raises InvalidRequest for another ending or a folder that is not there."""
    if path.suffix not in ENDINGS or not path.parent.is_dir():
        raise InvalidRequest(
            f"the picture's file {str(path)!r}", f"an existing folder and one of {list(ENDINGS)}", "choose another"
        )
    return path


def draw(sweep: Sweep, path: Path) -> Path:
    """Draw the trials of a sweep that have a loss, and mark those that failed. The same trials give the same SVG bytes."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    space: Mapping[str, Any] = sweep.asked["space"]
    names = sorted(space)
    count = len(names) + 1
    wide = 2 if count in (2, 4) else min(count, 3)
    tall = -(-count // wide)
    with matplotlib.rc_context({"svg.hashsalt": "ct", "font.size": 9}):
        figure = Figure(figsize=(4.2 * wide, 3.3 * tall), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(tall, wide, squeeze=False).flatten()
        _by_trial(panels[0], sweep)
        for panel, name in zip(panels[1:], names, strict=False):
            _by_setting(panel, sweep, name, space[name])
        for panel in panels[count:]:
            panel.set_axis_off()
        marks: dict[str, Any] = {}
        for panel in panels[:count]:
            marks |= dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
        figure.legend(marks.values(), marks.keys(), loc="outside lower center", ncols=len(marks) or 1, frameon=False)
        part = path.with_name(f".part-{path.name}")
        figure.savefig(part, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=110)
    os.replace(part, path)
    return path


def _by_trial(panel: Any, sweep: Sweep) -> None:
    _points(panel, sweep, [float(trial.number) for trial in sweep.trials])
    best, line = float("inf"), []
    deepest = [trial for trial in sweep.trials if trial.state == "finished" and trial.loss is not None]
    for trial in deepest:
        best = min(best, trial.loss if trial.loss is not None else best)
        line.append((trial.number, best))
    if line:
        end = max(trial.number for trial in sweep.trials)
        panel.step(
            [number for number, _ in line] + [end],
            [value for _, value in line] + [best],
            where="post",
            color=COLORS["finished"],
            linewidth=1,
            label="best so far, trained whole",
        )
    panel.xaxis.get_major_locator().set_params(integer=True)
    panel.set_xlabel("trial")
    panel.set_title(f"{sweep.asked['chooser']['name']}, seed {sweep.asked['seed']}", loc="left")
    panel.set_xlim(0.5, max((trial.number for trial in sweep.trials), default=1) + 0.5)


def _by_setting(panel: Any, sweep: Sweep, name: str, search: Mapping[str, Any]) -> None:
    values = [trial.now[name] for trial in sweep.trials]
    if search["choices"]:
        texts = [str(choice) for choice in search["choices"]]
        _points(panel, sweep, [float(texts.index(str(value))) for value in values])
        panel.set_xticks(range(len(texts)), texts, rotation=0 if sum(map(len, texts)) < 30 else 30)
        panel.set_xlim(-0.5, len(texts) - 0.5)
    else:
        _points(panel, sweep, [float(value) for value in values])
        low, high = float(search["low"]), float(search["high"])
        if search["log"]:
            panel.set_xscale("log")
            margin = (high / low) ** 0.03
            panel.set_xlim(low / margin, high * margin)
        else:
            panel.set_xlim(low - 0.03 * (high - low), high + 0.03 * (high - low))
    panel.set_xlabel(name)


def _points(panel: Any, sweep: Sweep, at: list[float]) -> None:
    """A point a trial at `at`; a ring around the best, a cross at the lower edge for one that failed."""
    placed = list(zip(sweep.trials, at, strict=True))
    for state, color in COLORS.items():
        chosen = [(where, trial.loss) for trial, where in placed if trial.state == state and trial.loss is not None]
        if chosen:
            panel.scatter(*zip(*chosen, strict=True), s=22, color=color, label=state, zorder=3)
    if failed := [where for trial, where in placed if trial.state == "failed"]:
        edge = panel.get_xaxis_transform()
        panel.scatter(
            failed, [0.03] * len(failed), s=26, marker="x", color=FAILED, transform=edge, label="failed", clip_on=False
        )
    best: tuple[Trial, float] | None = next(((trial, where) for trial, where in placed if trial.number == sweep.best), None)
    if best and best[0].loss is not None:
        panel.scatter([best[1]], [best[0].loss], s=110, facecolors="none", edgecolors="black", label="best", zorder=4)
    panel.set_ylabel("loss on the tuning rows")
    panel.grid(alpha=0.25)
