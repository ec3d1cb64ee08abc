"""The HTTP surface without Ray: answers, protocols, every bad input, fallback, shadow, the log behind it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from tiny import ROW, Project

from ct.data import labels, predictions
from ct.registry.routes import Route
from ct.serving.endpoint import Endpoint
from ct.serving.limits import Limits
from ct.serving.replica import Replica

Client = httpx.AsyncClient


@asynccontextmanager
async def client(project: Project) -> AsyncIterator[tuple[Client, Replica]]:
    replica = Replica(project.settings, "tiny")
    limited = Limits(Endpoint(replica), project.settings, answered=replica.telemetry.answered)
    transport = httpx.ASGITransport(app=limited)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as made:
        yield made, replica


def run(project: Project, act: Callable[[Client, Replica], Any]) -> Any:
    async def go() -> Any:
        async with client(project) as (made, replica):
            return await act(made, replica)

    return asyncio.run(go())


def records(project: Project, kind: str = "prediction") -> list[dict[str, Any]]:
    return [record for record in predictions.read(project.settings.inbox)[0] if record["kind"] == kind]


def test_predict_answers_and_logs(project: Project) -> None:
    project.first()

    async def act(made: Client, _: Replica) -> httpx.Response:
        flat = await made.post("/predict", json=ROW)
        assert flat.status_code == 200, flat.text
        return await made.post("/predict", json={"instances": [ROW, {**ROW, "trip": "t2", "line": "new", "distance": None}]})

    found = run(project, act)
    body = found.json()
    assert (body["model_version"], body["arm"], body["epoch"]) == ("v1", "stable", 1)
    assert found.headers["x-model-version"] == "v1"
    assert (found.headers["x-rollout-arm"], found.headers["x-rollout-epoch"]) == ("stable", "1")
    logged = records(project)
    assert [row["prediction_id"] for row in body["predictions"]] == [row["id"] for row in logged[1:]]
    assert [row["score"] for row in body["predictions"]] == [row["score"] for row in logged[1:]]
    assert all(row["label"] == (row["score"] >= 0.5) for row in body["predictions"])
    one = logged[2]
    assert (one["key"], one["context"], one["assigned"], one["error"], one["forced"]) == (
        "t2",
        {"line": "new"},
        "stable",
        "",
        False,
    )
    assert one["request"]["distance"] is None
    assert one["event_time"] == 1_714_557_600_000_000


def post(path: str, body: Any = None, **options: Any) -> Callable[[Client, Replica], Any]:
    async def act(made: Client, _: Replica) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"content-type": "application/json", **options.pop("headers", {})}
        return await made.request(options.pop("method", "POST"), path, content=content, headers=headers)

    return act


def lacking(name: str) -> dict[str, Any]:
    return {key: value for key, value in ROW.items() if key != name}


@pytest.mark.parametrize(
    ("path", "body", "status", "field"),
    [
        ("/predict", b'{"instances": [{"distance": NaN}]}', 422, ""),
        ("/predict", b'{"distance": Infinity}', 422, ""),
        ("/predict", b"\xff\xfe", 400, ""),
        ("/predict", b"[" * 2000, 400, ""),
        ("/predict", b"", 400, ""),
        ("/predict", [ROW], 422, ""),
        ("/predict", {"instances": []}, 422, "instances"),
        ("/predict", {"instances": [7]}, 422, "0"),
        ("/predict", {"instances": "x"}, 422, "instances"),
        ("/predict", {"instances": [ROW] * 13 + [ROW] * 90}, 413, ""),
        ("/predict", lacking("distance"), 422, "0.distance"),
        ("/predict", {**ROW, "surprise": 1}, 422, "0.surprise"),
        ("/predict", {**ROW, "distance": "far"}, 422, "0.distance"),
        ("/predict", b'{"distance": 1e999}', 422, ""),
        ("/predict", {**ROW, "line": 7}, 422, "0.line"),
        ("/predict", {**ROW, "leaves": "2024-05-01T10:00:00"}, 422, "0.leaves"),
        ("/predict", {**ROW, "leaves": None}, 422, "0.leaves"),
        ("/labels", {"labels": [{"prediction_id": "p-" + "a" * 26, "value": 1}]}, 404, "prediction_id"),
        ("/labels", {"labels": 7}, 422, "labels"),
        ("/labels", {}, 422, "labels"),
        ("/observe/nothing", {"rows": []}, 404, ""),
        ("/observe/trips", {"rows": [{**ROW, "late": 1.0}]}, 422, "0.arrives"),
        ("/observe/trips", {"rows": 7}, 422, "rows"),
        ("/nowhere", {}, 404, ""),
        ("/v2/models/other/infer", {"inputs": []}, 404, ""),
        ("/v2/models/tiny/infer", {"inputs": []}, 422, "inputs"),
        ("/v2/models/tiny/versions/v9/infer", {"inputs": [{"name": "distance", "data": [1.0]}]}, 422, "0.bus"),
    ],
)
def test_bad_input_is_named(project: Project, path: str, body: Any, status: int, field: str) -> None:
    project.first()
    found = run(project, post(path, body, headers={"x-request-id": "r-7"}))
    said = found.json()
    assert found.status_code == status, found.text
    assert said["request_id"] == "r-7" == found.headers["x-request-id"]
    assert said["code"] == status
    assert set(said) == {"code", "error", "found", "expected", "remedy", "field", "request_id"}
    assert said["found"]
    assert not field or said["field"] == field
    assert records(project) == []


def test_size_and_type_are_refused_before_the_body_is_read(project: Project) -> None:
    project.first()

    async def endless(made: Client, _: Replica) -> httpx.Response:
        async def body() -> AsyncIterator[bytes]:
            for _ in range(1000):
                yield b"x" * 100

        return await made.post("/predict", content=body(), headers={"content-type": "application/json"})

    assert run(project, endless).status_code == 413
    assert run(project, post("/predict", ROW, headers={"content-length": "1000000"})).status_code == 413
    assert run(project, post("/predict", ROW, headers={"content-length": "-3"})).status_code == 400
    assert run(project, post("/predict", ROW, headers={"content-type": "text/csv"})).status_code == 415
    assert run(project, post("/predict", ROW, method="DELETE")).status_code == 405
    assert run(project, post("/predict", ROW, method="GET")).status_code == 405


def test_health_and_metadata(project: Project) -> None:
    async def act(made: Client, replica: Replica) -> None:
        assert (await made.get("/v2/health/live")).status_code == 200
        assert (await made.get("/v2/health/ready")).status_code == 503
        waiting = await made.post("/predict", json=ROW)
        assert (waiting.status_code, waiting.headers["retry-after"]) == (503, "1")
        project.first()
        replica.converge()
        for path in ("/healthz", "/v2/health/ready", "/v2", "/v2/models/tiny/ready", "/v2/models/tiny/versions/v1/ready"):
            assert (await made.get(path)).status_code == 200, path
        about = (await made.get("/v2/models/tiny")).json()
        assert {"name": "leaves", "datatype": "BYTES", "shape": [-1]} in about["inputs"]
        assert (await made.get("/v2/models/tiny/versions/v9")).status_code == 404
        assert (await made.post("/predict", json=ROW)).status_code == 200
        counted = (await made.get("/metrics")).text
        assert f'ct_predictions_total{{endpoint="tiny",arm="stable",version="v1",replica="{replica.name}"}} 1' in counted
        assert f'ct_http_responses_total{{endpoint="tiny",code="503",replica="{replica.name}"}} 2' in counted

    run(project, act)


def test_open_inference_protocol_scores_as_predict_does(project: Project) -> None:
    project.first()
    types = {"distance": "FP64"}
    inputs = [{"name": n, "shape": [2], "datatype": types.get(n, "BYTES"), "data": [v, v]} for n, v in ROW.items()]

    async def act(made: Client, _: Replica) -> None:
        plain = (await made.post("/predict", json=ROW)).json()
        found = (await made.post("/v2/models/tiny/infer", json={"id": "7", "inputs": inputs})).json()
        outputs = {output["name"]: output for output in found["outputs"]}
        assert (found["model_name"], found["model_version"], found["id"]) == ("tiny", "v1", "7")
        assert outputs["score"]["data"] == [plain["predictions"][0]["score"]] * 2
        assert outputs["score"]["shape"] == [2]
        bad = [{**inputs[0], "shape": [3]}, *inputs[1:]]
        assert (await made.post("/v2/models/tiny/infer", json={"inputs": bad})).status_code == 422

    run(project, act)


def canary(project: Project, weight: int, *, shadow: bool = False, **options: Any) -> Route:
    route = project.first()
    return project.put(route.with_canary(project.version("v2", 1.0, **options), weight=weight, shadow=shadow))


def test_a_failing_canary_is_answered_by_stable_and_then_left_alone(project: Project) -> None:
    canary(project, 10_000, broken=True)
    unknown = {**ROW, "line": "new"}

    async def act(made: Client, replica: Replica) -> None:
        good = (await made.post("/predict", json=ROW)).json()
        assert (good["arm"], good["model_version"]) == ("canary", "v2")
        for _ in range(5):
            found = await made.post("/predict", json=unknown)
            assert found.status_code == 200
            assert (found.json()["arm"], found.json()["model_version"]) == ("stable", "v1")
        assert replica.state()["circuit_open"]
        assert replica.state()["circuits"] == {"canary": True}, "by which the control side ends it"
        assert (await made.post("/predict", json=ROW)).json()["arm"] == "stable"

    run(project, act)
    logged = records(project)
    assert [row["assigned"] for row in logged] == ["canary"] * 7
    assert [bool(row["error"]) for row in logged] == [False, *[True] * 6]
    assert logged[-1]["error"] == "circuit open"


def test_a_failing_stable_is_an_error_that_is_logged(project: Project) -> None:
    project.first(broken=True)
    found = run(project, post("/predict", {**ROW, "line": "new"}))
    assert found.status_code == 500
    assert "Traceback" not in found.text
    (logged,) = records(project)
    assert (logged["score"], logged["assigned"], logged["version"]) == (None, "stable", "v1")
    assert "no number" in logged["error"]


def test_headers_choose_the_arm_and_the_unit_sticks(project: Project) -> None:
    canary(project, 5000)

    async def act(made: Client, _: Replica) -> None:
        async def ask(**headers: str) -> dict[str, Any]:
            return dict((await made.post("/predict", json=ROW, headers=headers)).json())

        assert (await ask(**{"x-canary": "always"}))["arm"] == "canary"
        assert (await ask(**{"x-canary": "never"}))["arm"] == "stable"
        for unit in "abcdefgh":
            arms = {(await ask(**{"x-session-id": unit}))["arm"] for _ in range(3)}
            assert len(arms) == 1
        assert (await made.post("/predict", json=ROW, headers={"x-canary": "maybe"})).status_code == 400

    run(project, act)
    assert [row["forced"] for row in records(project)] == [True, True, *[False] * 24]
    assert {row["assigned"] for row in records(project)} == {"stable", "canary"}
    assert {row["weight"] for row in records(project)} == {5000}


def test_shadow_scores_are_logged_beside_the_answers(project: Project) -> None:
    canary(project, 0, shadow=True)

    async def act(made: Client, _: Replica) -> dict[str, Any]:
        body = (await made.post("/predict", json=ROW)).json()
        await made.post("/predict", json=ROW, headers={"x-canary": "always"})
        async with asyncio.timeout(30):
            while not records(project, "shadow"):
                await asyncio.sleep(0.02)
        return dict(body)

    body = run(project, act)
    (shadow,) = records(project, "shadow")
    assert body["arm"] == "stable"
    assert (shadow["of"], shadow["version"]) == (body["predictions"][0]["prediction_id"], "v2")
    assert shadow["score"] > body["predictions"][0]["score"]
    joined = labels.join(predictions.read(project.settings.inbox)[0])
    assert (len(joined.rows), len(joined.shadow)) == (2, 1)


def test_labels_and_fresh_rows_change_what_comes_next(project: Project) -> None:
    project.first()
    fresh = {**ROW, "trip": "t0", "late": 40.0, "leaves": "2024-05-01T07:00:00Z", "arrives": "2024-05-01T08:00:00Z"}

    async def act(made: Client, _: Replica) -> None:
        before = (await made.post("/predict", json=ROW)).json()["predictions"][0]
        assert (await made.post("/observe/trips", json={"rows": [fresh, fresh]})).json() == {"stored": 1}
        after = (await made.post("/predict", json=ROW)).json()["predictions"][0]
        assert after["score"] > before["score"]
        posted = [{"prediction_id": row["prediction_id"], "value": 20} for row in (before, after)]
        assert (await made.post("/labels", json={"labels": posted})).json() == {"accepted": 2}
        mixed = {"labels": [posted[0], {"prediction_id": "p-nothing", "value": 1}]}
        assert (await made.post("/labels", json=mixed)).status_code == 404

    run(project, act)
    joined = labels.join(predictions.read(project.settings.inbox)[0])
    assert [row.label for row in joined.rows] == [1.0, 1.0]
    assert joined.duplicates == 0
