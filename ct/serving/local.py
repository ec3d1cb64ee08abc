"""A Ray head on this machine, as a child that outlives the command which started it. Only what was started here is ever stopped.

The head has its own folder, free ports and its own access token, so that several projects and other Ray clusters live side by side.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ct.errors import Unavailable
from ct.governance import binds, secretfiles
from ct.ids import sha256
from ct.serving import haproxy, straight
from ct.settings import Settings
from ct.store.signing import without_key

OBJECT_STORE_BYTES = 400_000_000
PORTS = range(20_000, 30_000)
_START_SECONDS = 60.0
# `ray start --block` ends the whole head once a process that it has started is killed, also one that answers nobody: these may die.
_HEAD = """
from ray._private.node import Node
from ray.scripts.scripts import main

dead, spare = Node.dead_processes, ("dashboard", "log_monitor", "monitor", "ray_client_server")
Node.dead_processes = lambda node: [found for found in dead(node) if found[0] not in spare]
main()
"""
_STOP_SECONDS = 1.0


@dataclass(frozen=True)
class Head:
    """A head that runs. `born` tells its process from a later one with the same number."""

    pid: int
    born: str
    address: str
    dashboard: str
    folder: str


def start(settings: Settings, *, dashboard: bool = False, cpus: int | None = None) -> str:
    """Start the head, unless it runs, and return its address. `dashboard` also starts the Jobs and Serve REST servers (3 s more).

    Raises Unavailable when it does not come up.
    """
    with _alone(settings):
        head = _running(settings)
        if head is None:
            _clear(settings)
            head = _launch(settings, dashboard, cpus)
    return head.address


def address(settings: Settings) -> str:
    """The address of the head that runs, waiting for one that is just starting; empty when there is none.

    From then on this process uses the head's access token, so call it before `ray.init`. Raises InvalidSettings when others can read it.
    """
    with _alone(settings):
        head = _running(settings)
    if head is None:
        return ""
    secretfiles.check(_token(settings))
    _use_token(settings)
    return head.address


def connect(settings: Settings) -> None:
    """Connect this process to the settings' cluster, or to the head that `start` started. Raises Unavailable without one."""
    import ray

    target = settings.ray_address or os.environ.get("RAY_ADDRESS")
    if ray.is_initialized():
        if target or not (target := address(settings)) or joined(target):
            return
        leave()  # the head that this process knew is gone, and another one runs
    target = target or address(settings)
    if not target:
        raise Unavailable("no Ray cluster runs for this project", "a running head", "run `ct deploy`")
    ray.init(address=target, log_to_driver=False, logging_level=logging.ERROR, namespace="ct")


def joined(address: str) -> bool:
    """Is this process, which is connected, connected to that head? By the port, each head's alone: Ray names the host as it likes."""
    import ray

    return str(ray.get_runtime_context().gcs_address).rpartition(":")[2] == address.rpartition(":")[2]


def _connected() -> bool:
    ray: Any = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def leave() -> None:
    """Part this process from its cluster, which may be dead, so that it can connect to another."""
    import ray
    from ray.serve import context

    ray.shutdown()
    context._set_global_client(None)  # Serve keeps its own, which belongs to the old cluster


def stop(settings: Settings) -> bool:
    """End the head, everything that runs under it, and its folder; a process connected to it parts from it. Returns False when there was none.

    Another cluster that this process is connected to is none of ours, and goes on.
    """
    with _alone(settings):
        head = _running(settings)
        if head is not None:
            if _connected() and joined(head.address):
                leave()
            _end(head)
            shutil.rmtree(head.folder, ignore_errors=True)
        else:
            _clear(settings)
        for path in (_note(settings), _token(settings)):
            path.unlink(missing_ok=True)
        _forget_token(settings)
    return head is not None


def died(settings: Settings) -> bool:
    """Has the head that was started here ended otherwise than by `stop`? Told in microseconds; what Ray is asked then takes half a minute."""
    try:
        pid = int(json.loads(_note(settings).read_text(encoding="utf-8"))["pid"])
    except (OSError, ValueError, TypeError, KeyError):
        return False
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return Path("/proc/self").exists() or _running(settings) is None


def free_port() -> int:
    """A TCP port that nobody uses now, on no address of this machine; seconds may pass before it is used.

    It lies below the ports that a kernel hands out to outgoing connections (32768 on Linux, 49152 elsewhere) and beside those that Ray gives
    its workers (10002 to 19999) and Serve its replicas (30000 and up): one of those could take it meanwhile. Raises Unavailable.
    """
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("", port))
            return port
    raise Unavailable(f"no free port from {PORTS.start} to {PORTS.stop - 1}", "a free port", "stop what listens there")


