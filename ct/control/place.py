"""Where a project's work is carried out: its pipeline, settings and stores, handed to whoever works there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ct.pipeline import Pipeline
from ct.settings import Settings
from ct.store.artifacts import Artifacts
from ct.store.journal import Journal

Step = Callable[[str], None]


@dataclass(frozen=True)
class Place:
    """One project's pipeline, settings, journal and artifacts."""

    pipeline: Pipeline
    settings: Settings
    journal: Journal
    artifacts: Artifacts
