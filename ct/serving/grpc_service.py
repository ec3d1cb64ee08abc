"""gRPC `inference.GRPCInferenceService` over a replica: the same tensors, limits, tokens and errors as the HTTP doors. Serve's own gRPC server carries it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import unquote

import grpc

from ct.errors import CtError, Forbidden, InvalidRequest, NotFound, Unauthenticated, Unavailable
from ct.governance.access import bearer
from ct.governance.binds import loopback
from ct.serving import oip
from ct.serving.access import Gate
from ct.serving.endpoint import EXTENSIONS
from ct.serving.grpc_messages import METHODS, SERVICE, messages
from ct.serving.paths import Role
from ct.serving.replica import Replica

_CODES: dict[int, Any] = {
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}


def add_to_server(servicer: Any, server: Any) -> None:
    """Register the service's methods, as a generated `add_…Servicer_to_server` does. Serve replaces what they call by the replica's own."""
    known = messages()
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(
            getattr(servicer, name, None),
            request_deserializer=known[f"{name}Request"].FromString,
            response_serializer=known[f"{name}Response"].SerializeToString,
        )
        for name in METHODS
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


class Inference:
    """The service's methods. A token comes as metadata `authorization: Bearer …`; without any token only this machine is answered.

    `_near` says that Serve keeps to loopback: its gRPC servers, which know no such setting, then answer this machine only, whatever the token.
    Every answer has the metadata `x-request-id` in its trailer, as it came or a new one.
    """

    _replica: Replica
    _gate: Gate
    _near: bool = False
    _calls: int = 0

    async def ServerLive(self, request: Any, grpc_context: Any) -> Any:
        """Does the process answer?"""
        _named(grpc_context)
        return messages()["ServerLiveResponse"](live=True)

    async def ServerReady(self, request: Any, grpc_context: Any) -> Any:
        """Is a version in force?"""
        _named(grpc_context)
        return messages()["ServerReadyResponse"](ready=self._replica.slots.live is not None)

    async def ModelReady(self, request: Any, grpc_context: Any) -> Any:
        """Is this model, or this version of it, loaded?"""
        _named(grpc_context)
        slots = self._replica.slots
        known = request.name == self._replica.endpoint and (not request.version or request.version in slots.loaded)
        return messages()["ModelReadyResponse"](ready=known and slots.live is not None)

    async def ServerMetadata(self, request: Any, grpc_context: Any) -> Any:
        """The server's name, version and extensions."""

        async def told() -> Any:
            return messages()["ServerMetadataResponse"](name="ct", version="1", extensions=EXTENSIONS)

        return await self._guarded("read", "ServerMetadata", request, grpc_context, told)

    async def ModelMetadata(self, request: Any, grpc_context: Any) -> Any:
        """The model's inputs and outputs."""

        async def told() -> Any:
            self._check_model(request.name, request.version)
            made = self._replica.metadata()
            tensors = {
                side: [{name: item[name] for name in ("name", "datatype", "shape")} for item in made[side]]
                for side in ("inputs", "outputs")
            }
            plain = {name: made[name] for name in ("name", "versions", "platform")}
            return messages()["ModelMetadataResponse"](**plain, **tensors)

        return await self._guarded("read", "ModelMetadata", request, grpc_context, told)

    async def ModelInfer(self, request: Any, grpc_context: Any) -> Any:
        """Score tensors; what comes as raw contents is answered so."""

        async def told() -> Any:
            self._check_model(request.model_name, "")
            rows = _rows(request, self._replica.settings.max_rows)
            unit, force = _metadata(grpc_context, "x-session-id")[:200], _metadata(grpc_context, "x-canary")
            answer = await self._replica.predict(rows, unit=unit, force=force, version=request.model_version)
            return _inferred(request, self._replica.endpoint, answer)

        return await self._guarded("predict", "ModelInfer", request, grpc_context, told)

    def _check_model(self, name: str, version: str) -> None:
        loaded = self._replica.slots.loaded
        if name != self._replica.endpoint or (version and version not in loaded):
            raise NotFound(
                f"there is no model {name[:60]!r} {version[:20]}".rstrip(),
                f"{self._replica.endpoint!r}, a version of {sorted(loaded)}",
                "check it",
            )

    async def _guarded(self, role: Role, name: str, request: Any, context: Any, act: Callable[[], Awaitable[Any]]) -> Any:
        """Do it within the limits, for whom may. An error becomes a code and its words; the empty answer beside it is not sent."""
        place = self._replica.settings
        _named(context)
        counted = False
        try:
            self._admit(context, role)
            if request.ByteSize() > place.max_body_bytes:
                raise InvalidRequest("a message too large", f"at most {place.max_body_bytes:,} bytes", "split it", status=413)
            if self._calls >= place.max_in_work:
                raise Unavailable(f"{self._calls} calls are in work", "fewer at once", "try again in a second")
            counted = True
            self._calls += 1
            async with asyncio.timeout(place.request_seconds):
                return await act()
        except TimeoutError:
            status, said = 504, f"no answer in {place.request_seconds:g} s"
        except CtError as error:
            status, said = _status(error), str(error)
        except Exception as error:  # a stack trace never leaves the process
            self._replica.telemetry.fault(type(error).__name__)
            status, said = 500, "the endpoint failed; try again; see /metrics"
        finally:
            self._calls -= counted
        client = grpc.StatusCode.INVALID_ARGUMENT if 400 <= status < 500 else grpc.StatusCode.INTERNAL
        context.set_code(_CODES.get(status, client))
        context.set_details(said[:1000])
        return messages()[f"{name}Response"]()

    def _admit(self, context: Any, role: Role) -> None:
        """Raises Unauthenticated, Forbidden or Unavailable."""
        # "ipv4:127.0.0.1:5", "ipv6:%5B::1%5D:5"
        here = loopback(unquote(str(context.peer())).partition(":")[2].rpartition(":")[0])
        if self._near and not here:
            raise Forbidden("a caller from elsewhere", "one on this machine", "ask the endpoint's own port")
        token = self._gate.admit(bearer(_metadata(context, "authorization")), role)
        if token is None and not here:
            raise Unauthenticated("no token", "a token, for whom asks from elsewhere", "see `ct token create`")


