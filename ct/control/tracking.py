"""Tells wandb of a finished training: one run, offline unless WANDB_MODE says otherwise. Nothing here can stop, slow or change a training.

It is a process of its own, at low priority, begun after the version is registered and ended by its own clock. What goes wrong in it is
a line in its log and an alert of tier INFO.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ct.control import sweeps
from ct.control.place import Place
from ct.control.runs import Run
from ct.errors import CtError
from ct.monitoring.alerts import Alert, send
from ct.registry.versions import Version
from ct.store.signing import without_key

SECONDS = 60
"""After so long it is ended, wherever it is."""
LOG = "tracking.log"
_SHOWN = 500


def tell(place: Place, run: Run, version: Version, facts: Mapping[str, Any]) -> threading.Thread | None:
    """Begin to write the wandb run of a training below `state`/wandb, and return at once.

    Returns the thread that waits for its end, None when tracking is off.
    """
    if place.settings.tracking == "off" or os.environ.get("WANDB_MODE") == "disabled":
        return None
    try:
        folder = place.settings.home / "wandb"
        folder.mkdir(parents=True, exist_ok=True)
        told = json.dumps(_told(place, run, version, facts), default=str)
        # A file, not a pipe: this process may end before the other one has read it.
        with (folder / LOG).open("ab") as log, tempfile.TemporaryFile() as file:
            file.write(told.encode())
            file.seek(0)
            child = subprocess.Popen(
                [sys.executable, "-m", "ct.control.tracking", str(folder), str(SECONDS)],
                stdin=file,
                stdout=log,
                stderr=log,
                env={"WANDB_MODE": "offline", **without_key(os.environ), "WANDB_DIR": str(folder), "WANDB_SILENT": "true"},
                start_new_session=True,
            )
        waiting = threading.Thread(target=_wait, args=(place, child, version.name), name="tracking", daemon=True)
        waiting.start()
    except Exception as error:  # whatever it is, the version is registered
        _note(place, version.name, f"{type(error).__name__}: {error}")
        return None
    return waiting


def _wait(place: Place, child: subprocess.Popen[bytes], version: str) -> None:
    try:
        child.wait(SECONDS + 5)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    if child.returncode:
        _note(place, version, f"the process ended with {child.returncode}, see {place.settings.home / 'wandb' / LOG}")


def _note(place: Place, version: str, what: str) -> None:
    """An alert of tier INFO, if even that is possible."""
    title = f"{version} is not tracked by wandb"
    alert = Alert(tier="INFO", title=title, owner=place.pipeline.owner, detail=what[:_SHOWN], key=title)
    try:
        send(alert, pipeline=place.pipeline.name, journal=place.journal, settings=place.settings)
    except CtError:
        return


def _told(place: Place, run: Run, version: Version, facts: Mapping[str, Any]) -> dict[str, Any]:
    swept = [found for found in sweeps.all_sweeps(place.journal, place.pipeline.name) if found.run == run.id]
    return {
        "project": place.pipeline.name,
        "name": version.name,
        "id": f"{place.pipeline.name}-{run.id}",
        "config": {
            "run": run.id,
            "cause": run.cause,
            "seed": run.seed,
            "code": run.code,
            "pipeline": run.pipeline,
            "params": run.params,
            **{name: facts.get(name) for name in ("settings", "contract", "features", "training_set", "weights", "rows")},
        },
        "history": facts.get("history", []),
        "metrics": dict(version.metrics),
        "verdict": version.verdict,
        "reasons": list(version.reasons),
        "segments": facts.get("report", {}).get("segments", {}),
        "trials": [trial.to_json() for found in swept for trial in found.trials if trial.loss is not None],
    }


def write(told: Mapping[str, Any], folder: Path) -> None:
    """Write one wandb run. For the process of its own."""
    import wandb

    made = wandb.init(
        project=told["project"],
        name=told["name"],
        id=told["id"],
        resume="allow",
        config=dict(told["config"]),
        dir=str(folder),
        settings=wandb.Settings(console="off", x_disable_stats=True, x_disable_meta=True, silent=True),
    )
    for entry in told["history"]:
        made.log({name: value for name, value in entry.items() if isinstance(value, (int, float))})
    metrics = told["metrics"]
    tables = {
        "metrics": wandb.Table(columns=["metric", "value"], data=[[name, float(value)] for name, value in metrics.items()])
    }
    rows: list[Any] = [
        [segment, str(value), name, float(number)]
        for segment, by in told["segments"].items()
        for value, found in by.items()
        for name, number in found.items()
        if isinstance(number, (int, float))
    ]
    if rows:
        tables["segments"] = wandb.Table(columns=["segment", "value", "metric", "number"], data=rows)
    if told["trials"]:
        data: list[Any] = [
            [json.dumps(trial["now"]), trial["epochs"], trial["loss"], trial["state"]] for trial in told["trials"]
        ]
        tables["trials"] = wandb.Table(columns=["settings", "epochs", "loss", "state"], data=data)
    made.log(tables)
    made.summary.update({**metrics, "verdict": told["verdict"], "reasons": told["reasons"]})
    made.finish(exit_code=0)


def main(folder: str, seconds: str) -> None:
    """The process of its own: reads what is told from standard input."""
    signal.alarm(int(seconds))
    os.nice(10)
    write(json.loads(sys.stdin.read()), Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
