"""A run whose process is stopped, believed dead and replaced: when it wakes it can write nothing, and there is one version (F29, I7)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ct import settings
from ct.control import runs
from ct.registry import versions
from ct.store.journal import Journal
from tests.loop import project

NAME = "late-orders"
TAKER = """
import sys
from ct.cli.place import actor
from ct.control import runs
from ct.store import leases

leases.TTL_SECONDS = 5
with actor(sys.argv[1], None) as act:
    print(act.train(runs.all_runs(act.journal, act.pipeline.name)[0]).name)
"""


@pytest.mark.timeout(600)  # it starts Ray twice
def test_a_run_that_was_taken_over_ends_once(tmp_path: Path) -> None:
    folder = project.write(tmp_path / "shop", 8000, epochs=40)
    project.ct(folder, "ingest", "orders", str(project.shard_path(folder, 0)))
    place = settings.load(folder)
    journal = Journal(place.database)
    first = project.start(folder, "train")
    try:
        end = time.monotonic() + 120
        while not any((place.home / "training").glob("*/progress.jsonl")):
            assert first.poll() is None, (folder / "output.log").read_text()
            assert time.monotonic() < end, "training did not begin"
            time.sleep(0.02)
        first.send_signal(signal.SIGSTOP)
        done = subprocess.run(
            [sys.executable, "-c", TAKER, str(folder)], capture_output=True, text=True, timeout=240, check=False, env=os.environ
        )
        assert (done.returncode, done.stdout.strip()) == (0, "v1"), done.stderr[-2000:]
        before = journal.head()
        first.send_signal(signal.SIGCONT)
        assert first.wait(120) == 1
    finally:
        first.send_signal(signal.SIGCONT)
        first.kill()
        first.wait()
    assert "was taken over: epoch 1 has passed" in (folder / "output.log").read_text()
    assert journal.head() == before, "nothing was written by the one who woke"
    (run,) = runs.all_runs(journal, NAME)
    assert (run.outcome, run.version, run.facts["epoch"]) == ("registered", "v1", 2)
    assert [version.name for version in versions.all_versions(journal, NAME)] == ["v1"]