def _status(error: CtError) -> int:
    if isinstance(error, InvalidRequest):
        return error.status
    kinds = {Unauthenticated: 401, Forbidden: 403, NotFound: 404, Unavailable: 503}
    return next((status for kind, status in kinds.items() if isinstance(error, kind)), 500)


def _named(context: Any) -> None:
    """Give the answer the request's id."""
    given = _metadata(context, "x-request-id")
    context.set_trailing_metadata([("x-request-id", given[:64] or secrets.token_hex(8))])


def _metadata(context: Any, name: str) -> str:
    """The one value of that name; nothing when there are several."""
    found = [value for key, value in context.invocation_metadata() if key == name]
    return str(found[0]) if len(found) == 1 else ""


def _rows(request: Any, most: int) -> list[dict[str, Any]]:
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise InvalidRequest(f"{len(raw)} raw contents of {len(request.inputs)} inputs", "one each", "mend it", field="inputs")
    columns: dict[str, list[Any]] = {}
    for at, item in enumerate(request.inputs):
        if item.name in columns:
            raise InvalidRequest(f"tensor {item.name[:60]!r} twice", "each once", "leave one out", field="inputs")
        values = oip.binary_values(item.name, item.datatype, raw[at]) if raw else _contents(item)
        oip.check_shape(item.name, list(item.shape), len(values))
        columns[item.name] = values
    return oip.rows_of(columns, most)


def _contents(item: Any) -> list[Any]:
    if item.datatype == "BYTES":
        return oip.texts_of(item.name, item.contents.bytes_contents)
    if item.datatype not in _CONTENTS:
        known = ", ".join([*_CONTENTS, "BYTES"])
        raise InvalidRequest(f"datatype {item.datatype[:40]!r}", known, "convert it", field=f"inputs.{item.name}")
    values = list(getattr(item.contents, _CONTENTS[item.datatype]))
    return [int(value) for value in values] if item.datatype == "BOOL" else values


def _inferred(request: Any, endpoint: str, answer: Any) -> Any:
    told = {item["name"]: item for item in answer.tensors()}
    wanted = [item.name for item in request.outputs] or list(told)
    for name in wanted:
        if name not in told:
            raise InvalidRequest(f"there is no output {name[:60]!r}", ", ".join(told), "check its name", field="outputs")
    made = messages()["ModelInferResponse"](model_name=endpoint, model_version=answer.version, id=request.id)
    made.parameters["arm"].string_param = answer.arm
    made.parameters["epoch"].int64_param = answer.epoch
    for name in dict.fromkeys(wanted):
        item = told[name]
        tensor = made.outputs.add(name=name, datatype=item["datatype"], shape=item["shape"])
        if request.raw_input_contents:
            made.raw_output_contents.append(oip.binary_data(item["datatype"], item["data"]))
        elif item["datatype"] == "BYTES":
            tensor.contents.bytes_contents.extend(value.encode() for value in item["data"])
        else:
            getattr(tensor.contents, _CONTENTS[item["datatype"]]).extend(item["data"])
    return made
