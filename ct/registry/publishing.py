"""From a version's files to a registered version: stored, signed, read back, and only then recorded, under the name that is free by then."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ct.errors import Conflict
from ct.registry import files, versions
from ct.registry.files import SPEC, ModelSpec
from ct.registry.versions import Version
from ct.store.artifacts import Artifacts
from ct.store.journal import Guard, Journal

_TRIES = 20


def publish(
    journal: Journal,
    artifacts: Artifacts,
    pipeline: str,
    made: Mapping[str, bytes],
    *,
    run: str,
    verdict: str,
    metrics: Mapping[str, float],
    reasons: tuple[str, ...] = (),
    guard: Guard | None = None,
) -> Version:
    """Store and register a run's files. When another run takes their name meanwhile, they are named anew; the same run gets its version.

    `guard` is the run's lease, see `Journal.append`. Raises what it raises, Corrupt or Untrusted for files that cannot be read back.
    """
    for _ in range(_TRIES):
        seen = journal.version(versions.stream(pipeline))
        name = versions.next_name(journal, pipeline, run)
        manifest = files.store(artifacts, named(made, name))
        try:
            return versions.register(
                journal,
                pipeline,
                manifest=manifest,
                run=run,
                verdict=verdict,
                metrics=metrics,
                reasons=reasons,
                version=name,
                guard=guard,
            )
        except Conflict:
            if journal.version(versions.stream(pipeline)) == seen:
                raise  # nobody else was first: it is the guard that refuses
    raise Conflict(f"{_TRIES} other versions were registered meanwhile", "a quieter moment", "call it again; it goes on")


def named(made: Mapping[str, bytes], version: str) -> dict[str, bytes]:
    """The same files under another version's name."""
    return {**made, SPEC: replace(ModelSpec.from_bytes(made[SPEC]), version=version).to_bytes()}
