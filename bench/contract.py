"""The service the benches call: one typed unary call with a reply of about 110 bytes.

Built at import instead of generated, so that the bare servers need nothing but grpcio and
protobuf, and can run on any version of the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from bench.load import Call

PACKAGE = "trunkline.bench.v1"
SERVICE = f"{PACKAGE}.BenchService"
FILE = "trunkline/bench/v1/bench_service.proto"
METHODS = 60

_Field = descriptor_pb2.FieldDescriptorProto


# Options of protovalidate as they are on the wire (buf.validate.field: string 1 - 64 characters;
# number at least 0), so that the file needs no import and the bare servers no protovalidate.
_TEXT_RULES = bytes.fromhex("ba4806720410011840")
_NUMBER_RULES = bytes.fromhex("ba48041a022800")


def method_name(number: int) -> str:
    return "Echo" if number == 0 else f"Echo{number}"


def path(method: str = "Echo") -> str:
    return f"/{SERVICE}/{method}"


def file_descriptor(methods: int = METHODS) -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name=FILE, package=PACKAGE, syntax="proto3")
    _message(file, "EchoRequest", number="string", product="string", on="int32")
    _message(
        file,
        "EchoResponse",
        member_id="string",
        number="string",
        display_name="string",
        status="int32",
        effective_from="int64",
        effective_to="int64",
        valid="bool",
    )
    service = file.service.add(name="BenchService")
    for number in range(methods):
        service.method.add(
            name=method_name(number),
            input_type=f".{PACKAGE}.EchoRequest",
            output_type=f".{PACKAGE}.EchoResponse",
        )
    return file


def _message(file: descriptor_pb2.FileDescriptorProto, name: str, **fields: str) -> None:
    message = file.message_type.add(name=name)
    for number, (field, kind) in enumerate(fields.items(), start=1):
        added = message.field.add(
            name=field,
            number=number,
            type=_Field.Type.Value(f"TYPE_{kind.upper()}"),
            label=_Field.LABEL_OPTIONAL,
        )
        if name.endswith("Request"):
            added.options.MergeFromString(_TEXT_RULES if kind == "string" else _NUMBER_RULES)


_POOL = descriptor_pool.DescriptorPool()
_POOL.AddSerializedFile(file_descriptor().SerializeToString())
EchoRequest: Any = message_factory.GetMessageClass(
    _POOL.FindMessageTypeByName(f"{PACKAGE}.EchoRequest")
)
EchoResponse: Any = message_factory.GetMessageClass(
    _POOL.FindMessageTypeByName(f"{PACKAGE}.EchoResponse")
)


def request() -> Any:
    return EchoRequest(number="A-1002003", product="motor", on=20_250)


def reply(asked: Any) -> Any:
    return EchoResponse(
        member_id="0198c0de-7f00-7000-8000-00000000beef",
        number=asked.number,
        display_name="Alexandra Exampleton-Featherstonehaugh",
        status=2,
        effective_from=1_735_689_600,
        effective_to=1_767_225_600,
        valid=True,
    )


def echo_call(metadata: Mapping[str, str] | None = None) -> Call:
    """The call as the load clients take it."""
    asked = request()
    return Call(
        path=path(),
        request=asked.SerializeToString(),
        reply_bytes=len(reply(asked).SerializeToString()),
        metadata=metadata or {},
    )
