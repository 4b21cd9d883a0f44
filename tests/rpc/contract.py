"""A small service of its own, so that the wrapper is tested apart from any slice."""

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import ServiceDescriptor

from trunkline.api.options.v1 import policy_pb2

PACKAGE = "trunkline.test.v1"
SERVICE = f"{PACKAGE}.TalkService"
_Field = descriptor_pb2.FieldDescriptorProto

# Options of protovalidate as they are on the wire: a string of 1 to 64 characters.
_TEXT_RULES = bytes.fromhex("ba4806720410011840")

# name: (takes a stream, gives a stream, roles, anonymous, priority)
METHODS = {
    "Say": (False, False, [policy_pb2.ROLE_AGENT, policy_pb2.ROLE_ADMIN], False),
    "Hear": (True, False, [policy_pb2.ROLE_AGENT, policy_pb2.ROLE_ADMIN], False),
    "Recite": (False, True, [policy_pb2.ROLE_AGENT, policy_pb2.ROLE_ADMIN], False),
    "Talk": (True, True, [policy_pb2.ROLE_AGENT, policy_pb2.ROLE_ADMIN], False),
    "Knock": (False, False, [], True),
    "Missing": (False, False, [policy_pb2.ROLE_AGENT], False),
    "MissingStream": (False, True, [policy_pb2.ROLE_AGENT], False),
}


def file_descriptor(name: str = "trunkline/test/v1/talk_service.proto") -> Any:
    file = descriptor_pb2.FileDescriptorProto(name=name, package=PACKAGE, syntax="proto3")
    file.dependency.append("trunkline/api/options/v1/policy.proto")
    words = file.message_type.add(name="Words")
    text = words.field.add(name="text", number=1, type=9, label=1)
    text.options.MergeFromString(_TEXT_RULES)
    words.field.add(name="aside", number=2, type=9, label=1)
    words.field.add(name="body", number=3, type=12, label=1)
    words.field.add(name="inner", number=4, type=11, label=1, type_name=f".{PACKAGE}.Words")
    words.field.add(name="asides", number=5, type=9, label=3)
    service = file.service.add(name="TalkService")
    for method_name, (takes, gives, roles, anonymous) in METHODS.items():
        method = service.method.add(
            name=method_name,
            input_type=f".{PACKAGE}.Words",
            output_type=f".{PACKAGE}.Words",
            client_streaming=takes,
            server_streaming=gives,
        )
        policy = method.options.Extensions[policy_pb2.policy]
        policy.roles.extend(roles)
        policy.anonymous = anonymous
        policy.cost = 1
        policy.priority = policy_pb2.PRIORITY_NORMAL
        policy.default_deadline.FromMilliseconds(700)
        policy.max_deadline.FromSeconds(20)
    return file


_POOL = descriptor_pool.Default()
_POOL.AddSerializedFile(file_descriptor().SerializeToString())
TALK: ServiceDescriptor = _POOL.FindServiceByName(SERVICE)
Words: Any = message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"{PACKAGE}.Words"))