def environment(folder: Path, environ: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
    """What a head's processes need for quick serving: throughput flags, and HAProxy where its wheel is installed and `environ` does not forbid it."""
    proxy = folder / "proxy"
    flags = {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_USAGE_STATS_ENABLED": "0", straight.VARIABLE: straight.PATH}
    # Serve gives a dead proxy up after three checks; at its own pace, one in ten seconds, nobody is answered for half a minute.
    flags["RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S"] = "1"
    if not haproxy.used(environ):  # there is no such wheel for macOS: Serve's own proxy then, several times slower
        return flags | {binds.HAPROXY: "0"}
    return flags | {
        binds.HAPROXY: "1",
        haproxy.VARIABLE: str(proxy / "haproxy"),
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(proxy / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(proxy / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(proxy),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(proxy / "state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
        # While no replica is up HAProxy asks Serve's fallback proxy, which shares its port (8500) with those of other projects on the machine:
        # their replicas would answer.
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(free_port()),
    }


def _launch(settings: Settings, dashboard: bool, cpus: int | None) -> Head:
    # Unix sockets lie below this folder and may have 107 characters, so it is short and not in the project.
    folder = Path(tempfile.gettempdir()) / f"ct-{sha256(str(settings.home))[:8]}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, parents=True)
    gcs, board = free_port(), free_port()
    _write_token(settings)
    command = [
        *(sys.executable, "-c", _HEAD, "start", "--head", "--block"),
        *(f"--port={gcs}", f"--dashboard-port={board}", f"--dashboard-agent-listen-port={free_port()}"),
        *("--dashboard-host=127.0.0.1", f"--include-dashboard={dashboard}", "--include-log-monitor=false"),
        *(
            "--node-ip-address=127.0.0.1",
            f"--ray-client-server-port={free_port()}",
            f"--num-cpus={cpus or os.cpu_count() or 1}",
        ),
        *(f"--object-store-memory={OBJECT_STORE_BYTES}", f"--temp-dir={folder / 'ray'}", "--disable-usage-stats"),
    ]
    env = dict(os.environ)
    env.pop("RAY_ADDRESS", None)
    if settings.trusted_keys:  # without them it is the private key that says whose models count
        env = without_key(env)
    env |= environment(folder, env) | _token_environment(settings)
    # Serve's gRPC servers would take messages of 2 GiB from anybody, before a token is looked at. A row's answer has about a kilobyte at most.
    env["RAY_SERVE_GRPC_MAX_MESSAGE_SIZE"] = str(2 * settings.max_body_bytes + 1024 * settings.max_rows + (1 << 20))
    if env[binds.HAPROXY] == "1":
        haproxy.write_for(settings, Path(env[haproxy.VARIABLE]))
    with (folder / "head.log").open("wb") as log:
        child = subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    host = "127.0.0.1"
    head = Head(child.pid, _born(child.pid), f"{host}:{gcs}", f"http://{host}:{board}" if dashboard else "", str(folder))
    _note(settings).write_text(json.dumps(asdict(head)), encoding="utf-8")
    try:
        _wait(child, folder, gcs)
        if dashboard:
            _wait(child, folder, board)
    except BaseException:
        _end(head)
        raise
    return head


def _wait(child: subprocess.Popen[bytes], folder: Path, port: int) -> None:
    """Until the head takes connections."""
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until and child.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
            return
        time.sleep(0.05)
    log = (folder / "head.log").read_text(errors="replace")[-400:]
    raise Unavailable(f"Ray did not start: {log.strip() or 'it said nothing'}", "a running head", "see the log above")


def _running(settings: Settings) -> Head | None:
    try:
        head = Head(**json.loads(_note(settings).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    return head if head.born and _born(head.pid) == head.born else None


def _clear(settings: Settings) -> None:
    """End what a head that was killed has left: its replicas go on for a while, and its proxy holds the endpoint's port."""
    with suppress(FileNotFoundError, ValueError, TypeError):
        head = Head(**json.loads(_note(settings).read_text(encoding="utf-8")))
        # While anything is left of a session its leader's number goes to no other process.
        if head.pid > 1 and not _born(head.pid):
            _end(head)


def _born(pid: int) -> str:
    """When a process began, as its machine tells it; empty for none."""
    found = subprocess.run(["ps", "-o", "lstart=,stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    *began, state = found.stdout.split() or [""]
    return "" if state.startswith("Z") else " ".join(began)


def _end(head: Head) -> None:
    """Everything of the head's session: workers have process groups of their own, but not sessions."""
    with suppress(ProcessLookupError):
        os.kill(head.pid, signal.SIGTERM)
    until = time.monotonic() + _STOP_SECONDS
    while time.monotonic() < until and _born(head.pid) == head.born:
        time.sleep(0.1)
    for _ in range(3):
        for pid in _session(head.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    with suppress(ChildProcessError):
        os.waitpid(head.pid, 0)


def _session(leader: int) -> Iterator[int]:
    listed = subprocess.run(["ps", "-A", "-o", "pid="], capture_output=True, text=True, check=True)
    for text in listed.stdout.split():
        with suppress(ProcessLookupError, PermissionError):
            if os.getsid(int(text)) == leader:
                yield int(text)


def _note(settings: Settings) -> Path:
    return settings.home / "ray.json"


def _token(settings: Settings) -> Path:
    return settings.home / "ray.token"


def _write_token(settings: Settings) -> None:
    secretfiles.write(_token(settings), secrets.token_hex(32))


def _token_environment(settings: Settings) -> dict[str, str]:
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(_token(settings))}


def _use_token(settings: Settings) -> None:
    os.environ.pop("RAY_AUTH_TOKEN", None)
    os.environ.update(_token_environment(settings))
    _read_token_anew()


def _read_token_anew() -> None:
    raylet: Any = sys.modules.get("ray._raylet")
    if raylet is not None:  # Ray was imported before and has read its environment: let it read it again
        raylet.Config.initialize("")
        raylet.AuthenticationTokenLoader.instance().reset_cache()


def _forget_token(settings: Settings) -> None:
    """A later cluster of this process is asked for another token than that of the head which has ended; one it is connected to keeps its own."""
    if _connected():
        return
    if os.environ.get("RAY_AUTH_TOKEN_PATH") == str(_token(settings)):
        for name in _token_environment(settings):
            os.environ.pop(name, None)
        _read_token_anew()


@contextmanager
def _alone(settings: Settings) -> Iterator[None]:
    settings.home.mkdir(parents=True, exist_ok=True)
    with (settings.home / "ray.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
