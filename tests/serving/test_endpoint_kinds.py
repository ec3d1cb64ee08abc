"""What the endpoint answers, logs and takes as truths where the label is a class, a number or quantiles; without Ray."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from tiny import ROW, Project, model_files

from ct.data import labels, predictions
from ct.errors import Corrupt
from ct.objectives import Objective
from ct.registry import files, routes
from ct.serving.endpoint import Endpoint
from ct.serving.replica import Replica
from ct.serving.runtime import Predictor

CLASSES = Objective("classes", ("early", "on time", "late"))
NUMBER = Objective("number")
QUANTILES = Objective("quantiles", quantiles=(0.05, 0.5, 0.95))
KINDS = [CLASSES, NUMBER, QUANTILES]
ROWS = [ROW, {**ROW, "trip": "t2", "distance": 900.0}]
Client = httpx.AsyncClient


def run(project: Project, act: Callable[[Client], Any]) -> Any:
    async def go() -> Any:
        replica = Replica(project.settings, "tiny")
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=Endpoint(replica)), base_url="http://test") as made:
            return await act(made)

    return asyncio.run(go())


def logged(project: Project, kind: str = "prediction") -> list[dict[str, Any]]:
    return [record for record in predictions.read(project.settings.inbox)[0] if record["kind"] == kind]


def scores(project: Project, objective: Objective) -> np.ndarray:
    joined = labels.join(predictions.read(project.settings.inbox)[0])
    return labels.arrays(joined.rows, objective)[0]


@pytest.mark.parametrize("objective", KINDS, ids=lambda objective: objective.kind)
def test_answer_protocol_metadata_and_log_agree(project: Project, objective: Objective) -> None:
    project.first(objective=objective)

    async def act(made: Client) -> tuple[Any, Any, Any]:
        answer = await made.post("/predict", json={"instances": ROWS})
        assert answer.status_code == 200, answer.text
        inputs = [{"name": name, "shape": [2], "data": [row[name] for row in ROWS]} for name in ROW]
        infer = await made.post("/v2/models/tiny/infer", json={"inputs": inputs})
        return answer.json()["predictions"], infer.json()["outputs"], (await made.get("/v2/models/tiny")).json()["outputs"]

    plain, tensors, described = run(project, act)
    records = logged(project)
    kept = scores(project, objective)
    assert kept.shape == ((4, 3) if objective.outputs > 1 else (4,))
    assert [item["name"] for item in tensors] == [item["name"] for item in described]
    for item, said in zip(tensors, described, strict=True):
        assert item["datatype"] == said["datatype"]
        assert [length if length == 3 else -1 for length in item["shape"]] == said["shape"]
        assert len(item["data"]) == np.prod(item["shape"])
    by_name = {item["name"]: item for item in tensors}
    for at, one in enumerate(plain):
        assert one["prediction_id"] == records[at]["id"]
        if objective == NUMBER:
            assert one == {"prediction_id": one["prediction_id"], "value": records[at]["score"]}
            assert records[at]["scores"] == {}
            assert one["value"] == kept[at] == by_name["value"]["data"][at]
            continue
        part = "scores" if objective == CLASSES else "quantiles"
        assert one[part] == records[at]["scores"] == dict(zip(objective.names, kept[at].tolist(), strict=True))
        assert by_name[part]["data"][3 * at : 3 * at + 3] == list(one[part].values())
        assert by_name[part]["parameters"] == {"columns": list(objective.names)}
        if objective == CLASSES:
            assert (one["class"], one["score"]) == ("late", max(one["scores"].values()))
            assert set(one) == {"prediction_id", "class", "score", "scores"}
        else:
            assert set(one) == {"prediction_id", "quantiles"}
            assert records[at]["score"] == one["quantiles"]["0.5"]
    assert list(plain[0].get("quantiles", {})) in ([], ["0.05", "0.5", "0.95"])


TRUTHS: list[tuple[Objective, Any, int, Any]] = [
    (CLASSES, "on time", 200, 1.0),
    (CLASSES, None, 200, None),
    (CLASSES, "cancelled", 422, "one of ['early', 'on time', 'late'], or null"),
    (CLASSES, 1, 422, "one of ['early', 'on time', 'late'], or null"),
    (NUMBER, -17.5, 200, -17.5),
    (NUMBER, "17", 422, "a finite number or null"),
    (QUANTILES, 3, 200, 3.0),
    (QUANTILES, False, 422, "a finite number or null"),
]


@pytest.mark.parametrize(("objective", "value", "status", "expected"), TRUTHS)
@pytest.mark.parametrize("field", ["value", "label"])
def test_truths(project: Project, objective: Objective, value: Any, status: int, expected: Any, field: str) -> None:
    project.first(objective=objective)

    async def act(made: Client) -> httpx.Response:
        (one, other) = (await made.post("/predict", json={"instances": ROWS})).json()["predictions"]
        told = [{"prediction_id": one["prediction_id"], field: value}]
        if status != 200:  # one bad label refuses them all
            good = {CLASSES: "late"}.get(objective, 1.0)
            told = [{"prediction_id": other["prediction_id"], field: good}, *told]
        return await made.post("/labels", json={"labels": told})

    found = run(project, act)
    assert found.status_code == status, found.text
    if status == 200:
        assert [record["label"] for record in logged(project, "label")] == [expected]
    else:
        assert (found.json()["expected"], found.json()["field"]) == (expected, f"1.{field}")
        assert logged(project, "label") == []


@pytest.mark.parametrize("objective", KINDS, ids=lambda objective: objective.kind)
def test_a_shadow_leaves_whole_records(project: Project, objective: Objective) -> None:
    stable = project.version("v1", objective=objective)
    first = project.put(routes.first("tiny", stable))
    other = project.version("v2", 1.0, objective=objective)
    project.put(first.with_canary(other, shadow=True))

    async def act(made: Client) -> None:
        await made.post("/predict", json=ROW)
        for _ in range(1_500):
            if logged(project, "shadow"):
                return
            await asyncio.sleep(0.02)

    run(project, act)
    (shadow,) = logged(project, "shadow")
    (row,) = labels.join(predictions.read(project.settings.inbox)[0]).shadow
    assert shadow["version"] == row.version == "v2"
    assert list(row.scores) == list(objective.names)
    assert np.isfinite(labels.arrays([row], objective)[0]).all()


@pytest.mark.parametrize("objective", KINDS, ids=lambda objective: objective.kind)
def test_rows_that_nobody_could_score_are_logged_as_errors(project: Project, objective: Objective) -> None:
    project.first(broken=True, objective=objective)

    async def act(made: Client) -> httpx.Response:
        return await made.post("/predict", json={**ROW, "line": "new"})

    assert run(project, act).status_code == 500
    (record,) = logged(project)
    assert (record["score"], record["scores"]) == (None, {})
    assert "no number" in record["error"]
    assert labels.join([record]).rows == ()


def test_golden_rows_of_the_wrong_shape_are_refused() -> None:
    """A graph that was exported for another label must not be served as this one's."""
    made = model_files("v1", objective=CLASSES)
    spec = json.loads(made[files.SPEC])
    for objective in (
        {"kind": "number", "classes": [], "quantiles": []},
        {"kind": "classes", "classes": ["a", "b"], "quantiles": []},
    ):
        changed = json.dumps(spec | {"objective": objective}).encode()
        with pytest.raises(Corrupt, match=r"scores of the shape \[4, 3\]"):
            Predictor.load({**made, files.SPEC: changed})


def test_golden_rows_are_compared_in_the_size_of_what_is_predicted() -> None:
    """Half a unit off is nothing for numbers around a million, and a fault for those around one."""
    made = model_files("v1", 0.0, objective=NUMBER)
    golden = json.loads(made[files.GOLDEN])
    golden["score"] = [score + 1e-4 for score in golden["score"]]
    off = {**made, files.GOLDEN: json.dumps(golden).encode()}
    with pytest.raises(Corrupt, match="golden rows"):
        Predictor.load(off)
    spec = json.loads(made[files.SPEC])
    spec["calibration"] = {"spread": 1000.0}
    assert Predictor.load({**off, files.SPEC: json.dumps(spec).encode()}).version == "v1"
