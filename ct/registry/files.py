"""The files of a model version: their names, what the spec says, storing them signed and reading them back verified. Knows neither torch nor ONNX."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ct.errors import Corrupt
from ct.ids import canonical
from ct.objectives import Objective
from ct.store.artifacts import Artifacts

WEIGHTS = "weights.safetensors"
SPEC = "spec.json"
ENCODER = "encoder.json"
GOLDEN = "golden.json"
ONNX = "model.onnx"
CODE = "code.zip"
NAMES = (WEIGHTS, SPEC, ENCODER, GOLDEN, ONNX, CODE)
REQUIRED = frozenset(NAMES) - {ONNX}
"""A version whose module cannot be exported has no graph: torch runs it."""
FORMAT = 2


@dataclass(frozen=True)
class ModelSpec:
    """All that serving must know of a model besides its numbers.

    `request` maps each request column to "number", "text" or "time"; `features` are the declared features as data
    (features/declare.py turns them back); `observe` maps each table's columns to their kinds, `personal` its personal columns to
    "dropped", "keyed" or "own"; `table` is the predicted one. `calibration` is a part of the graph already. `model` says how the module is
    built again from the weights (training/recipe.py; {} when it cannot be); `graph` why there is no ONNX graph, "" when there is one.
    """

    endpoint: str
    version: str
    key: tuple[str, ...]
    time: str
    request: Mapping[str, str]
    segments: tuple[str, ...]
    features: tuple[Mapping[str, Any], ...]
    label: Mapping[str, Any]
    threshold: float
    observe: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    table: str = ""
    personal: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    lineage: Mapping[str, Any] = field(default_factory=dict)
    objective: Mapping[str, Any] = field(default_factory=lambda: asdict(Objective()))
    calibration: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    graph: str = ""
    format: int = FORMAT

    def to_bytes(self) -> bytes:
        """One spelling of the spec as JSON."""
        return canonical(asdict(self)).encode()

    @staticmethod
    def from_bytes(data: bytes) -> ModelSpec:
        """The spec that `to_bytes` wrote. Raises Corrupt for another format."""
        fields = json.loads(data)
        if fields.get("format") != FORMAT:
            raise Corrupt(f"a model spec of format {fields.get('format')!r}", f"format {FORMAT}", "retrain or upgrade ct")
        for name in ("key", "segments", "features"):
            fields[name] = tuple(fields[name])
        return ModelSpec(**fields)


def store(artifacts: Artifacts, files: Mapping[str, bytes]) -> str:
    """Store and sign a version's files, read them back, and return the manifest's digest.

    Raises Corrupt when a file is missing or comes back differently, Untrusted without a key to sign with.
    """
    if missing := REQUIRED - set(files):
        raise Corrupt(f"the model lacks {sorted(missing)}", f"the files {sorted(REQUIRED)}", "export it again")
    manifest = artifacts.put_set(files)
    artifacts.sign(manifest)
    fetch(artifacts, manifest)
    return manifest


def fetch(artifacts: Artifacts, manifest: str) -> dict[str, bytes]:
    """A version's files: first the manifest's signature is verified, then every byte against the manifest; nothing is parsed before.

    Raises Untrusted, NotFound or Corrupt.
    """
    files = artifacts.get_signed(manifest)
    if missing := REQUIRED - set(files):
        raise Corrupt(f"the model lacks {sorted(missing)}", f"the files {sorted(REQUIRED)}", "export it again")
    return files
