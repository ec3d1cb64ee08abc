"""B20: nothing listens beyond loopback without a live token; no secret is read from a file that others can open."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ct import settings
from ct.errors import InvalidSettings
from ct.governance import access, binds, secretfiles
from ct.store.journal import Journal


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "localhost", "::1", "[::1]"])
def test_these_hosts_are_loopback(host: str) -> None:
    assert binds.loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "localhost.example.com", "127.0.0.1.example.com", "", "*"])
def test_these_are_not(host: str) -> None:
    assert not binds.loopback(host)


def test_beyond_loopback_a_live_token_is_needed(tmp_path: Path) -> None:
    place = settings.load(tmp_path, environ={}, host="0.0.0.0")
    journal = Journal(f"sqlite:///{tmp_path / 'journal.db'}")
    binds.check(place, "127.0.0.1", journal)
    with pytest.raises(InvalidSettings, match="ct token create"):
        binds.check(place, "0.0.0.0", journal)
    access.create(journal, "shop", "predict", expires=datetime.now(UTC) + timedelta(hours=1))
    binds.check(place, "0.0.0.0", journal)
    access.revoke(journal, "shop")
    with pytest.raises(InvalidSettings, match="no live token"):
        binds.check(place, "0.0.0.0", journal)


def test_tls_needs_both_files_and_a_key_that_only_its_owner_reads(tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert.write_text("certificate")
    key.write_text("key")
    key.chmod(0o644)
    with pytest.raises(InvalidSettings, match="tls_key is missing"):
        binds.tls(settings.load(tmp_path, environ={}, tls_cert="cert.pem"))
    place = settings.load(tmp_path, environ={}, tls_cert="cert.pem", tls_key="key.pem")
    with pytest.raises(InvalidSettings, match="chmod 600"):
        binds.tls(place)
    key.chmod(0o600)
    assert binds.tls(place) == {"ssl_certfile": str(cert), "ssl_keyfile": str(key)}
    assert place.endpoint.startswith("https://")
    with pytest.raises(InvalidSettings, match="HAProxy"):
        binds.without_haproxy(place, {binds.HAPROXY: "1"})
    binds.without_haproxy(place, {binds.HAPROXY: "0"})


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o601])
def test_a_secret_that_others_may_open_is_not_read(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "secret"
    secretfiles.write(path, "ct_abc")
    assert path.stat().st_mode & 0o777 == 0o600
    assert secretfiles.read(path) == "ct_abc"
    path.chmod(mode)
    with pytest.raises(InvalidSettings, match=f"{mode:04o}") as caught:
        secretfiles.read(path)
    assert "ct_abc" not in str(caught.value)


def test_a_secret_written_anew_keeps_nothing_of_the_old_files_mode(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("old")
    path.chmod(0o666)
    secretfiles.write(path, "new")
    assert secretfiles.read(path) == "new"
    assert [found.name for found in tmp_path.iterdir()] == ["secret"]
