"""Settings: where each comes from, what is wrong is told, no secret is."""

from __future__ import annotations

from pathlib import Path

import pytest

from ct import settings
from ct.errors import InvalidSettings


def test_flags_win_over_the_environment_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "ct.toml").write_text("port = 1001\nreplicas = 3\nworkers = 2\n")
    found = settings.load(tmp_path, {"CT_PORT": "1002", "CT_WORKERS": "4"}, port=1003, host=None)
    assert (found.port, found.workers, found.replicas, found.host) == (1003, 4, 3, "127.0.0.1")


@pytest.mark.parametrize(
    ("storage", "place"),
    [
        ("", "{root}/.ct/warehouse"),
        ("kept", "{root}/kept/warehouse"),
        ("/srv/kept", "/srv/kept/warehouse"),
        ("file:///srv/kept", "/srv/kept/warehouse"),
        ("s3://bucket", "s3://bucket/warehouse"),
        ("s3://bucket/some/prefix/", "s3://bucket/some/prefix/warehouse"),
    ],
)
def test_where_things_are_kept(tmp_path: Path, storage: str, place: str) -> None:
    assert settings.load(tmp_path, {"CT_STORAGE": storage}).place("warehouse") == place.format(root=tmp_path.resolve())


@pytest.mark.parametrize("storage", ["gs://bucket/x", "s3://", "http://host/x", "s3://key:hunter2@bucket/x"])
def test_other_places_are_refused(tmp_path: Path, storage: str) -> None:
    with pytest.raises(InvalidSettings, match="storage") as found:
        settings.load(tmp_path, {"CT_STORAGE": storage})
    assert "hunter2" not in str(found.value)


def test_no_secret_is_shown(tmp_path: Path) -> None:
    given = {
        "CT_DATABASE_URL": "postgresql://ann:hunter2@host/db",
        "CT_ONLINE_URL": "redis://:hunter2@host/0",
        "CT_WEBHOOK": "https://hooks/hunter2",
    }
    found = settings.load(tmp_path, given)
    assert "hunter2" not in repr(found) + str(found)
    assert found.database == given["CT_DATABASE_URL"]
    with pytest.raises(InvalidSettings) as wrong:
        settings.load(tmp_path, database_url=["hunter2"], port="seven")
    assert "hunter2" not in str(wrong.value)
    assert "'seven'" in str(wrong.value)


def test_an_unknown_key_is_told_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "ct.toml").write_text("storge = 'kept'\n")
    with pytest.raises(InvalidSettings, match="did you mean 'storage'"):
        settings.load(tmp_path, {})


def test_approvers_come_as_a_list_or_with_commas(tmp_path: Path) -> None:
    (tmp_path / "ct.toml").write_text('approvers = ["alice", "bob"]\n')
    assert settings.load(tmp_path, {}).approvers == ("alice", "bob")
    assert settings.load(tmp_path, {"CT_APPROVERS": "carol, dan"}).approvers == ("carol", "dan")


@pytest.mark.parametrize(
    ("given", "meant"), [("0", 0), ("2", 2), (3, 3), ("1:4", (1, 4)), (" 2 : 2 ", (2, 2)), ([1, 4], (1, 4))]
)
def test_workers_are_a_number_or_the_least_and_the_most(tmp_path: Path, given: object, meant: object) -> None:
    assert settings.load(tmp_path, {}, workers=given).workers == meant


@pytest.mark.parametrize("given", ["many", "-1", -1, "4:1", "0:2", "1:2:3", "1:", 2000, 1.5, True])
def test_other_workers_are_refused(tmp_path: Path, given: object) -> None:
    with pytest.raises(InvalidSettings, match="workers = "):
        settings.load(tmp_path, {}, workers=given)


@pytest.mark.parametrize(("given", "meant"), [(3, 3), ("2", 2), ("2:8", (2, 8)), ([2, 8], (2, 8))])
def test_replicas_are_a_number_or_the_least_and_the_most(tmp_path: Path, given: object, meant: object) -> None:
    found = settings.load(tmp_path, {}, replicas=given)
    assert found.replicas == meant
    assert found.replica_range == (meant if isinstance(meant, tuple) else (meant, meant))


@pytest.mark.parametrize("given", [0, "0", "0:2", "3:2", "1:2:3", "two", 1001, -1, 1.5])
def test_other_replicas_are_refused(tmp_path: Path, given: object) -> None:
    with pytest.raises(InvalidSettings, match="replicas = "):
        settings.load(tmp_path, {}, replicas=given)
