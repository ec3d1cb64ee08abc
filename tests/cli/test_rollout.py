"""`ct rollout` as a person uses it: watched through a pipe and on a terminal until it ends, its JSON, its weights, and what each wrong use is told."""

from __future__ import annotations

import codecs
import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ct.api import verbs
from ct.cli import app
from ct.control.act import Actor
from ct.rollout import state
from tests.control import rolling

WAIT_SECONDS = 90


class Seen:
    """What a command writes to a pipe or a terminal, as it comes."""

    def __init__(self, root: Path, *, terminal: bool) -> None:
        line = [sys.executable, "-m", "ct.cli", "rollout", "watch", "--every", "0.1", "--root", str(root)]
        self.text, self._past = "", 0
        reading, writing = pty.openpty() if terminal else os.pipe()
        # Tests that run in the background of a shell are started deaf to Ctrl-C, and so would their children be.
        self.process = subprocess.Popen(
            line,
            stdout=writing,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        os.close(writing)
        self._reading = reading
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")()  # a terminal's piece may end within a character
        while True:
            try:
                more = os.read(self._reading, 65_536)
            except OSError:  # how a terminal says that nobody writes any more
                return
            if not more:
                return
            self.text += decoder.decode(more)

    def until(self, *parts: str) -> None:
        """Wait until all of it is there, after what was waited for before."""
        until = time.monotonic() + WAIT_SECONDS
        while not all(part in self.text[self._past :] for part in parts):
            assert time.monotonic() < until, f"waited for {parts}, found:\n{self.text[-3000:]}"
            time.sleep(0.02)
        self._past += max(self.text[self._past :].index(part) + len(part) for part in parts)

    def ended(self) -> int:
        """Its exit code."""
        code = self.process.wait(WAIT_SECONDS)
        self._thread.join(10)
        return code

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._thread.join(10)
        os.close(self._reading)


def test_a_rollout_is_watched_until_it_ends(tmp_path: Path) -> None:
    act = rolling.actor(tmp_path / "p", rolling.PLANS["canary"])
    act.start_rollout("v2")
    piped, shown = (Seen(tmp_path / "p", terminal=terminal) for terminal in (False, True))
    try:
        for seen in (piped, shown):
            seen.until("stable v1 0.5, canary v2 0.5; rollout r1 Progressing, step 1")
        rolling.traffic(act)
        piped.until("error_rate: canary 0 of 20, stable 0 of 20 (e-value", "v2: ")
        shown.until("0/20", "alarm at", "error_rate")
        act.set_weight(10)
        for seen in (piped, shown):
            seen.until("stable v1 0.9, canary v2 0.1; rollout r1 Paused, step 1 weight set by hand: v2 10 %")
        shown.process.send_signal(signal.SIGINT)
        assert shown.ended() == 130
        assert "the rollout goes on" in shown.text
        assert "Traceback" not in shown.text
        assert state.require(act.journal, rolling.LINE).phase == "paused"
        act.promote(full=True)
        assert piped.ended() == 0
        assert piped.text.endswith("stable v2 1; rollout r1 Succeeded promoted by hand\n")
    finally:
        for seen in (piped, shown):
            seen.close()
        act.close()


Run = Callable[..., tuple[int, str]]


@pytest.fixture
def act(tmp_path: Path) -> Iterator[Actor]:
    made = rolling.actor(tmp_path / "p", rolling.PLANS["a/b"])
    yield made
    made.close()


@pytest.fixture
def run(act: Actor, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command in this process, with replicas that are a file."""

    @contextmanager
    def same(*_: Any) -> Iterator[Actor]:
        yield act

    monkeypatch.setattr("ct.cli.rollout.actor", same)

    def invoke(*args: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["rollout", *args, "--root", str(act.settings.root)])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, done.output

    return invoke


def test_weights_of_several_are_set_by_name(act: Actor, run: Run) -> None:
    assert "has begun" in run("start", "v2", "v3")[1]
    assert run("set-weight", "v2=20", "v3=10", "--dry-run") == (0, "would set-weight v2=20 v3=10\n")
    code, said = run("set-weight", "v2=20", "v3=10")
    assert (code, act.route().shares) == (0, {"stable": 7000, "canary": 2000, "canary-2": 1000}), said
    run("set-weight", "canary-2=40")
    assert act.route().shares == {"stable": 4000, "canary": 2000, "canary-2": 4000}
    assert "stable v1 0.4, canary v2 0.2, canary-2 v3 0.4; rollout r1 Paused" in run("watch", "--once")[1]
    assert "stable 0.4, canary 0.2, canary-2 0.4" in run("history")[1]
    told = json.loads(run("history", "--json")[1])[-1]
    assert (told["epoch"], told["stable"], told["shares"]["canary-2"]) == (4, "v1", 0.4)


def test_json_has_the_keys_of_the_control_api(act: Actor, run: Run) -> None:
    assert json.loads(run("status", "--json")[1])["rollout"] is None
    run("start", "v2", "v3")
    found = json.loads(run("status", "--json")[1])
    assert set(found) == {"route", "shares", "rollout"}
    assert "key" not in found["route"]
    assert found["shares"] == {"stable": 0.4, "canary": 0.3, "canary-2": 0.3}
    _, told = verbs.read(act, "rollout", {"rollout": "r1"})
    assert found["rollout"] == {name: value for name, value in told.items() if name != "events"}
    lasting = {
        "id", "version", "others", "baseline", "state", "phase", "outcome", "cause", "reason", "step", "stage", "first_epoch",
        "started", "step_at", "ended", "evidence", "split", "segments", "gains", "apart", "gone",
    }  # fmt: skip
    assert lasting <= set(found["rollout"]), "what programs read does not go away"


def test_the_exit_code_says_how_it_ended(act: Actor, run: Run) -> None:
    assert run("watch")[0] == 0, "there is none"
    run("start", "v2", "v3")
    assert run("watch", "--once")[0] == 0
    code, said = run("abort", "--reason", "the pager")
    assert (code, "aborted by hand: the pager" in said) == (0, True)
    code, said = run("watch")
    assert (code, "RolledBack aborted by hand: the pager" in said) == (3, True)


@pytest.mark.parametrize(
    ("begun", "args", "found", "do"),
    [
        (False, ("start", "v9", "v2"), "no version 'v9'", "ct status"),
        (False, ("start", "v2"), "the versions ['v2']", "name so many"),
        (False, ("start", "v1", "v2"), "v1 is already stable", "ct status"),
        (False, ("pause",), "no rollout in progress", "ct rollout start"),
        (False, ("resume",), "no rollout in progress", "ct rollout start"),
        (False, ("promote",), "no rollout in progress", "ct rollout start"),
        (False, ("abort",), "no rollout in progress", "ct rollout start"),
        (False, ("set-weight", "v2=5"), "no rollout in progress", "ct rollout start"),
        (False, ("retry",), "has had no rollout", "ct rollout start"),
        (False, ("undo",), "an earlier version was never stable before", "ct rollout history"),
        (False, ("undo", "--to", "v2"), "v2 was never stable before", "ct rollout history"),
        (True, ("start", "v3", "v2"), "rollout r1 of v2, v3 is in progress", "ct rollout abort"),
        (True, ("retry",), "in progress", "ct rollout abort"),
        (True, ("promote",), "2 candidates", "wins"),
        (True, ("promote", "--version", "v7"), "v7 is no candidate of r1", "spelling"),
        (True, ("set-weight", "25"), "2 candidates", "VERSION=PERCENT"),
        (True, ("set-weight", "v7=25"), "v7 is no candidate", "spelling"),
        (True, ("set-weight", "v2=60", "v3=60"), "120 % together", "less first"),
        (True, ("set-weight", "v2=101"), "the weight 'v2=101'", "v2=20 v3=10"),
        (True, ("set-weight", "v2=1", "v2=2"), "the weight 'v2=2'", "v2=20 v3=10"),
        (True, ("set-weight", "half"), "the weight 'half'", "v2=20 v3=10"),
        (True, ("undo", "--to", "v1"), "v1 was never stable before", "ct rollout history"),
    ],
)
def test_wrong_uses_are_told_what_to_do(act: Actor, run: Run, begun: bool, args: tuple[str, ...], found: str, do: str) -> None:
    if begun:
        run("start", "v2", "v3")
    before = act.journal.head()
    code, said = run(*args)
    assert (code, found in said, do in said, "Traceback" in said) == (1, True, True, False), said
    assert act.journal.head() == before, "and nothing was changed"
