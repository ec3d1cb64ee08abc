"""gRPC over a real channel: what /predict says, tokens by metadata, errors as codes, and messages that any client's own stubs understand."""

from __future__ import annotations

import asyncio
import pickle
import struct
import subprocess
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import numpy as np
import pytest
from ray import cloudpickle
from tiny import ROW, Project

from ct.data import predictions
from ct.governance import access
from ct.serving.access import Gate
from ct.serving.grpc_messages import METHODS, SERVICE, messages
from ct.serving.grpc_service import Inference, add_to_server
from ct.serving.replica import Replica

ROWS = [ROW, {**ROW, "trip": "t2", "distance": 7.5}]
Call = Callable[..., Awaitable[Any]]


class Served(Inference):
    def __init__(self, project: Project) -> None:
        self._replica, self._gate = Replica(project.settings, "tiny"), Gate(project.settings)


def run(project: Project, act: Callable[[Call], Awaitable[Any]]) -> Any:
    async def go() -> Any:
        server = grpc.aio.server()
        add_to_server(Served(project), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        known = messages()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:

            async def call(method: str, /, *, token: str = "", told: dict[str, str] | None = None, **fields: Any) -> Any:
                """The answer to a method's request. `told` is metadata that goes along, and then what comes back in the trailer."""
                ask = channel.unary_unary(
                    f"/{SERVICE}/{method}",
                    request_serializer=known[f"{method}Request"].SerializeToString,
                    response_deserializer=known[f"{method}Response"].FromString,
                )
                metadata = (("authorization", f"Bearer {token}"),) if token else ()
                asked = ask(known[f"{method}Request"](**fields), metadata=(*metadata, *(told or {}).items()))
                try:
                    return await asked
                finally:
                    if told is not None:
                        told.clear()
                        told.update(await asked.trailing_metadata())

            try:
                return await act(call)
            finally:
                await server.stop(None)

    return asyncio.run(go())


async def refused(call: Awaitable[Any]) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as found:
        await call
    assert found.value.details()
    assert "Traceback" not in found.value.details()
    return found.value.code()


def typed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    inputs = []
    for name in ROW:
        number = name == "distance"
        column = [row[name] if number else row[name].encode() for row in rows]
        contents = {"fp64_contents" if number else "bytes_contents": column}
        inputs.append({"name": name, "datatype": "FP64" if number else "BYTES", "shape": [len(rows)], "contents": contents})
    return inputs


def raw(rows: list[dict[str, Any]]) -> dict[str, Any]:
    inputs = [{key: value for key, value in item.items() if key != "contents"} for item in typed(rows)]
    parts = []
    for name in ROW:
        texts = [row[name].encode() for row in rows] if name != "distance" else []
        numbers = np.array([row["distance"] for row in rows], "<f8").tobytes()
        parts.append(b"".join(struct.pack("<I", len(text)) + text for text in texts) if texts else numbers)
    return {"inputs": inputs, "raw_input_contents": parts}


def test_it_scores_typed_and_raw_tensors_and_logs_them(project: Project) -> None:
    project.first()

    async def act(call: Call) -> None:
        one = await call("ModelInfer", model_name="tiny", id="q", inputs=typed(ROWS))
        outputs = {item.name: item for item in one.outputs}
        scores = list(outputs["score"].contents.fp64_contents)
        assert (one.model_version, one.id, one.parameters["arm"].string_param) == ("v1", "q", "stable")
        assert list(outputs["score"].shape) == [2]
        two = await call("ModelInfer", model_name="tiny", model_version="v1", **raw(ROWS))
        assert [item.name for item in two.outputs] == ["score", "label", "prediction_id"]
        assert np.frombuffer(two.raw_output_contents[0], "<f8").tolist() == scores
        three = await call("ModelInfer", model_name="tiny", inputs=typed(ROWS), outputs=[{"name": "label"}])
        assert [item.name for item in three.outputs] == ["label"]

    run(project, act)
    logged = [row["score"] for row in predictions.read(project.settings.inbox)[0]]
    assert logged[:2] == logged[2:4] == logged[4:]


def test_health_and_metadata(project: Project) -> None:
    async def before(call: Call) -> None:
        assert (await call("ServerLive")).live
        assert not (await call("ServerReady")).ready
        assert not (await call("ModelReady", name="tiny")).ready
        assert await refused(call("ModelInfer", model_name="tiny", inputs=typed(ROWS))) is grpc.StatusCode.UNAVAILABLE

    run(project, before)
    project.first()

    async def after(call: Call) -> None:
        assert (await call("ServerReady")).ready
        assert (await call("ModelReady", name="tiny", version="v1")).ready
        assert not (await call("ModelReady", name="tiny", version="v9")).ready
        assert (await call("ServerMetadata")).name == "ct"
        about = await call("ModelMetadata", name="tiny")
        assert {item.name: item.datatype for item in about.inputs}["distance"] == "FP64"
        assert list(about.versions) == ["v1"]
        assert await refused(call("ModelMetadata", name="other")) is grpc.StatusCode.NOT_FOUND

    run(project, after)


def test_what_is_wrong_has_a_code(project: Project) -> None:
    project.first()

    async def act(call: Call) -> None:
        wrong: list[dict[str, Any]] = [
            {"inputs": []},
            {"inputs": typed(ROWS)[1:]},
            {"inputs": [*typed(ROWS)[:1], *typed(ROWS)]},
            {"inputs": [{**item, "datatype": "FP16"} for item in typed(ROWS)]},
            {"inputs": [{**item, "shape": [3]} for item in typed(ROWS)]},
            {"inputs": typed([{**ROW, "distance": float("nan")}])},
            {"inputs": typed([{**ROW, "line": "\0"}])},
            {"inputs": typed(ROWS), "outputs": [{"name": "nothing"}]},
            {**raw(ROWS), "raw_input_contents": [b""]},
            {**raw(ROWS), "raw_input_contents": [b"\xff"] * len(ROW)},
        ]
        for fields in wrong:
            assert await refused(call("ModelInfer", model_name="tiny", **fields)) is grpc.StatusCode.INVALID_ARGUMENT, fields
        assert await refused(call("ModelInfer", model_name="no", inputs=typed(ROWS))) is grpc.StatusCode.NOT_FOUND
        large = typed([{**ROW, "line": "x" * 5000}])
        assert await refused(call("ModelInfer", model_name="tiny", inputs=large)) is grpc.StatusCode.RESOURCE_EXHAUSTED

    run(project, act)


def test_tokens_come_as_metadata(project: Project) -> None:
    project.first()
    asker = access.create(project.journal, "asker", "predict")[1]
    reader = access.create(project.journal, "reader", "read")[1]

    async def act(call: Call) -> None:
        assert (await call("ServerLive")).live
        infer: dict[str, Any] = {"model_name": "tiny", "inputs": typed(ROWS)}
        assert (await call("ModelInfer", token=asker, **infer)).model_version == "v1"
        assert await refused(call("ModelInfer", **infer)) is grpc.StatusCode.UNAUTHENTICATED
        assert await refused(call("ModelInfer", token="nonsense", **infer)) is grpc.StatusCode.UNAUTHENTICATED
        assert await refused(call("ModelInfer", token=reader, **infer)) is grpc.StatusCode.PERMISSION_DENIED
        assert (await call("ModelMetadata", token=reader, name="tiny")).name == "tiny"
        assert await refused(call("ModelMetadata", token=asker, name="tiny")) is grpc.StatusCode.PERMISSION_DENIED

    run(project, act)


def test_metadata_choose_the_arm_as_headers_do(project: Project) -> None:
    route = project.first()
    project.put(route.with_canary(project.version("v2", 1.0), weight=0))

    async def act(call: Call) -> None:
        infer: dict[str, Any] = {"model_name": "tiny", "inputs": typed(ROWS)}
        for force, version in (("always", "v2"), ("never", "v1"), ("", "v1")):
            assert (await call("ModelInfer", told={"x-canary": force}, **infer)).model_version == version
        assert await refused(call("ModelInfer", told={"x-canary": "maybe"}, **infer)) is grpc.StatusCode.INVALID_ARGUMENT

    run(project, act)
    logged = predictions.read(project.settings.inbox)[0]
    assert [(row["version"], row["forced"]) for row in logged[::2]] == [("v2", True), ("v1", True), ("v1", False)]


def test_every_answer_has_the_request_s_id(project: Project) -> None:
    project.first()

    async def act(call: Call) -> None:
        for method in METHODS:
            about = {"name": "tiny"} if method.startswith("Model") and method != "ModelInfer" else {}
            fields: dict[str, Any] = {"model_name": "tiny", "inputs": typed(ROWS)} if method == "ModelInfer" else about
            told = {"x-request-id": "r-1" * 40}
            await call(method, told=told, **fields)
            assert told["x-request-id"] == ("r-1" * 40)[:64], method
        told = {"x-request-id": "r-2"}
        assert await refused(call("ModelInfer", told=told, model_name="no")) is grpc.StatusCode.NOT_FOUND
        assert told["x-request-id"] == "r-2"
        await call("ServerLive", told=(first := {}))
        await call("ServerLive", told=(second := {}))
        assert len(first["x-request-id"]) == 16
        assert first != second

    run(project, act)


def test_where_serve_keeps_to_loopback_a_caller_from_elsewhere_is_refused_whatever_it_shows(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.first()
    secret = access.create(project.journal, "root", "admin")[1]
    infer: dict[str, Any] = {"model_name": "tiny", "inputs": typed(ROWS)}

    async def act(call: Call) -> list[Any]:
        answered = [(await call("ModelInfer", token=secret, **infer)).model_version]
        monkeypatch.setattr(
            "ct.serving.grpc_service.loopback", lambda host: host != "127.0.0.1"
        )  # this caller is from elsewhere
        return [*answered, await refused(call("ModelInfer", token=secret, **infer))]

    monkeypatch.setattr(Served, "_near", True)
    assert run(project, act) == ["v1", grpc.StatusCode.PERMISSION_DENIED]
    monkeypatch.undo()
    assert run(project, lambda call: call("ServerLive")).live


def test_messages_travel_as_pickles_do() -> None:
    """Serve's own gRPC server, which answers where there is no HAProxy, sends a replica what it has read so."""
    asked = messages()["ModelInferRequest"](model_name="tiny", id="7", inputs=typed(ROWS))
    for travelled in (pickle.loads(pickle.dumps(asked)), cloudpickle.loads(cloudpickle.dumps(asked))):
        assert travelled == asked
        assert type(travelled) is type(asked)
    told = "import pickle, sys; print(pickle.loads(sys.stdin.buffer.read()).id)"
    done = subprocess.run([sys.executable, "-c", told], input=pickle.dumps(asked), capture_output=True, check=True)
    assert done.stdout == b"7\n"
