"""Run as a script: takes what a source has in one forked process after the other, the n-th of which is killed (SIGKILL) at its n-th step.

`killed_taking.py KIND SPEC FOLDER`: as killed.py, for the source ct.KIND with the fields SPEC (JSON). A step is the moment before each
call of CALLS, and after each that appends to the journal.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
import ct
from ct.data.sources import delta, extract, iceberg
from ct.store.journal import Journal
from tests.data.source_worlds import Project
from tests.data.steps import kill_at

CALLS = [(Journal, "append"), (Project, "ingest"), (extract, "write"), (shutil, "rmtree")]


def here(source: Any, position: str, root: Path, target: Path) -> Path:
    """As extract, in this process."""
    extract.write(*source.rows(position, root), target)
    return target


def main(kind: str, spec: str, folder: Path) -> None:
    iceberg.extract = delta.extract = here
    source = getattr(ct, kind)(**json.loads(spec))
    step, killed = 0, True
    while killed:
        step += 1
        child = os.fork()
        if child == 0:
            project = Project(folder / str(step), source)
            kill_at(step, CALLS)
            project.take()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        if not killed and status:
            sys.exit(f"the process that was to be killed at step {step} ended with {status}")
    print(step - 1)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
