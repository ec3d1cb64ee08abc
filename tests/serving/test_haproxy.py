"""What HAProxy refuses itself before the replicas: more requests than they may have in work. The real program, over the real template's lines."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from certificates import certificate
from listening import ask, head, listening, status

from ct.serving import haproxy, local

ANCHOR = "    # Enable HTTP connection reuse for better performance\n"
BODY = head("/predict", "content-length: 2", "x-request-id: r-1") + b"{}"


@pytest.fixture
def before(tmp_path: Path) -> Iterator[int]:
    """The port of a HAProxy before one replica that takes 1 s for an answer; three may be in work."""

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(1.0 if scope["method"] == "POST" else 0)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"{}"})

    with listening(lambda: slow) as replica:
        port, config = local.free_port(), tmp_path / "haproxy.cfg"
        times = "    timeout connect 5s\n    timeout client 5s\n    timeout server 30s\n"
        config.write_text(
            f"defaults\n    mode http\n{times}frontend http_frontend\n    bind 127.0.0.1:{port}\n    use_backend tiny\n"
            f"backend tiny\n{ANCHOR}    http-reuse always\n    server a 127.0.0.1:{replica}\n"
        )
        program = haproxy.write(tmp_path / "program", most=3)
        running = subprocess.Popen([program, "-db", "-f", config])
        try:
            until = time.monotonic() + 30
            while time.monotonic() < until:
                try:
                    ask(port, head("/healthz", method="GET"))
                    break
                except OSError:
                    time.sleep(0.05)
            yield port
        finally:
            running.terminate()
            running.wait(10)


def test_serves_template_still_has_the_line_that_is_built_on() -> None:
    from ray.serve._private.haproxy_templates import HAPROXY_CONFIG_TEMPLATE

    assert HAPROXY_CONFIG_TEMPLATE.count(ANCHOR) == 1


def test_both_fronts_of_serves_template_get_the_host_and_the_certificate(tmp_path: Path) -> None:
    """The template's own lines, comments too: one of them says "bind" before the line that binds gRPC."""
    from ray.serve._private.haproxy_templates import HAPROXY_CONFIG_TEMPLATE

    certificate(tmp_path)
    pem, config = tmp_path / "tls.pem", tmp_path / "haproxy.cfg"
    pem.write_text((tmp_path / "cert.pem").read_text() + (tmp_path / "key.pem").read_text())
    fronts = []
    for kind, port in (("http", "8000"), ("grpc", "9000")):
        lines = HAPROXY_CONFIG_TEMPLATE.partition(f"frontend {kind}_frontend")[2].splitlines()
        end = next(at for at, line in enumerate(lines) if line.startswith("    bind "))
        told = [re.sub(r"bind \{\{.*?\}\}:\{\{.*?\}\}", f"bind 127.0.0.1:{port}", line) for line in lines[1 : end + 1]]
        fronts += [f"frontend {kind}_frontend", *(line for line in told if not line.startswith("{%")), "    mode http"]
    config.write_text("\n".join(["defaults", "    timeout client 5s", "", *fronts, ""]))
    program = haproxy.write(tmp_path / "program", host="0.0.0.0", pem=pem)
    checked = subprocess.run([program, "-c", "-f", config], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    binds = [line.strip() for line in config.read_text().splitlines() if line.startswith("    bind ")]
    tls = f"ssl crt {pem} ssl-min-ver TLSv1.2"
    assert binds == [f"bind *:8000 {tls}", f"bind *:9000 proto h2 {tls} alpn h2"]


def test_an_overload_is_refused_before_it_reaches_a_replica(before: int) -> None:
    """Ten at once: three are answered, the others are told at once when to come again, and then they are answered too."""
    found: list[tuple[int, float, bytes]] = []

    def one() -> None:
        begun = time.monotonic()
        said = ask(before, BODY)
        found.append((status(said), time.monotonic() - begun, said))

    ten = [threading.Thread(target=one) for _ in range(10)]
    for thread in ten:
        thread.start()
    assert status(ask(before, head("/healthz", method="GET"))) == 200
    for thread in ten:
        thread.join()
    refused = [said for code, took, said in found if code == 503 and took < 0.9]
    assert sorted(code for code, _, _ in found) == [200] * 3 + [503] * 7
    assert len(refused) == 7
    said, body = refused[0].split(b"\r\n\r\n")
    assert b"retry-after: 1" in said
    assert b"content-type: application/json" in said
    told = json.loads(body)
    assert set(told) == {"code", "error", "found", "expected", "remedy", "field", "request_id"}
    assert (told["code"], told["request_id"]) == (503, "r-1")
    assert status(ask(before, BODY)) == 200
