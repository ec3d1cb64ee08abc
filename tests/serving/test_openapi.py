"""The OpenAPI description is true: schemathesis asks what it says, right and wrong, and no answer is one that it does not tell of."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from listening import listening
from schemathesis import GenerationMode
from schemathesis.specs.openapi import checks
from tiny import REQUEST, ROW, Project

from ct import settings as places
from ct.serving import openapi, paths
from ct.serving.endpoint import Endpoint
from ct.serving.limits import Limits
from ct.serving.replica import Replica
from ct.store.artifacts import Artifacts
from ct.store.journal import Journal


def never_fails(ctx: Any, response: Any, case: Any) -> None:
    """503 and 504 are answers: nobody asked for a deadline of a microsecond and got it by a fault of ours."""
    assert response.status_code != 500


# Who may come in is another layer's, and tested with it.
CHECKS = [
    never_fails,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    place = places.load(tmp_path_factory.mktemp("described"), environ={}, max_rows=20)
    project = Project(place, Artifacts(place.place("artifacts")), Journal(place.database))
    project.first()
    with listening(lambda: Limits(Endpoint(Replica(place, "tiny")), place)) as found:
        yield found


@pytest.fixture(scope="module")
def schema(port: int) -> Any:
    return schemathesis.openapi.from_url(f"http://127.0.0.1:{port}/openapi.json")


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["right", "wrong"])
@pytest.mark.parametrize(
    ("template", "method"), [(door.template, method) for door in paths.PATHS for method in door.methods if method != "HEAD"]
)
def test_every_operation_answers_as_described(schema: Any, template: str, method: str, mode: GenerationMode) -> None:
    operation = schema[template][method]
    if mode is GenerationMode.NEGATIVE and not (operation.body or operation.path_parameters or operation.headers):
        return  # nothing of it can be wrong

    @given(operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=8 if operation.body else 3,
        derandomize=True,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    def ask(case: schemathesis.Case) -> None:
        case.call_and_validate(checks=CHECKS)

    ask()


def test_every_door_is_described_with_its_role(port: int) -> None:
    found = httpx.get(f"http://127.0.0.1:{port}/openapi.json").json()
    assert set(found["paths"]) == {door.template for door in paths.PATHS}
    for door in paths.PATHS:
        for method in set(door.methods) - {"HEAD"}:
            operation = found["paths"][door.template][method.lower()]
            assert operation.get("x-ct-role", "") == door.role
            assert ("security" in operation) == bool(door.role)
    ids = [operation["operationId"] for item in found["paths"].values() for operation in item.values()]
    assert len(set(ids)) == len(ids)
    row = found["components"]["schemas"]["Row"]
    assert set(row["properties"]) == set(row["required"]) == set(REQUEST)


def test_before_the_first_version_it_is_described_without_columns() -> None:
    found = openapi.describe("tiny", None, None, 10)
    assert found["components"]["schemas"]["Row"]["type"] == "object"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.sampled_from(list(ROW.values())),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from([*ROW, "instances", "inputs", "labels", "rows", "name", "data", "x"]), inner, max_size=7
        )
    ),
    max_leaves=20,
)
NEAR = st.fixed_dictionaries({name: st.just(value) | JSON for name, value in ROW.items()})


@pytest.mark.parametrize("path", ["/predict", "/labels", "/observe/trips", "/v2/models/tiny/infer"])
def test_no_body_makes_an_endpoint_fail(project: Project, path: str) -> None:
    """Rows that are nearly right, JSON of any form, and bytes: each is answered, or refused with a name; never 500, never a trace."""
    project.first()
    replica = Replica(project.settings, "tiny")
    app = Limits(Endpoint(replica), project.settings)
    loop = asyncio.new_event_loop()
    made = httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test")
    tensors = st.lists(
        st.fixed_dictionaries(
            {"name": st.sampled_from(list(ROW)) | JSON}, optional={k: JSON for k in ("data", "shape", "datatype", "parameters")}
        ),
        max_size=6,
    ).map(lambda inputs: {"inputs": inputs})
    wrapped = st.sampled_from(["instances", "labels", "rows", "inputs"]).flatmap(
        lambda name: st.lists(NEAR | JSON, max_size=3).map(lambda rows: {name: rows})
    )
    bodies = (NEAR | wrapped | tensors | JSON).map(lambda value: json.dumps(value).encode()) | st.binary(max_size=40)

    @given(bodies)
    @settings(max_examples=120, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
    def ask(body: bytes) -> None:
        found = loop.run_until_complete(made.post(path, content=body, headers={"content-type": "application/json"}))
        assert found.status_code in (200, 400, 404, 413, 422), found.text
        assert found.status_code == 200 or found.json()["found"]

    try:
        ask()
    finally:
        loop.run_until_complete(made.aclose())
        loop.close()
