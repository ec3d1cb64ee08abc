"""A Ray worker that is killed while it computes features (F8): the same files with the same bytes, none missing."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

from ct.data import catalog
from ct.features import build as features

from ..data.conftest import Place, sales
from .sold import LINE, built, contents


def test_a_worker_that_is_killed_costs_no_row(place: Place, make_place, ray_local: None) -> None:
    plain = make_place("plain")
    for project in (place, plain):
        for month in range(1, 9):
            project.ingest(project.file(sales(month), f"sales-{month}.parquet"))
    wanted = built(plain)
    killed, over = threading.Event(), threading.Event()
    for turn in range(5):  # a map that is over before it is seen at work is no test
        folder = place.root / f"features-{turn}"
        hunter = threading.Thread(target=hunt, args=(folder, killed, over))
        hunter.start()
        shards = {"sales": catalog.published(place.journal, "sales")}
        made = features.build(LINE, shards, folder=folder, parallel=True)
        over.set()
        hunter.join(60)
        over.clear()
        assert made.digest == wanted.digest
        assert contents(made) == contents(wanted)
        assert features.read(made).num_rows == sum(shard.rows for shard in shards["sales"]) == 2400
        if killed.is_set():
            return
    raise AssertionError("no worker was seen at work")


def hunt(folder: Path, killed: threading.Event, over: threading.Event) -> None:
    """Kill the first worker of this Ray that is found at work on the map, once there is a first file."""
    from ray._private.worker import _global_node

    raylets = {info.process.pid for info in _global_node.all_processes["raylet"]}
    while not over.wait(0.002):
        at_work = [process for process in children(raylets) if command(process).startswith("ray::Map")]
        if at_work and any(folder.glob("[!.]*")):
            os.kill(at_work[0], signal.SIGKILL)
            killed.set()
            return


def children(parents: set[int]) -> list[int]:
    """The processes that these have started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended meanwhile
            continue
        if parent in parents:
            found.append(int(folder.name))
    return found


def command(process: int) -> str:
    """A process's title."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""
