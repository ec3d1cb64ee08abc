"""Checkpoints: whole or not there, verified when they are read, and never from an attempt that was given up."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ct.errors import Conflict, Corrupt
from ct.training import checkpoint
from ct.training.checkpoint import Attempt, Checkpoint, Writer


def state(step: int, key: str = "k") -> Checkpoint:
    return Checkpoint(key, step, {"a": np.full(3, step, np.float32)}, {"history": [{"loss": 0.1 * step}]})


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    first = Attempt.begin(tmp_path, "k")
    assert (first.number, first.newest, first.notes) == (1, "", ())
    first.save(state(7))
    second = Attempt.begin(tmp_path, "k")
    assert second.number == 2
    found = checkpoint.load(tmp_path, second.newest, "k")
    assert (found.step, found.course) == (7, {"history": [{"loss": 0.1 * 7}]})
    np.testing.assert_array_equal(found.tensors["a"], np.full(3, 7, np.float32))


def test_only_the_newest_two_are_kept_and_earlier_attempts_go(tmp_path: Path) -> None:
    first = Attempt.begin(tmp_path, "k")
    for step in range(1, 6):
        first.save(state(step))
    assert steps(tmp_path) == [4, 5]
    second = Attempt.begin(tmp_path, "k")
    second.save(state(6))
    assert steps(tmp_path) == [4, 5, 6], "an earlier attempt's go only when there are two newer ones"
    second.save(state(7))
    assert steps(tmp_path) == [6, 7]


def steps(folder: Path) -> list[int]:
    return sorted(int(path.parent.name[5:]) for path in folder.glob("attempt-*/step-*/manifest.json"))


@pytest.mark.parametrize("file", ["state.safetensors", "manifest.json"])
@pytest.mark.parametrize("how", ["flipped", "truncated", "gone"])
def test_a_broken_one_is_passed_over_and_told(tmp_path: Path, file: str, how: str) -> None:
    first = Attempt.begin(tmp_path, "k")
    first.save(state(1))
    first.save(state(2))
    path = tmp_path / "attempt-000001" / "step-000000000002" / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data if how == "flipped" else data[: len(data) // 2])
    if how == "gone":
        path.unlink()
    second = Attempt.begin(tmp_path, "k")
    assert second.newest.endswith("step-000000000001")
    if (file, how) != ("manifest.json", "gone"):  # without its manifest it never was there
        assert "step-000000000002 cannot be used" in second.notes[0]
    found = checkpoint.newest(tmp_path, "k")
    assert found is not None
    assert found.step == 1


def test_a_start_from_nothing_is_told_when_all_are_broken(tmp_path: Path) -> None:
    Attempt.begin(tmp_path, "k").save(state(1))
    next(tmp_path.glob("attempt-*/step-*/state.safetensors")).write_bytes(b"half")
    again = Attempt.begin(tmp_path, "k")
    assert again.newest == ""
    assert again.notes[-1] == "no whole checkpoint is left: the run begins anew"


def test_another_key_is_another_run(tmp_path: Path) -> None:
    Attempt.begin(tmp_path, "k").save(state(1))
    other = Attempt.begin(tmp_path, "other")
    assert (other.newest, other.notes) == ("", ())
    assert checkpoint.newest(tmp_path, "other") is None
    with pytest.raises(Corrupt, match="cannot be used"):
        checkpoint.load(tmp_path, "attempt-000001/step-000000000001", "other")


def test_a_given_up_attempt_can_write_nothing(tmp_path: Path) -> None:
    first = Attempt.begin(tmp_path, "k")
    first.save(state(1))
    second = Attempt.begin(tmp_path, "k")
    with pytest.raises(Conflict, match="attempt 2 has begun"):
        first.save(state(9))
    second.save(state(2))
    found = checkpoint.newest(tmp_path, "k")
    assert found is not None
    assert found.step == 2


def test_what_a_given_up_attempt_writes_at_the_last_moment_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was stopped between its look at the fence and its manifest, and woke after another attempt had begun."""
    first = Attempt.begin(tmp_path, "k")
    first.save(state(1))
    second = Attempt.begin(tmp_path, "k")
    with monkeypatch.context() as asleep:
        asleep.setattr(Attempt, "_alone", lambda attempt: None)
        first.save(state(9))
    assert steps(tmp_path) == [1, 9]
    assert Attempt.begin(tmp_path, "k").newest.endswith("step-000000000001")
    del second


