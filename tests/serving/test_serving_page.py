"""What docs/serving.md shows is so: its requests are answered, its codes and metrics are the code's."""

from __future__ import annotations

import asyncio
import re
import shlex
from pathlib import Path

import httpx
import yaml
from tiny import Project

from ct.control import exposed
from ct.serving import telemetry
from ct.serving.endpoint import Endpoint
from ct.serving.exposition import family_of
from ct.serving.replica import Replica

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "serving.md").read_text()


def test_the_requests_are_answered(project: Project) -> None:
    project.first()
    asked = [shlex.split(line.removeprefix("$ ")) for line in PAGE.splitlines() if line.startswith("$ curl ")]
    assert len(asked) >= 6

    async def go() -> list[int]:
        transport = httpx.ASGITransport(app=Endpoint(Replica(project.settings, "tiny")))
        codes = []
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost:8000") as client:
            for command in asked:
                url = next(word for word in command if word.startswith("localhost:"))
                headers = dict(command[at + 1].split(": ", 1) for at, word in enumerate(command) if word == "-H")
                body = next((command[at + 1] for at, word in enumerate(command) if word == "-d"), None)
                found = await client.request("POST" if body else "GET", f"http://{url}", headers=headers, content=body)
                codes.append(found.status_code)
        return codes

    assert asyncio.run(go()) == [200] * len(asked)


def test_the_metrics_are_the_codes_own() -> None:
    known = telemetry.FAMILIES | exposed.FAMILIES
    named = set(re.findall(r"\bct_[a-z_]+", PAGE))
    assert {name for name in named if family_of(known, name) is None and name not in known} == set()
    silent = {"ct_replica_info", "ct_predictions_total", "ct_labels_total", "ct_faults_total"}
    assert set(known) - named - silent == set()


def test_the_alerts_and_the_prometheus_config_are_files_that_exist() -> None:
    (config,) = (yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.S))
    assert all((ROOT / file).exists() for file in config["rule_files"])
    assert config["scrape_configs"][0]["authorization"].keys() == {"credentials_file"}
