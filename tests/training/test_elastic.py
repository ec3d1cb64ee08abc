"""The proof in short: groups of processes of any size, killed in the middle of a step, gone on with by groups of other sizes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench" / "determinism.py"


@pytest.mark.timeout(900)  # nineteen processes on however busy a machine
def test_any_group_after_any_kill_gives_the_same_bytes() -> None:
    done = subprocess.run([sys.executable, str(BENCH), "--trials", "4", "--plain"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])["figures"]
    assert figures["agreed"] == figures["trials"] == 4, done.stdout
    assert figures["kills"] >= 4
