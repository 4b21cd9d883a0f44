"""Parsing and the contract's constraints: what is wrong with a message, field by field."""

from collections.abc import Iterator
from typing import Protocol, cast

from buf.validate import validate_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message
from protovalidate import Validator, Violation

from trunkline.api.errors.v1 import reason_pb2
from trunkline_server.errors import FieldViolation, Invalid
from trunkline_server.rpc.shortcut import Quick, quick_check

VIOLATIONS_MAX = 20
_NUL = "\x00"
_STRING = FieldDescriptor.TYPE_STRING
_MESSAGE = FieldDescriptor.TYPE_MESSAGE


class MessageClass(Protocol):
    """A generated message class, as far as parsing needs it."""

    def FromString(self, s: bytes, /) -> Message: ...  # noqa: N802


class MessageUnreadable(Invalid):
    reason = reason_pb2.REASON_MALFORMED_MESSAGE
    text = "The message cannot be parsed: it is not the protobuf message this method takes."


class FieldsInvalid(Invalid):
    text = "Some fields of the request are not valid."


class Messages:
    """Turns bytes into checked messages; one for the whole server, its rules compiled once."""

    def __init__(self) -> None:
        self._collect = Validator().collect_violations
        self._quick: dict[MessageClass, Quick] = {}

    def read(self, message_class: MessageClass, raw: bytes) -> Message:
        try:
            message = message_class.FromString(raw)
        except DecodeError:
            raise MessageUnreadable from None
        quick = self._quick.get(message_class)
        if quick is None:
            quick = self._quick[message_class] = quick_check(_descriptor(message)) or _never
        # A zero byte is rare in a protobuf message, and most of those are not in a text.
        has_zero_byte = b"\x00" in raw
        if not has_zero_byte and quick(message):
            return message
        violations = self._collect(message)
        if violations:
            raise FieldsInvalid(
                violations=[explained(violation) for violation in violations[:VIOLATIONS_MAX]]
            )
        if has_zero_byte:
            holders = list(_nul_fields(message, ""))
            if holders:
                raise FieldsInvalid(
                    violations=[
                        FieldViolation(path, "must not contain NUL", "string.no_nul")
                        for path in holders[:VIOLATIONS_MAX]
                    ]
                )
        return message


def _descriptor(message: Message) -> Descriptor:
    return cast(Descriptor, message.DESCRIPTOR)


def _never(message: Message) -> bool:
    return False


def explained(violation: Violation) -> FieldViolation:
    proto = violation.proto
    path = _path(proto.field)
    blamed, dot, _ = proto.rule_id.partition(".")
    if dot and not (proto.rule and proto.rule.elements):
        # A rule over several fields is their message's; its id begins with the field to blame.
        path = f"{path}.{blamed}" if path else blamed
    return FieldViolation(path, proto.message or proto.rule_id, proto.rule_id)


def _path(field: object) -> str:
    """`filter.dates[3].year`, as BadRequest wants it."""
    parts: list[str] = []
    for element in getattr(field, "elements", None) or ():
        name = element.field_name
        subscript = element.subscript
        if subscript is not None:
            value = getattr(subscript, "value", subscript)
            # Keys of a map are the client's text: they stay out of errors.
            name += f"[{value}]" if isinstance(value, int) else "[*]"
        parts.append(name)
    return ".".join(parts)


def _nul_fields(message: Message, prefix: str) -> Iterator[str]:
    for field, value in message.ListFields():
        path = f"{prefix}{field.name}"
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            if any(_has_nul(part) for item in value.items() for part in item):
                yield path
        elif field.type == _STRING:
            if _NUL in value if isinstance(value, str) else any(_NUL in item for item in value):
                yield path
        elif field.type == _MESSAGE and not _is_checked_later(field):
            children = [value] if isinstance(value, Message) else value
            for child in children:
                yield from _nul_fields(child, f"{path}.")


def _is_checked_later(field: FieldDescriptor) -> bool:
    """An item that the contract leaves to the handler gets its own error."""
    rules = field.GetOptions().Extensions[validate_pb2.field]
    return validate_pb2.IGNORE_ALWAYS in (rules.ignore, rules.repeated.items.ignore)


def _has_nul(part: object) -> bool:
    return isinstance(part, str) and _NUL in part
