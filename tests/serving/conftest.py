"""Lets the tests of this folder share tiny.py, and gives each its own project."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ct import settings
from ct.store.artifacts import Artifacts
from ct.store.journal import Journal

sys.path.insert(0, str(Path(__file__).parent))

from tiny import Project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """An empty project."""
    found = settings.load(tmp_path, environ={}, max_body_bytes=4096, max_rows=100)
    return Project(found, Artifacts(found.place("artifacts")), Journal(found.database))
