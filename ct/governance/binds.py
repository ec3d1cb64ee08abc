"""What may listen where: beyond loopback only with a token, over TLS only with a key that nobody else can read."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Mapping
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

from ct.errors import InvalidSettings, Unavailable
from ct.governance import access, secretfiles
from ct.settings import Settings
from ct.store.journal import Journal

HAPROXY = "RAY_SERVE_ENABLE_HA_PROXY"
TLS_SECONDS = 10.0


def loopback(host: str) -> bool:
    """Is `host` an address that only this machine reaches?"""
    if host.lower() == "localhost":
        return True
    with suppress(ValueError):
        return ip_address(host.strip("[]")).is_loopback
    return False


def check(settings: Settings, host: str, journal: Journal, *, what: str = "the endpoint") -> None:
    """Refuse to listen on `host` beyond loopback while there is no live token; and TLS that would not work or whose key others can read.

    Raises InvalidSettings.
    """
    tls(settings)
    if not loopback(host) and not access.anyone(journal):
        raise InvalidSettings(
            f"{what} would listen on {host}, where others reach it, and there is no live token",
            "a token, or host = \"127.0.0.1\"",
            "make one with `ct token create NAME --role predict`",
        )  # fmt: skip


def tls(settings: Settings) -> dict[str, str]:
    """Serve's HTTP options for TLS: ssl_certfile and ssl_keyfile, absolute; {} without. Raises InvalidSettings."""
    if settings.tls_cert is None and settings.tls_key is None:
        return {}
    if settings.tls_cert is None or settings.tls_key is None:
        missing = "tls_cert" if settings.tls_cert is None else "tls_key"
        raise InvalidSettings(f"{missing} is missing", "tls_cert and tls_key together", "name both files, or none")
    cert, key = settings.root / settings.tls_cert, settings.root / settings.tls_key
    if not cert.is_file():
        raise InvalidSettings(f"there is no certificate {cert}", "a PEM file", "check tls_cert")
    secretfiles.check(key)
    return {"ssl_certfile": str(cert), "ssl_keyfile": str(key)}


def without_haproxy(settings: Settings, environ: Mapping[str, str]) -> None:
    """Refuse TLS by Serve's options under HAProxy, as Serve runs it: it speaks TLS neither to clients nor to replicas. Raises InvalidSettings."""
    if tls(settings) and environ.get(HAPROXY) == "1":
        raise InvalidSettings(
            f"tls_cert is set and {HAPROXY}=1: HAProxy, as Ray Serve runs it, cannot speak TLS",
            f"{HAPROXY}=0 in the environment of every Ray process, or TLS at a load balancer before it",
            "see docs/security.md",
        )


def without_plain_grpc(settings: Settings) -> None:
    """Refuse gRPC beside TLS where Serve's own proxies answer, whose gRPC server knows no TLS. Raises InvalidSettings."""
    if settings.grpc_port and tls(settings):
        raise InvalidSettings(
            f"tls_cert is set, and grpc_port {settings.grpc_port} would speak without TLS: Ray Serve's own gRPC server knows none",
            f"HAProxy before it ({HAPROXY}=1, on a head that ct starts), or no grpc_port",
            "see docs/security.md",
        )


def speaks_tls(settings: Settings) -> None:
    """See that what listens on this machine as the endpoint speaks TLS with the settings' certificate. Raises Unavailable."""
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host
    wanted = ssl.PEM_cert_to_DER_cert(_first(Path(tls(settings)["ssl_certfile"]).read_text()))
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # it is compared byte by byte below
    until, said = time.monotonic() + TLS_SECONDS, ""
    while time.monotonic() < until:
        try:
            with socket.create_connection((host, settings.port), 2) as raw, context.wrap_socket(raw) as held:
                if held.getpeercert(binary_form=True) == wanted:
                    return
                said = "it shows another certificate"
        except OSError as error:
            said = str(error)
        time.sleep(0.2)
    raise Unavailable(
        f"{settings.endpoint} does not speak TLS with {settings.tls_cert}: {said}",
        "the settings with which the head was started",
        "`ct deploy --down`, then `ct deploy`",
    )


def _first(chain: str) -> str:
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    at = chain.find(begin)
    stop = chain.find(end, at)
    if at < 0 or stop < 0:
        raise InvalidSettings("tls_cert holds no certificate", "a PEM file", "check tls_cert")
    return chain[at : stop + len(end)]
