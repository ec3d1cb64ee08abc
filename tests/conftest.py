"""What all tests share: one small Ray, one PostgreSQL, one Redis and one S3 API, and a process that each file of tests leaves as it found it."""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from .services import postgres, redis_shared, redis_url, s3, s3_shared

__all__ = ["postgres", "ray_local", "redis_shared", "redis_url", "s3", "s3_shared"]

# Keys are made below this folder and nowhere else; no training is tracked unless a test asks for it. Child processes inherit both.
os.environ["XDG_CONFIG_HOME"] = tempfile.mkdtemp(prefix="ct-config-")
atexit.register(shutil.rmtree, os.environ["XDG_CONFIG_HOME"], ignore_errors=True)
os.environ.pop("CT_SIGNING_KEY", None)
os.environ["WANDB_MODE"] = "disabled"

# Ray would make one token for all processes of this user, in ~/.ray: two that start at the same time write it over one another.
TOKEN = Path(os.environ["XDG_CONFIG_HOME"]) / "ray.token"
TOKEN.touch(mode=0o600)
TOKEN.write_text(secrets.token_hex(32))
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(TOKEN), "RAY_USAGE_STATS_ENABLED": "0"}
for name in ("RAY_AUTH_TOKEN", "RAY_ADDRESS"):
    os.environ.pop(name, None)

# The same examples every time, and no test that fails because the machine is busy.
settings.register_profile("ct", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ct")

# What others write into a process and read later: Ray and what comes with it, and the flags of Serve, which are read once, at its import.
THEIRS = ("RAY_CLIENT_MODE", "RAY_SERVE_", "TORCHINDUCTOR_CACHE_DIR", "TUNE_", "PYTHONBREAKPOINT", "PYTEST_")
SIGNALS = [
    found for found in signal.Signals if found not in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM)
]  # the last is Ray's
SHARED: dict[str, str] = {}


@pytest.fixture(scope="module", autouse=True)
def process_as_it_was() -> Iterator[None]:
    """Many files of tests run in one process: what one leaves behind in it is the next one's riddle."""
    before = _process()
    yield
    after = _process()
    if before["ray"] is None and after["ray"] == SHARED.get("ray"):
        after["ray"] = None  # the one for all has begun meanwhile
    left = {what: (before.get(what), after.get(what)) for what in before | after if before.get(what) != after.get(what)}
    assert not left, f"this file of tests leaves its process otherwise than it found it (before, after): {left}"


def _process() -> dict[str, Any]:
    """What a process has only one of: its environment, its folder, who hears its signals, the Ray it is connected to."""
    ray: Any = sys.modules.get("ray")
    connected = ray is not None and ray.is_initialized()
    return {
        **{f"environment, {name}": value for name, value in os.environ.items() if not name.startswith(THEIRS)},
        **{f"signal, {found.name}": signal.getsignal(found) for found in SIGNALS},
        "folder": os.getcwd(),
        "ray": ray.get_runtime_context().gcs_address if connected else None,
    }


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """Ray inside this test process: 2 CPUs, a small object store, its own folder; gone when the tests end."""
    import ray

    # Unix sockets below this folder must stay under 108 characters, so pytest's own temporary folders are too deep.
    folder = tempfile.mkdtemp(prefix="ct", dir="/tmp")
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=300_000_000,
        log_to_driver=False,
        namespace="ct",
        _temp_dir=folder,
    )
    SHARED["ray"] = ray.get_runtime_context().gcs_address
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)
