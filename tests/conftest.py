"""Fixtures that several folders of tests share: one small Ray, one PostgreSQL, one Redis and one S3 API for all of them."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from .services import postgres, redis_shared, redis_url, s3, s3_shared

__all__ = ["postgres", "ray_local", "redis_shared", "redis_url", "s3", "s3_shared"]

# Keys are made below this folder and nowhere else; no training is tracked unless a test asks for it. Child processes inherit both.
os.environ["XDG_CONFIG_HOME"] = tempfile.mkdtemp(prefix="ct-config-")
atexit.register(shutil.rmtree, os.environ["XDG_CONFIG_HOME"], ignore_errors=True)
os.environ.pop("CT_SIGNING_KEY", None)
os.environ["WANDB_MODE"] = "disabled"

# The same examples every time, and no test that fails because the machine is busy.
settings.register_profile("ct", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ct")


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """Ray inside this test process: 2 CPUs, a small object store, its own folder; gone when the tests end."""
    import ray

    if ray.is_initialized():
        yield
        return
    # Unix sockets below this folder must stay under 108 characters, so pytest's own temporary folders are too deep.
    folder = tempfile.mkdtemp(prefix="ct", dir="/tmp")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=300_000_000,
        log_to_driver=False,
        namespace="ct",
        _temp_dir=folder,
    )
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)
