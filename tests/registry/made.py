"""The files of a version as the registry sees them: a real spec, and bytes for the rest."""

from __future__ import annotations

from ct.registry import files
from ct.registry.files import ModelSpec


def made(run: str) -> dict[str, bytes]:
    """Files that differ by run."""
    spec = ModelSpec(
        endpoint="p", version="v1", key=("k",), time="t", request={}, segments=(), features=(), label={}, threshold=0.5
    )
    return {name: f"{name} of {run}".encode() for name in files.NAMES} | {files.SPEC: spec.to_bytes()}
