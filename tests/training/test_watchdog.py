"""The watchdog: who does not beat is ended, who is slow is not; with real processes that are stopped by a signal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from ct.training import watchdog
from ct.training.watchdog import STUCK, Beat, Watch, beating

WORKER = """
import sys, time
from ct.training.watchdog import beating
with beating(sys.argv[1], int(sys.argv[2])) as beat:
    while True:
        beat.step += int(sys.argv[3])
        time.sleep(0.01)
"""


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def write(folder: Path, beat: Beat) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{beat.rank:04}.json").write_text(json.dumps(asdict(beat)))


@pytest.fixture
def ended() -> list[int]:
    return []


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def watch(tmp_path: Path, clock: Clock, ended: list[int], notes: list[str]) -> Watch:
    def end(beat: Beat) -> bool:
        ended.append(beat.rank)
        return True

    return Watch(tmp_path, 10.0, notes.append, now=clock, end=end)


def test_only_the_silent_one_is_ended_and_once(
    tmp_path: Path, watch: Watch, clock: Clock, ended: list[int], notes: list[str]
) -> None:
    write(tmp_path, Beat(0, 1, "", "b"))
    write(tmp_path, Beat(1, 2, "", "b", step=4))
    for second in range(30):
        clock.now = float(second)
        write(tmp_path, Beat(0, 1, "", "b", count=second))
        watch.look()
    assert ended == [1]
    assert notes == ["worker 1 gave no sign of life for 10 s at step 4 and was ended; training goes on from its checkpoint"]


def test_a_group_that_beats_without_a_step_is_ended_whole(tmp_path: Path, watch: Watch, clock: Clock, ended: list[int]) -> None:
    for second in range(0, int(STUCK * 10)):
        clock.now = float(second)
        for rank in (0, 1):
            write(tmp_path, Beat(rank, 1, "", "b", count=second, step=7 if second > 50 else second))
        watch.look()
    assert ended == []
    for second in range(int(STUCK * 10), int(STUCK * 10) + 60):
        clock.now = float(second)
        watch.look()
        for rank in (0, 1) if not ended else ():
            write(tmp_path, Beat(rank, 1, "", "b", count=second, step=7))
    assert ended == [0, 1]


def test_who_watches_after_a_sleep_of_the_whole_machine_ends_nobody(
    tmp_path: Path, watch: Watch, clock: Clock, ended: list[int]
) -> None:
    for second in (0, 1, 2, 3, 4_000, 4_001, 4_002):
        clock.now = float(second)
        watch.look()
        write(tmp_path, Beat(0, 1, "", "b", count=min(second, 3), step=5))
    assert ended == [], "its next beat is still to come"
    for second in range(4_003, 4_020):
        clock.now = float(second)
        watch.look()
    assert ended == [0]


def test_nobody_there_is_no_hang(tmp_path: Path, watch: Watch, clock: Clock, ended: list[int]) -> None:
    for second in range(0, 500, 5):
        clock.now = float(second)
        watch.look()
    (tmp_path / "0000.json").write_text('{"rank": 0, "pi')
    watch.look()
    assert ended == []


def test_a_stopped_process_is_ended_and_a_slow_one_not(tmp_path: Path) -> None:
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path), str(rank), str(rank)], env=os.environ) for rank in (0, 1)
    ]
    notes: list[str] = []
    watch = Watch(tmp_path, 4.0, notes.append)
    try:
        until = time.monotonic() + 60
        while len(list(tmp_path.glob("[!.]*.json"))) < 2:
            assert time.monotonic() < until
            time.sleep(0.02)
        workers[1].send_signal(signal.SIGSTOP)
        while workers[1].poll() is None:
            assert time.monotonic() < until
            watch.look()
            time.sleep(0.05)
        assert workers[1].returncode == -signal.SIGKILL
        assert workers[0].poll() is None, "it makes no step, but it is alive"
        assert len(notes) == 1
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def test_a_process_number_used_again_is_left_alone(tmp_path: Path) -> None:
    with beating(str(tmp_path), 0):
        until = time.monotonic() + 30
        while not list(tmp_path.glob("[!.]*.json")):
            assert time.monotonic() < until
        said = json.loads(next(tmp_path.glob("[!.]*.json")).read_text())
        assert said["pid"] == os.getpid()
        assert not watchdog.end_process(Beat(**{**said, "born": "0"}))
    assert not list(tmp_path.iterdir()), "who has ended beats no more"
