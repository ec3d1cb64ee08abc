"""Run as a script: ingests a file in one forked process after the other, the n-th of which is killed (SIGKILL) at its n-th step.

`killed.py FILE FOLDER [FIRST]` uses the project folder FOLDER/n for the n-th, stops once one comes through, and prints how many were killed.
With FIRST, that file is published undisturbed before, and the table is MILD.
A step is the moment before and the moment after each call that changes something outside the process.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from pyiceberg.catalog.sql import SqlCatalog

sys.path.insert(0, str(Path(__file__).parent))
from conftest import MILD, SALES, Place
from steps import kill_at

from ct.data.tables import Warehouse
from ct.store.artifacts import Artifacts
from ct.store.journal import Journal

CALLS = [
    (Warehouse, "stage"),
    (SqlCatalog, "create_table"),
    (SqlCatalog, "commit_table"),
    (Artifacts, "put"),
    (Journal, "append"),
    (os, "replace"),
]


def main(file: Path, folder: Path, first: Path | None = None) -> None:
    step, killed = 0, True
    while killed:
        step += 1
        child = os.fork()
        if child == 0:
            place = Place.at(folder / str(step))
            if first is not None:
                place.ingest(first, MILD)
            kill_at(step, CALLS)
            place.ingest(file, MILD if first is not None else SALES)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        if not killed and status:
            sys.exit(f"the process that was to be killed at step {step} ended with {status}")
    print(step - 1)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