def test_attempts_that_begin_at_once_get_numbers_of_their_own(tmp_path: Path) -> None:
    made: list[Attempt] = []
    threads = [threading.Thread(target=lambda: made.append(Attempt.begin(tmp_path, "k"))) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(attempt.number for attempt in made) == list(range(1, 13))
    assert not list(tmp_path.glob(".*")), "nothing half is left"


def test_an_attempt_may_begin_while_another_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Attempt.begin(tmp_path, "k").save(state(1))
    plain = checkpoint._fence

    def meanwhile(place: Path) -> frozenset[str] | None:
        monkeypatch.setattr(checkpoint, "_fence", plain)
        Attempt.begin(tmp_path, "k").save(state(2))
        return plain(place)

    monkeypatch.setattr(checkpoint, "_fence", meanwhile)
    found = checkpoint.newest(tmp_path, "k")
    assert found is not None
    assert found.step == 1


@given(st.lists(st.tuples(st.sampled_from(["begin", "save", "late"]), st.integers(0, 3)), max_size=14))
def test_the_newest_that_counts_is_the_last_that_an_attempt_saved_in_its_time(
    tmp_path_factory: pytest.TempPathFactory, story: list[tuple[str, int]]
) -> None:
    """Any story of attempts that begin, save, and save too late, against a plain list of what was saved in time."""
    folder = tmp_path_factory.mktemp("story")
    attempts = [Attempt.begin(folder, "k")]
    saved, step = [0], 0
    for what, which in story:
        if what == "begin":
            attempts.append(Attempt.begin(folder, "k"))
            continue
        step += 1
        if what == "save":
            attempts[-1].save(state(step))
            saved.append(step)
        elif which < len(attempts) - 1:
            late = attempts[which]
            place = folder / f"attempt-{late.number:06}" / f"step-{step:012}"
            if place.parent.is_dir():  # as `save` without its look at the fence
                free = Attempt(folder / f"elsewhere-{step}", late.number, "k")
                (free.folder / place.parent.name).mkdir(parents=True, exist_ok=True)
                free.save(state(step))
                (free.folder / place.parent.name / place.name).rename(place)
    found = checkpoint.newest(folder, "k")
    assert (found.step if found else 0) == saved[-1]


def test_a_failed_write_is_told_and_a_forbidden_one_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    writer = Writer(Attempt.begin(tmp_path, "k"), notes.append)
    with monkeypatch.context() as full:
        full.setattr(checkpoint, "save_file", raising(OSError(28, "No space left on device")))
        writer.put(state(1))
        writer.wait()
    assert notes == [
        "the checkpoint after step 1 could not be written: [Errno 28] No space left on device; training goes on without it"
    ]
    writer.put(state(2))
    writer.wait()
    assert steps(tmp_path) == [2]
    Attempt.begin(tmp_path, "k")
    writer.put(state(3))
    with pytest.raises(Conflict, match="was given up"):
        writer.wait()


def raising(error: Exception) -> object:
    def call(*args: object) -> None:
        raise error

    return call


def test_a_writer_does_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go = threading.Event(), threading.Event()
    plain = Attempt.save

    def slow(attempt: Attempt, what: Checkpoint) -> None:
        begun.set()
        go.wait(30)
        plain(attempt, what)

    monkeypatch.setattr(Attempt, "save", slow)
    writer = Writer(Attempt.begin(tmp_path, "k"), print)
    writer.put(state(1))
    assert begun.wait(30)
    assert writer.busy, "putting does not wait for the disk"
    second = threading.Thread(target=writer.put, args=(state(2),))
    second.start()
    second.join(0.2)
    assert second.is_alive(), "the next one waits for the one before"
    go.set()
    second.join(30)
    writer.wait()
    assert steps(tmp_path) == [1, 2]


def test_a_manifest_holds_floats_exactly(tmp_path: Path) -> None:
    loss = 0.1 + 0.2
    Attempt.begin(tmp_path, "k").save(Checkpoint("k", 1, {}, {"loss": loss}))
    found = checkpoint.newest(tmp_path, "k")
    assert found is not None
    assert found.course["loss"] == loss
    assert json.loads(next(tmp_path.glob("*/*/manifest.json")).read_text())["body"]["step"] == 1
