"""The endpoint's other languages: tensors with binary data, Arrow streams. They say what /predict says, and every broken byte is named."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import REQUEST, ROW, Project

from ct.data import predictions
from ct.errors import InvalidRequest
from ct.objectives import Objective
from ct.serving import arrow, oip
from ct.serving.endpoint import Endpoint
from ct.serving.limits import Limits
from ct.serving.replica import Replica

INFER = "/v2/models/tiny/infer"
ARROW = {"content-type": "application/vnd.apache.arrow.stream"}
ROWS = [ROW, {**ROW, "trip": "t2", "line": "ü:", "distance": 7.5}]


def run(project: Project, act: Callable[[httpx.AsyncClient], Awaitable[Any]]) -> Any:
    async def go() -> Any:
        replica = Replica(project.settings, "tiny")
        app = Limits(Endpoint(replica), project.settings)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as made:
            return await act(made)

    return asyncio.run(go())


def texts(values: list[str]) -> bytes:
    return b"".join(struct.pack("<I", len(value.encode())) + value.encode() for value in values)


def binary(rows: list[dict[str, Any]], numbers: str = "FP64", **more: Any) -> tuple[bytes, dict[str, str]]:
    """A request whose columns are all binary data, and its headers."""
    parts, inputs = [], []
    for name in REQUEST:
        column = [row[name] for row in rows]
        type_ = numbers if name == "distance" else "BYTES"
        data = np.array(column).astype(oip.NUMBERS[numbers]).tobytes() if name == "distance" else texts(column)
        parts.append(data)
        inputs.append({"name": name, "datatype": type_, "shape": [len(rows), 1], "parameters": {"binary_data_size": len(data)}})
    head = json.dumps({"id": "q", "inputs": inputs, **more}).encode()
    headers = {"content-type": "application/octet-stream", oip.HEADER: str(len(head))}
    return b"".join((head, *parts)), headers


def stream(rows: list[dict[str, Any]], change: Callable[[pa.Table], pa.Table] = lambda table: table, **options: Any) -> bytes:
    table = pa.Table.from_pylist(rows)
    at = table.column_names.index("leaves")
    times = pa.array([row["leaves"] for row in rows]).cast(pa.timestamp("us", tz="UTC"))
    table = change(table.set_column(at, "leaves", times))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as out:
        out.write_table(table)
    return bytes(sink.getvalue())


def scores(project: Project) -> list[float]:
    return [row["score"] for row in predictions.read(project.settings.inbox)[0]]


@pytest.mark.parametrize("numbers", ["FP64", "FP32"])
def test_binary_tensors_score_as_json_does(project: Project, numbers: str) -> None:
    project.first()

    async def act(made: httpx.AsyncClient) -> httpx.Response:
        plain = (await made.post("/predict", json={"instances": ROWS})).json()["predictions"]
        data, headers = binary(ROWS, numbers, parameters={"binary_data_output": True})
        found = await made.post(INFER, content=data, headers=headers)
        assert found.status_code == 200, found.text
        size = int(found.headers[oip.HEADER])
        said, rest = json.loads(found.content[:size]), found.content[size:]
        told: dict[str, Any] = {}
        for item in said["outputs"]:
            part, rest = rest[: item["parameters"]["binary_data_size"]], rest[item["parameters"]["binary_data_size"] :]
            told[item["name"]] = oip.binary_values(item["name"], item["datatype"], part)
            assert item["shape"] == [2]
        assert rest == b""
        assert (said["id"], said["model_name"], said["model_version"]) == ("q", "tiny", "v1")
        assert told["score"] == [row["score"] for row in plain]
        assert told["label"] == [row["label"] for row in plain]
        assert len(set(told["prediction_id"])) == 2
        return found

    run(project, act)
    assert scores(project)[:2] == scores(project)[2:]


def test_outputs_are_chosen_by_name_and_each_in_its_form(project: Project) -> None:
    project.first()

    async def act(made: httpx.AsyncClient) -> None:
        chosen = [{"name": "label"}, {"name": "score", "parameters": {"binary_data": True}}]
        data, headers = binary(ROWS, outputs=chosen)
        found = await made.post(INFER, content=data, headers=headers)
        said = json.loads(found.content[: int(found.headers[oip.HEADER])])
        assert [(item["name"], "data" in item) for item in said["outputs"]] == [("label", True), ("score", False)]
        assert len(found.content) - int(found.headers[oip.HEADER]) == 16
        data, headers = binary(ROWS, outputs=[{"name": "nothing"}])
        assert (await made.post(INFER, content=data, headers=headers)).json()["field"] == "outputs"

    run(project, act)


def test_metadata_says_what_is_spoken(project: Project) -> None:
    project.first()

    async def act(made: httpx.AsyncClient) -> None:
        assert "binary_tensor_data" in (await made.get("/v2")).json()["extensions"]
        assert (await made.get("/v2/models/tiny/versions/v1")).json()["versions"] == ["v1"]
        assert (await made.get("/v2/models/tiny/versions/v2/ready")).status_code == 404
        pinned = await made.post("/v2/models/tiny/versions/v1/infer", content=binary(ROWS)[0], headers=binary(ROWS)[1])
        assert pinned.json()["model_version"] == "v1"
        gone = await made.post("/v2/models/tiny/versions/v2/infer", content=binary(ROWS)[0], headers=binary(ROWS)[1])
        assert gone.status_code == 404

    run(project, act)


def tensor(**change: Any) -> dict[str, Any]:
    return {"name": "distance", "datatype": "FP64", "shape": [1], "data": [1.0], **change}


@pytest.mark.parametrize(
    ("item", "rest", "field"),
    [
        (tensor(datatype="FP16"), None, "inputs.distance"),
        (tensor(datatype=7), None, "inputs.distance"),
        (tensor(datatype=["FP64"]), None, "inputs.distance"),
        (tensor(shape=[2]), None, "inputs.distance"),
        (tensor(shape=[1, 1, 1]), None, "inputs.distance"),
        (tensor(name=None), None, "inputs.0.name"),
        (tensor(data=None), None, "inputs.distance"),
        (tensor(parameters=7), None, "inputs.distance"),
        (tensor(parameters={"binary_data_size": 8}), b"12345678", "inputs.distance"),
        (tensor(), b"x", "inputs"),
    ],
)
def test_a_wrong_tensor_is_named(item: dict[str, Any], rest: bytes | None, field: str) -> None:
    data = json.dumps({"inputs": [item]}).encode()
    with pytest.raises(InvalidRequest) as found:
        oip.read(data + (rest or b""), None if rest is None else str(len(data)), 10)
    assert found.value.field == field


@pytest.mark.parametrize(
    ("type_", "size", "rest"),
    [
        ("FP64", 9, b"\0" * 9),
        ("FP64", -8, b""),
        ("FP64", 16, b"\0" * 8),
        ("FP64", True, b"\0"),
        ("FP64", 8.0, b"\0" * 8),
        ("FP64", 8, np.array([np.nan]).tobytes()),
        ("NOPE", 8, b"\0" * 8),
        (None, 8, b"\0" * 8),
        ("BYTES", 4, b"\xff\xff\xff\xff"),
        ("BYTES", 3, b"\1\0\0"),
        ("BYTES", 5, b"\1\0\0\0\xff"),
        ("BYTES", 5, b"\1\0\0\0\0"),
        ("BYTES", 9, b"\2\0\0\0ok\1\0\0"),
    ],
)
def test_wrong_binary_data_is_named(project: Project, type_: str | None, size: Any, rest: bytes) -> None:
    project.first()
    item = {"name": "distance", "datatype": type_, "shape": [1], "parameters": {"binary_data_size": size}}
    others = [{"name": name, "data": [ROW[name]]} for name in ROW if name != "distance"]
    head = json.dumps({"inputs": [item, *others]}).encode()
    headers = {"content-type": "application/octet-stream", oip.HEADER: str(len(head))}

    async def act(made: httpx.AsyncClient) -> httpx.Response:
        return await made.post(INFER, content=head + rest, headers=headers)

    found = run(project, act)
    assert found.status_code == 422, found.text
    assert "distance" in found.json()["field"]


@pytest.mark.parametrize("length", ["", "-1", "x", "99999", "9" * 30, "1"])
def test_a_wrong_length_of_the_json(length: str) -> None:
    with pytest.raises(InvalidRequest) as found:
        oip.read(b'{"inputs": []}', length, 10)
    assert found.value.status == 400


def test_an_arrow_stream_scores_as_json_does_and_is_answered_in_arrow(project: Project) -> None:
    project.first()

    async def act(made: httpx.AsyncClient) -> None:
        rows = [ROWS[0], {**ROWS[1], "distance": None}]
        plain = (await made.post("/predict", json={"instances": rows})).json()["predictions"]
        found = await made.post("/predict", content=stream(rows), headers=ARROW)
        assert found.status_code == 200, found.text
        assert found.headers["content-type"] == ARROW["content-type"]
        assert found.headers["x-model-version"] == "v1"
        table = pa.ipc.open_stream(found.content).read_all()
        assert table["score"].to_pylist() == [row["score"] for row in plain]
        assert table["label"].to_pylist() == [row["label"] for row in plain]
        assert table.schema.metadata == {b"model_version": b"v1", b"arm": b"stable", b"epoch": b"1"}

    run(project, act)
    assert scores(project)[:2] == scores(project)[2:]


def test_classes_are_columns_of_their_own_in_arrow(project: Project) -> None:
    project.first(objective=Objective("classes", classes=("early", "late", "never")))

    async def act(made: httpx.AsyncClient) -> pa.Table:
        found = await made.post("/predict", content=stream(ROWS), headers=ARROW)
        return pa.ipc.open_stream(found.content).read_all()

    table = run(project, act)
    names = ["class", "score", "scores early", "scores late", "scores never", "prediction_id"]
    assert table.column_names == names
    assert np.allclose(sum(table[name].to_numpy() for name in names[2:5]), 1)


def as_column(name: str, values: Any) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.set_column(table.column_names.index(name), name, values)


EXTENDED = pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"0" * 16] * 2, pa.binary(16)))
CHANGES: list[tuple[str, Callable[[pa.Table], pa.Table], int]] = [
    ("distance", as_column("distance", pa.array(["1", "2"])), 422),
    ("distance", as_column("distance", pa.array([1.0, float("nan")])), 422),
    ("distance", as_column("distance", pa.array([1.0, float("inf")])), 422),
    ("", as_column("line", pa.array(["a", "b"]).dictionary_encode()), 422),
    ("line", as_column("line", pa.array([b"a", b"b"])), 422),
    ("line", as_column("line", pa.array([["a"], ["b"]])), 422),
    ("line", as_column("line", pa.nulls(2)), 422),
    ("line", as_column("line", pa.array(["a", "\0"])), 422),
    ("trip", as_column("trip", EXTENDED), 422),
    ("leaves", as_column("leaves", pa.array([1, 2], pa.timestamp("us"))), 422),
    ("leaves", as_column("leaves", pa.array([1, 2], pa.date32())), 422),
    ("leaves", as_column("leaves", pa.array([2**62, 2], pa.timestamp("us", tz="UTC"))), 422),
    ("leaves", as_column("leaves", pa.array([2**62, 2], pa.timestamp("s", tz="UTC"))), 422),
    ("bus", lambda table: table.drop_columns(["bus"]), 422),
    ("more", lambda table: table.append_column("more", pa.array([1, 2])), 422),
    ("", lambda table: table.append_column("bus", pa.array(["x", "y"])), 400),
]


@pytest.mark.parametrize(("field", "change", "expected"), CHANGES)
def test_another_schema_is_named(project: Project, field: str, change: Callable[[pa.Table], pa.Table], expected: int) -> None:
    project.first()

    async def act(made: httpx.AsyncClient) -> httpx.Response:
        return await made.post("/predict", content=stream(ROWS, change), headers=ARROW)

    found = run(project, act)
    assert (found.status_code, found.json()["field"]) == (expected, field), found.text
    assert scores(project) == []


def test_what_would_grow_is_refused_before_it_does(project: Project) -> None:
    """A text of 100 MB compresses to a few KB: compressed streams are not taken, nor more rows than may be."""
    project.first()
    bomb = stream([{**ROW, "line": "x" * 100_000_000}], compression="zstd")
    assert len(bomb) < 20_000

    async def act(made: httpx.AsyncClient) -> None:
        small = stream([{**ROW, "line": "x" * 5000}], compression="zstd")
        assert (await made.post("/predict", content=small, headers=ARROW)).status_code == 415
        assert (await made.post("/predict", content=bomb, headers=ARROW)).status_code in (413, 415)
        for rows in (stream(ROWS, lambda table: table.slice(0, 0)), stream([ROW] * 101)):
            assert (await made.post("/predict", content=rows, headers=ARROW)).status_code in (413, 422)

    run(project, act)


def test_more_rows_than_may_be_are_refused_in_every_form() -> None:
    many = [ROW] * 11
    data, headers = binary(many)
    for act in (lambda: arrow.read(stream(many), REQUEST, 10), lambda: oip.read(data, headers[oip.HEADER], 10)):
        with pytest.raises(InvalidRequest, match="at most 10"):
            act()


@given(st.data())
@settings(max_examples=300, derandomize=True, deadline=None)
def test_a_broken_stream_is_a_named_error(data: st.DataObject) -> None:
    """Bytes of a good stream are changed, cut or added: rows of the right form or an error, never a crash, never more than was sent."""
    good = bytearray(stream(ROWS))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(good) - 1))
        match data.draw(st.sampled_from(("set", "cut", "add", "big"))):
            case "set":
                good[at] = data.draw(st.integers(0, 255))
            case "cut":
                del good[at : at + data.draw(st.integers(1, 40))]
            case "add":
                good[at:at] = data.draw(st.binary(min_size=1, max_size=9))
            case _:
                good[at : at + 4] = struct.pack("<i", data.draw(st.integers(-(2**31), 2**31 - 1)))
        if not good:
            break
    try:
        rows = arrow.read(bytes(good), REQUEST, 100)
    except InvalidRequest:
        return
    assert all(set(row) == set(REQUEST) for row in rows)


@given(st.data())
@settings(max_examples=300, derandomize=True, deadline=None)
def test_a_broken_binary_request_is_a_named_error(data: st.DataObject) -> None:
    body, headers = binary(ROWS)
    good = bytearray(body)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(good) - 1))
        good[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    try:
        asked = oip.read(bytes(good), headers[oip.HEADER], 100)
    except InvalidRequest:
        return
    assert all(isinstance(row, dict) for row in asked.rows)
