"""The messages of gRPC `inference.GRPCInferenceService`, described here instead of generated: names, types and numbers are the protocol's.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/open_inference_grpc.proto
"""

from __future__ import annotations

import copyreg
from collections.abc import Callable
from functools import cache, partial
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"

# "name:type=number"; * is repeated, % a map from text. A parameter has one of its values.
MESSAGES = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "live:bool=1",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "ready:bool=1",
    "ModelReadyRequest": "name:string=1 version:string=2",
    "ModelReadyResponse": "ready:bool=1",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "name:string=1 version:string=2 extensions:*string=3",
    "ModelMetadataRequest": "name:string=1 version:string=2",
    "TensorMetadata": "name:string=1 datatype:string=2 shape:*int64=3",
    "ModelMetadataResponse": "name:string=1 versions:*string=2 platform:string=3 inputs:*TensorMetadata=4 outputs:*TensorMetadata=5",
    "InferParameter": "bool_param:bool=1 int64_param:int64=2 string_param:string=3 double_param:double=4 uint64_param:uint64=5",
    "InferTensorContents": (
        "bool_contents:*bool=1 int_contents:*int32=2 int64_contents:*int64=3 uint_contents:*uint32=4 uint64_contents:*uint64=5 "
        "fp32_contents:*float=6 fp64_contents:*double=7 bytes_contents:*bytes=8"
    ),
    "InferInputTensor": (
        "name:string=1 datatype:string=2 shape:*int64=3 parameters:%InferParameter=4 contents:InferTensorContents=5"
    ),
    "InferRequestedOutputTensor": "name:string=1 parameters:%InferParameter=2",
    "ModelInferRequest": (
        "model_name:string=1 model_version:string=2 id:string=3 parameters:%InferParameter=4 inputs:*InferInputTensor=5 "
        "outputs:*InferRequestedOutputTensor=6 raw_input_contents:*bytes=7"
    ),
    "InferOutputTensor": (
        "name:string=1 datatype:string=2 shape:*int64=3 parameters:%InferParameter=4 contents:InferTensorContents=5"
    ),
    "ModelInferResponse": (
        "model_name:string=1 model_version:string=2 id:string=3 parameters:%InferParameter=4 outputs:*InferOutputTensor=5 "
        "raw_output_contents:*bytes=6"
    ),
}
METHODS = ("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer")


@cache
def messages() -> dict[str, Any]:
    """The message classes by name. They live in a pool of their own, so that a client's generated ones may be loaded beside them.

    Serve's own gRPC server sends them to replicas as pickles, which would look for the classes in a module.
    """
    file = descriptor_pb2.FileDescriptorProto(name="ct/inference.proto", package=PACKAGE, syntax="proto3")
    for name, fields in MESSAGES.items():
        _describe(file.message_type.add(name=name), fields.split())
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = {name: pool.FindMessageTypeByName(f"{PACKAGE}.{name}") for name in MESSAGES}
    made = {name: message_factory.GetMessageClass(descriptor) for name, descriptor in found.items()}
    for name, kind in made.items():
        copyreg.pickle(kind, partial(_reduced, name))
    return made


def parsed(name: str, data: bytes) -> Any:
    """The message of that name with these bytes."""
    return messages()[name].FromString(data)


def _reduced(name: str, message: Any) -> tuple[Callable[[str, bytes], Any], tuple[str, bytes]]:
    return parsed, (name, message.SerializeToString())


def _describe(message: Any, fields: list[str]) -> None:
    kinds = descriptor_pb2.FieldDescriptorProto
    if message.name == "InferParameter":
        message.oneof_decl.add(name="parameter_choice")
    for text in fields:
        name, _, rest = text.partition(":")
        form, _, number = rest.partition("=")
        kind, many = form.lstrip("*%"), form[0] in "*%"
        label = kinds.LABEL_REPEATED if many else kinds.LABEL_OPTIONAL
        field = message.field.add(name=name, number=int(number), label=label)
        if form[0] == "%":
            entry = message.nested_type.add(name="ParametersEntry")
            entry.options.map_entry = True
            entry.field.add(name="key", number=1, label=kinds.LABEL_OPTIONAL, type=kinds.TYPE_STRING)
            value = entry.field.add(name="value", number=2, label=kinds.LABEL_OPTIONAL, type=kinds.TYPE_MESSAGE)
            value.type_name = f".{PACKAGE}.{kind}"
            field.type, field.type_name = kinds.TYPE_MESSAGE, f".{PACKAGE}.{message.name}.ParametersEntry"
        elif kind in MESSAGES:
            field.type, field.type_name = kinds.TYPE_MESSAGE, f".{PACKAGE}.{kind}"
        else:
            field.type = getattr(kinds, f"TYPE_{kind.upper()}")
            if message.name == "InferParameter":
                field.oneof_index = 0
