"""Which runtime holds a version, as replicas told it. They tell what a reader would not expect: another than ONNX Runtime, or than was asked for."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from ct.store.journal import Journal, New

_TYPE = "VersionHeld"


@dataclass(frozen=True)
class Held:
    """The runtime that holds the version with this manifest, the one that was asked for, and why it is another ("" when it is not)."""

    version: str
    manifest: str
    runtime: str
    wanted: str
    instead: str = ""


def tell(journal: Journal, endpoint: str, held: Held) -> bool:
    """Journal it, unless that was the last that was told of the version. Returns whether it was written. Raises Unavailable."""
    if told(journal, endpoint).get(held.manifest) == held:
        return False
    journal.append(_stream(endpoint), [New(_TYPE, asdict(held))])
    return True


def told(journal: Journal, endpoint: str) -> dict[str, Held]:
    """What was told last of each manifest."""
    return {event.data["manifest"]: Held(**event.data) for event in journal.read(_stream(endpoint), types=[_TYPE])}


def _stream(endpoint: str) -> str:
    return f"audit/{endpoint}"
