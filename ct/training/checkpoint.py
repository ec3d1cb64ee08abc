"""Checkpoints: tensors as safetensors in a folder of their own, and a manifest that is written last. Without its manifest a checkpoint is not there."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from ct.ids import canonical, sha256, sha256_file
from ct.store.files import sync_folder

Tensors = Mapping[str, NDArray[Any]]
_KEPT = 2


@dataclass(frozen=True)
class Checkpoint:
    """State after `step` steps. `key` names what decides the run's bytes: rows, model, numeric contract."""

    key: str
    step: int
    tensors: Tensors
    history: tuple[dict[str, Any], ...]


def save(folder: Path, state: Checkpoint) -> None:
    """Write a checkpoint whole or not at all, then drop all but the newest two."""
    attempt = folder / f"step-{state.step:09}-{secrets.token_hex(4)}"
    attempt.mkdir(parents=True)
    file = attempt / "state.safetensors"
    save_file({name: np.asarray(value, order="C") for name, value in state.tensors.items()}, file)
    with file.open("rb+") as handle:
        os.fsync(handle.fileno())
    manifest = {"key": state.key, "step": state.step, "sha256": sha256_file(file), "history": list(state.history)}
    part = attempt / ".manifest.json"
    with part.open("w") as handle:
        handle.write(canonical(manifest))
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(part, attempt / "manifest.json")
    sync_folder(attempt)
    complete = sorted(path.parent for path in folder.glob("step-*/manifest.json"))
    torn = [path for path in folder.glob("step-*") if path.name < f"step-{state.step:09}" and path not in complete]
    for old in complete[:-_KEPT] + torn:
        shutil.rmtree(old, ignore_errors=True)


def newest(folder: Path, key: str) -> Checkpoint | None:
    """The newest checkpoint of `key` whose bytes are what its manifest says, None when there is none.

    Torn and changed ones are passed over, and so are those of another key.
    """
    for manifest in sorted(folder.glob("step-*/manifest.json"), reverse=True):
        file = manifest.parent / "state.safetensors"
        said = json.loads(manifest.read_text())
        if said["key"] == key and file.is_file() and sha256_file(file) == said["sha256"]:
            return Checkpoint(key, said["step"], load_file(file), tuple(said["history"]))
    return None


def digest(tensors: Tensors) -> str:
    """SHA-256 over names, types, shapes and bytes, in order of name."""
    parts = [
        [name, str(value.dtype), list(value.shape), sha256(np.asarray(value, order="C").tobytes())]
        for name, value in sorted(tensors.items())
    ]
    return sha256(canonical(parts))
