"""Killed or failing at its n-th durable operation (F1, F2), for every n until one comes through: the next run reaches the same state.

`make test` takes some of them; CT_FAULTS=all takes each.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from ct.data import arriving

from ..data.conftest import Place, sales
from ..services import S3, Postgres
from .sold import LINE, built, contents, read_here, rows, state

SCRIPT = Path(__file__).with_name("breaking.py")
EACH = os.environ.get("CT_FAULTS") == "all"
STEPS = 52


COMMAND = [sys.executable, "-W", "ignore", str(SCRIPT)]
CAME_THROUGH, TOLD, KILLED = 0, 3, -9


class Broken:
    """The script that breaks things: one that forks for each, or a new one for each, the next of which gets ready meanwhile."""

    def __init__(self, *, fork: bool) -> None:
        self._fork = fork
        self._process = self._start()

    def _start(self) -> subprocess.Popen[str]:
        command = COMMAND if self._fork else [*COMMAND, "once"]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def do(self, place: Place, what: str, how: str, step: int, *names: Path) -> int:
        """The exit code of the process that does it."""
        flags = {"database_url": place.settings.database_url, "storage": place.settings.storage}
        asked = {"root": str(place.root), "flags": flags, "do": what, "files": list(map(str, names)), "how": how, "step": step}
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(asked) + "\n")
        process.stdin.flush()
        if self._fork:
            return int(process.stdout.readline())
        self._process = self._start()
        process.communicate()
        return process.returncode

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Iterator[Broken]:
    monkeypatch.setattr(arriving, "read", read_here)
    made = Broken(fork=True)
    yield made
    made.close()


@pytest.fixture
def broken_anew(monkeypatch: pytest.MonkeyPatch, s3: S3) -> Iterator[Broken]:
    monkeypatch.setattr(arriving, "read", read_here)
    made = Broken(fork=False)
    yield made
    made.close()


@pytest.mark.parametrize("how", ["kill", "fail", "lose"] if EACH else ["kill", "fail"])
@pytest.mark.parametrize("good", [True, False])
def test_an_ingest_on_a_disk(broken: Broken, tmp_path: Path, how: str, good: bool) -> None:
    hurt = sweep(broken, dict, tmp_path, how, good, 1 if EACH else 9)
    assert hurt >= (3 if good else 1) or how == "lose"


@pytest.mark.parametrize("how", ["kill", "fail", "lose"] if EACH else ["kill", "lose"])
def test_an_ingest_on_postgresql_and_an_object_store(
    broken_anew: Broken, postgres: Postgres, s3: S3, tmp_path: Path, how: str
) -> None:
    hurt = sweep(
        broken_anew, lambda: {"database_url": postgres.new(), "storage": s3.new()}, tmp_path, how, True, 1 if EACH else 11
    )
    assert hurt >= 2 or how != "kill"


def sweep(broken: Broken, flags: Callable[[], dict[str, str]], folder: Path, how: str, good: bool, stride: int) -> int:
    """Break an ingest at every step and let the next one finish it. Returns how many did not come through."""
    table = sales(1) if good else sales(1).set_column(4, "price", [[9e9] * 300])
    file, plain = folder / "sales-1.parquet", Place.at(folder / "plain", **flags())
    pq.write_table(table, file)
    wanted = plain.ingest(file).kind
    hurt = 0
    for step in range(1, STEPS, stride):
        place = Place.at(folder / str(step), **flags())
        code = broken.do(place, "ingest", how, step, file)
        assert code in (CAME_THROUGH, KILLED, TOLD), f"step {step}: {code}"
        hurt += code != CAME_THROUGH
        assert rows(place) in ([], rows(plain)), step  # nothing half is visible
        assert place.ingest(file).kind in (wanted, "duplicate"), step
        assert state(place) == state(plain), step
        place.journal.verify()
        place.journal.close()
        shutil.rmtree(place.root)
        if how == "kill" and code == CAME_THROUGH:
            break
    else:
        assert how != "kill", f"an ingest has more than {STEPS} steps"
    plain.journal.close()
    return hurt


@pytest.mark.parametrize("how", ["kill", "fail"])
def test_building_features(broken: Broken, make_place: Any, how: str) -> None:
    """A half-built set is finished by the next build: the same files with the same bytes, and no other ones."""
    start = make_place("start")
    start.ingest(start.file(sales(1), "sales-1.parquet"))
    plain = built(start)
    folder = Path(start.settings.place("features"))
    hurt, wanted = 0, contents(plain)
    for step in range(1, STEPS, 1 if EACH else 2):
        shutil.rmtree(folder)
        code = broken.do(start, "build", how, step)
        assert code in (CAME_THROUGH, KILLED, TOLD), f"step {step}: {code}"
        assert {path.name for path in folder.glob("[!.]*")} <= set(wanted), step
        assert contents(built(start)) == wanted, step
        if code == CAME_THROUGH:
            break
        hurt += 1
    assert hurt >= len(LINE.features)
