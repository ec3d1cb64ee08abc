"""`ct init` makes keys outside the project; `ct sign` takes a version over."""

from __future__ import annotations

import stat
import tomllib
from pathlib import Path

import pytest

from ct import settings
from ct.registry import files, versions
from ct.store import signing
from ct.store.artifacts import Artifacts
from ct.store.journal import Journal
from tests.loop import project
from tests.registry.made import made


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of keys of a user who has none."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config" / "ct" / "keys"


def test_init_makes_a_pair_of_keys_and_keeps_the_private_one_out(tmp_path: Path, home: Path) -> None:
    would = project.plain("init", str(tmp_path / "shop"), "--dry-run").stdout
    assert "would make a pair of keys" in would
    assert not home.exists()
    said = project.plain("init", str(tmp_path / "shop")).stdout
    (key,) = tomllib.loads((tmp_path / "shop" / "ct.toml").read_text())["trusted_keys"]
    private = home / signing.key_id(key)
    assert str(private) in said
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    secret = private.read_text().strip()
    assert not any(secret in path.read_text() for path in (tmp_path / "shop").rglob("*") if path.is_file())
    assert settings.load(tmp_path / "shop", {}).trusted_keys == (key,)
    project.plain("init", str(tmp_path / "shop"))
    assert len(list(home.iterdir())) == 2, "a project that has its settings keeps its key"


def test_an_unsigned_version_is_signed_with_a_reason(tmp_path: Path, home: Path) -> None:
    folder = project.write(tmp_path / "shop", 8000)
    place = settings.load(folder)
    journal, artifacts = Journal(place.database), Artifacts(place.place("artifacts"))
    manifest = artifacts.put_set(made("run-1"))
    versions.register(journal, "late-orders", manifest=manifest, run="run-1", verdict="pass", metrics={})
    refused = project.ct(folder, "status", "--verify", check=False)
    assert refused.returncode == 1
    assert "there is no signature" in refused.stderr
    assert "ct sign VERSION" in refused.stderr
    assert project.ct(folder, "sign", "v1", "--reason", " ", check=False).returncode == 1
    project.ct(folder, "sign", "v1", "--reason", "made before there were signatures")
    assert set(files.fetch(artifacts, manifest)) == set(files.NAMES)
    (event,) = journal.read(versions.stream("late-orders"), types=["VersionSigned"])
    assert event.data["reason"] == "made before there were signatures"
