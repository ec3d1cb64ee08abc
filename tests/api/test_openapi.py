"""The control API's OpenAPI description is true: schemathesis asks what it says, right and wrong, and no answer is one that it does not tell of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.specs.openapi import checks

from ct.api.doors import DOORS, FIELDS
from tests.api.served import Api
from tests.control import rolling


def never_fails(ctx: Any, response: Any, case: Any) -> None:
    """A bug is 500; what the journal does not allow is 4xx."""
    assert response.status_code != 500


CHECKS = [
    never_fails,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]


def served(root: Path) -> Api:
    """A project in the middle of a rollout, after another one."""
    found = Api(rolling.actor(root, rolling.PLANS["canary"]), tokens=False)
    found.act.start_rollout("v2")
    found.act.promote(full=True)
    found.act.start_rollout("v3")
    return found


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    found = served(tmp_path_factory.mktemp("described") / "p")
    yield found
    found.close()


@pytest.fixture(scope="module")
def schema(api: Api) -> Any:
    return schemathesis.openapi.from_url(f"http://127.0.0.1:{api.port}/openapi.json")


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["right", "wrong"])
@pytest.mark.parametrize(("path", "method"), [(door.path, door.method) for door in DOORS])
def test_every_operation_answers_as_described(schema: Any, path: str, method: str, mode: GenerationMode) -> None:
    operation = schema[path][method]
    if mode is GenerationMode.NEGATIVE and not (operation.body or operation.path_parameters):
        return  # nothing of it can be wrong
    seen = {"endpoint": rolling.LINE, "rollout": "r2", "flag": "shadow"}

    @given(operation.as_strategy(generation_mode=mode), st.booleans())
    @settings(
        max_examples=8 if operation.body else 2,
        derandomize=True,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    def ask(case: schemathesis.Case, known: bool) -> None:
        if known and case.path_parameters:
            case.path_parameters = {name: seen[name] for name in case.path_parameters}
        case.call_and_validate(checks=CHECKS)

    ask()


def test_what_is_known_answers_as_described(tmp_path: Path) -> None:
    """Every door once with what is really there, so that no answer goes unseen because names were made up."""
    own = served(tmp_path / "p")
    schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{own.port}/openapi.json")
    bodies = {"start": {"versions": ["v1"]}, "set_weight": {"weights": {"v3": 20}}, "set_flag": {"value": False}}
    bodies["promote"] = {"full": True}
    order = ("pause", "set_weight", "resume", "abort", "retry", "promote", "undo", "start")
    found, rollout = {}, "r2"
    for door in sorted(DOORS, key=lambda door: order.index(door.name) if door.name in order else -1):
        given = {"endpoint": rolling.LINE, "rollout": rollout, "flag": "shadow"}
        case = schema[door.path][door.method].Case(
            path_parameters={name: value for name, value in given.items() if f"{{{name}}}" in door.path},
            body=bodies.get(door.name, {}) if door.changes else schemathesis.core.NOT_SET,
            media_type="application/json" if door.changes else None,
        )
        answer = case.call_and_validate(checks=CHECKS)
        found[door.name] = answer.status_code
        rollout = answer.json()["id"] if door.name in ("retry", "start") else rollout
    assert found == {door.name: 202 if door.name in ("retry", "start") else 200 for door in DOORS}
    own.close()


def test_every_door_is_described_with_its_role(api: Api) -> None:
    found = httpx.get(f"http://127.0.0.1:{api.port}/openapi.json").json()
    assert found["openapi"] == "3.1.0"
    assert {(path, method) for path, item in found["paths"].items() for method in item} == {
        (door.path, door.method.lower()) for door in DOORS
    }
    for door in DOORS:
        operation = found["paths"][door.path][door.method.lower()]
        assert (operation.get("x-ct-role", ""), "security" in operation) == (door.role, bool(door.role))
        if door.changes:
            body = operation["requestBody"]["content"]["application/json"]["schema"]
            assert set(body["properties"]) == set(FIELDS.get(door.name, {}))
            assert {"Idempotency-Key", "If-Match"} <= {given["name"] for given in operation["parameters"]}
