"""cluster.yaml is what Ray's cluster launcher takes, serve_configs are what Serve takes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from ct.serving import straight

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "cluster.yaml").read_text()))


def test_rays_own_schema_accepts_it(cluster: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import fillout_defaults, validate_config

    validate_config(cluster)
    validate_config(fillout_defaults(cluster))


def test_a_misspelt_key_would_be_found(cluster: dict[str, Any]) -> None:
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import validate_config

    with pytest.raises(ValidationError, match="max_worker"):
        validate_config(cluster | {"max_worker": 3})


def test_head_is_cpu_and_workers_of_both_kinds_scale(cluster: dict[str, Any]) -> None:
    types = cluster["available_node_types"]
    assert cluster["provider"]["type"] == "aws"
    assert cluster["head_node_type"] == "head"
    workers = {name: kind for name, kind in types.items() if name != "head"}
    assert {"cpu", "gpu"} <= set(workers)
    assert all(kind["min_workers"] < kind["max_workers"] for kind in workers.values())
    assert sum(kind["max_workers"] for kind in workers.values()) <= cluster["max_workers"]
    assert types["gpu"]["node_config"]["InstanceType"].startswith(("g", "p"))


def test_its_images_carry_the_locked_ray(cluster: dict[str, Any]) -> None:
    lock = (ROOT / "requirements.lock").read_text().splitlines()
    ray = next(line for line in lock if line.startswith("ray==")).removeprefix("ray==")
    images = [cluster["docker"]["image"], cluster["available_node_types"]["gpu"]["docker"]["worker_image"]]
    assert all(f"ray:{ray}-" in image for image in images)


@pytest.mark.parametrize("name", ["local", "production"])
def test_serve_takes_the_configs(name: str) -> None:
    from ray.serve.schema import ServeDeploySchema

    from ct.serving.app import AppArgs

    config = ServeDeploySchema.model_validate(yaml.safe_load((ROOT / "serve_configs" / f"{name}.yaml").read_text()))
    pipeline = re.search(r'name="(.+?)"', (ROOT / "examples" / "flights.py").read_text())
    assert pipeline
    for application in config.applications:
        assert application.import_path == "ct.serving.app:build"
        assert application.name == AppArgs(**application.args).endpoint == pipeline[1]
        assert {deployment.name for deployment in application.deployments} <= {"endpoint"}
    assert config.http_options.request_timeout_s is not None


def test_no_start_script_leaves_rays_own_authentication_off(cluster: dict[str, Any]) -> None:
    """Ray 2.60 starts a head without it when nothing is said, and only warns: whoever reaches a port then runs code."""
    starts = [line for part in ("head", "worker") for line in cluster[f"{part}_start_ray_commands"] if "ray start" in line]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in line.partition("ray start")[0] for line in starts)
    assert all("RAY_SERVE_HAPROXY_BINARY_PATH=" in line for line in starts if "ENABLE_HA_PROXY=1" in line)
    assert all(f"{straight.VARIABLE}={straight.PATH}" in line for line in starts)
    assert cluster["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"
    assert "--dashboard-host=127.0.0.1" in starts[0]


def test_no_page_shows_a_head_without_it() -> None:
    shown = 0
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for block in re.findall(r"^```console\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
            before, found, _ = block.partition("ray start")
            shown += bool(found)
            assert not found or "RAY_AUTH_MODE=token" in before, page
    assert shown


def test_the_head_that_ct_starts_asks_for_its_own_token(tmp_path: Path) -> None:
    from ct import settings
    from ct.serving import local

    place = settings.load(tmp_path, environ={})
    local._write_token(place)
    given = local._token_environment(place)
    assert given["RAY_AUTH_MODE"] == "token"
    token = Path(given["RAY_AUTH_TOKEN_PATH"])
    assert token.stat().st_mode & 0o777 == 0o600
    assert len(token.read_text()) == 64


def test_jobs_hold_no_address_and_no_secret() -> None:
    """They are doors: what they need of both comes from the environment of whoever submits them."""
    for job in (ROOT / "jobs").glob("*.py"):
        assert not re.search(r"(?i)token|secret|password|ray\.init|127\.0\.0\.1|https?://", job.read_text()), job
