"""Checkpoints of a run. Each attempt at it writes below a folder of its own, tensors first and the manifest last; without its manifest
a checkpoint is not there. A new attempt fences off the earlier ones: what they write from then on counts nowhere.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ct.errors import Conflict, Corrupt
from ct.ids import canonical, sha256, sha256_file
from ct.store.files import sync_folder

Tensors = Mapping[str, NDArray[Any]]
Note = Callable[[str], None]
_KEPT = 2
_FENCE = "fence.json"


@dataclass(frozen=True)
class Checkpoint:
    """State after `step` steps. `key` names what decides the run's bytes: rows, model, numeric contract. `course` is plain data: the
    history so far and what else the loop must know to go on.
    """

    key: str
    step: int
    tensors: Tensors
    course: Mapping[str, Any]


@dataclass(frozen=True)
class Attempt:
    """One attempt at a run, and the only one that may write: as soon as a later one begins, `save` raises Conflict.

    `newest` is the checkpoint to go on from, below `folder`; empty: there is none. `notes` say what was passed over.
    """

    folder: Path
    number: int
    key: str
    newest: str = ""
    notes: tuple[str, ...] = ()

    @staticmethod
    def begin(folder: Path, key: str) -> Attempt:
        """Raise the fence and look for the newest whole checkpoint of `key`. Of several that begin at once each gets its own number."""
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            number = _latest(folder) + 1
            newest, seen, notes = _survey(folder, key)
            part = folder / f".{secrets.token_hex(6)}"
            part.mkdir()
            _write(part / _FENCE, canonical({"attempt": number, "seen": seen}))
            sync_folder(part)
            try:
                part.rename(folder / _name(number))  # fails where another attempt's folder is, which is not empty
            except OSError:
                shutil.rmtree(part, ignore_errors=True)
                if _latest(folder) < number:
                    raise
                continue
            sync_folder(folder)
            return Attempt(folder, number, key, newest, notes)

    def save(self, state: Checkpoint) -> None:
        """Write a checkpoint whole or not at all, then drop all but the newest two. Raises Conflict when a later attempt has begun."""
        self._alone()
        place = self.folder / _name(self.number) / f"step-{state.step:012}"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        file = place / "state.safetensors"
        save_file({name: np.asarray(value, order="C") for name, value in state.tensors.items()}, file)
        with file.open("rb+") as handle:
            os.fsync(handle.fileno())
        body = {"key": state.key, "step": state.step, "sha256": sha256_file(file), "course": dict(state.course)}
        self._alone()
        _write(place / "manifest.json", canonical({"body": body, "sha256": sha256(canonical(body))}))
        sync_folder(place)
        self._prune()

    def _alone(self) -> None:
        if (latest := _latest(self.folder)) > self.number:
            raise Conflict(
                f"attempt {self.number} at this run was given up: attempt {latest} has begun",
                "one attempt at a time",
                "nothing; the later one goes on",
            )

    def _prune(self) -> None:
        """Only what this attempt's own two newest make needless; another attempt's folder goes as a whole."""
        mine = sorted((self.folder / _name(self.number)).glob("step-*/manifest.json"), reverse=True)
        for manifest in mine[_KEPT:]:
            shutil.rmtree(manifest.parent, ignore_errors=True)
        if len(mine) >= _KEPT:
            self._alone()
            for number, other in _attempts(self.folder):
                if number < self.number:
                    shutil.rmtree(other, ignore_errors=True)


def load(folder: Path, name: str, key: str) -> Checkpoint:
    """The checkpoint `name` below `folder`. Raises Corrupt when it is not whole, or is one of another key."""
    place = folder / name
    try:
        said = json.loads((place / "manifest.json").read_text(encoding="utf-8"))
        body = said["body"]
        if said["sha256"] != sha256(canonical(body)) or body["key"] != key:
            raise ValueError("its manifest has changed")
        if sha256_file(place / "state.safetensors") != body["sha256"]:
            raise ValueError("its tensors have changed")
        return Checkpoint(key, body["step"], load_file(place / "state.safetensors"), body["course"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise Corrupt(
            f"the checkpoint {name} cannot be used: {error}", "the bytes that were written", "an earlier one is taken"
        ) from None


def newest(folder: Path, key: str) -> Checkpoint | None:
    """The newest whole checkpoint of `key`, None when there is none. For who only looks: it begins no attempt."""
    name = _survey(folder, key)[0] if folder.is_dir() else ""
    return load(folder, name, key) if name else None


def _survey(folder: Path, key: str) -> tuple[str, list[str], tuple[str, ...]]:
    """The newest whole checkpoint of `key`, the names of all that count (but those found broken), and what is to be told."""
    seen, broken, notes = [], [], []
    chosen = ""
    for name in _counting(folder):
        if not chosen and _key(folder / name) in (key, None):
            try:
                load(folder, name, key)
                chosen = name
            except Corrupt as error:
                broken.append(name)
                notes.append(error.found)
                continue
        seen.append(name)
    if broken and not chosen:
        notes.append("no whole checkpoint is left: the run begins anew")
    return chosen, seen, tuple(notes)


def _key(place: Path) -> str | None:
    """The key that a manifest tells, None when it cannot be read."""
    try:
        return str(json.loads((place / "manifest.json").read_text(encoding="utf-8"))["body"]["key"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _counting(folder: Path) -> list[str]:
    """All checkpoints with a manifest, newest first, but those that an attempt wrote after a later one had begun."""
    attempts = list(_attempts(folder))  # one look: another attempt may begin meanwhile
    fences = {number: _fence(place) for number, place in attempts}
    found = []
    for number, place in attempts:
        for manifest in place.glob("step-*/manifest.json"):
            name = f"{place.name}/{manifest.parent.name}"
            if fences[number] is not None and all(
                name in (fence or ()) for later, fence in fences.items() if later > number and fence is not None
            ):
                found.append((manifest.parent.name, number, name))
    return [name for _, _, name in sorted(found, reverse=True)]


def _fence(place: Path) -> frozenset[str] | None:
    try:
        return frozenset(json.loads((place / _FENCE).read_text(encoding="utf-8"))["seen"])
    except (OSError, ValueError, KeyError, TypeError):  # being removed, or changed by somebody: it fences nothing
        return None


def _attempts(folder: Path) -> Iterator[tuple[int, Path]]:
    for place in folder.glob("attempt-*"):
        if place.name[8:].isdigit():
            yield int(place.name[8:]), place


def _latest(folder: Path) -> int:
    return max((number for number, _ in _attempts(folder)), default=0)


def _name(number: int) -> str:
    return f"attempt-{number:06}"


def _write(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}")
    with part.open("w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(part, path)


@dataclass
class Writer:
    """Writes an attempt's checkpoints behind the training, one after the other. A write that fails is told and training goes on; one
    that a later attempt forbids stops it.
    """

    attempt: Attempt
    note: Note
    _thread: threading.Thread | None = None
    _fault: list[Conflict] = field(default_factory=list)

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is still being written."""
        return self._thread is not None and self._thread.is_alive()

    def put(self, state: Checkpoint) -> None:
        """Write `state`, whose arrays nobody may change from now on, when the one before is written. Raises Conflict as `save`."""
        self.wait()
        self._thread = threading.Thread(target=self._save, args=(state,), name="checkpoint", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until nothing is being written. Raises Conflict when a later attempt has begun."""
        if self._thread is not None:
            self._thread.join()
        if self._fault:
            raise self._fault[0]

    def finish(self) -> None:
        """Until nothing is being written, whatever came of it."""
        if self._thread is not None:
            self._thread.join()

    def _save(self, state: Checkpoint) -> None:
        try:
            self.attempt.save(state)
        except Conflict as error:
            self._fault.append(error)
        except Exception as error:  # whatever a disk can do
            self.note(f"the checkpoint after step {state.step} could not be written: {error}; training goes on without it")


def digest(tensors: Tensors) -> str:
    """SHA-256 over names, types, shapes and bytes, in order of name."""
    parts = [
        [name, str(value.dtype), list(value.shape), sha256(np.asarray(value, order="C").tobytes())]
        for name, value in sorted(tensors.items())
    ]
    return sha256(canonical(parts))
