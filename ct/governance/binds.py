"""What may listen where: beyond loopback only with a token, over TLS only with a key that nobody else can read."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from ipaddress import ip_address

from ct.errors import InvalidSettings
from ct.governance import access, secretfiles
from ct.settings import Settings
from ct.store.journal import Journal

HAPROXY = "RAY_SERVE_ENABLE_HA_PROXY"


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
    """Refuse TLS under Serve's HAProxy, which speaks neither HTTPS to clients nor to replicas that do. Raises InvalidSettings."""
    if tls(settings) and environ.get(HAPROXY) == "1":
        raise InvalidSettings(
            f"tls_cert is set and {HAPROXY}=1: HAProxy, as Ray Serve runs it, cannot speak TLS",
            f"{HAPROXY}=0 in the environment of every Ray process, or TLS at a load balancer before it",
            "see docs/security.md",
        )
