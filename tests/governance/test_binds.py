"""B20: nothing listens beyond loopback without a live token; no secret is read from a file that others can open."""

from __future__ import annotations

import socket
import ssl
import threading
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ct import settings
from ct.errors import InvalidSettings, Unavailable
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
    binds.without_plain_grpc(place)
    with pytest.raises(InvalidSettings, match="grpc_port 9000 would speak without TLS"):
        binds.without_plain_grpc(place.model_copy(update={"grpc_port": 9000}))
    binds.without_plain_grpc(place.model_copy(update={"grpc_port": 9000, "tls_cert": None, "tls_key": None}))


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


def _certificate(folder: Path, name: str) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    begun = datetime.now(UTC) - timedelta(days=1)
    made = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    made = made.serial_number(1).not_valid_before(begun).not_valid_after(begun + timedelta(days=3))
    cert, secret = folder / f"{name}.pem", folder / f"{name}.key"
    cert.write_bytes(made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    secretfiles.write(secret, key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain).decode())
    return cert, secret


@pytest.mark.parametrize("shown", ["own", "other", "plain"])
def test_what_was_started_is_seen_to_speak_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shown: str) -> None:
    """A head that was started before `tls_cert` was set speaks plain HTTP, which a client's token must never meet."""
    monkeypatch.setattr(binds, "TLS_SECONDS", 1.0)
    _certificate(tmp_path, "own")
    with socket.create_server(("127.0.0.1", 0)) as server:
        listening: socket.socket = server
        if shown != "plain":
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(
                *_certificate(tmp_path, "other") if shown == "other" else (tmp_path / "own.pem", tmp_path / "own.key")
            )
            listening = context.wrap_socket(server, server_side=True)

        def serve() -> None:
            with suppress(OSError):
                while True:
                    listening.accept()[0].close()

        threading.Thread(target=serve, daemon=True).start()
        place = settings.load(tmp_path, environ={}, port=listening.getsockname()[1])
        place = place.model_copy(update={"tls_cert": Path("own.pem"), "tls_key": Path("own.key")})
        if shown == "own":
            binds.speaks_tls(place)
        else:
            with pytest.raises(Unavailable, match="does not speak TLS"):
                binds.speaks_tls(place)
        listening.close()
