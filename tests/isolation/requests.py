"""Requests made from descriptors: as valid as their constraints ask, with ids put in by name."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from buf.validate import validate_pb2
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

DEPTH_MAX = 4
# The types of descriptors differ between protobuf's stubs and its implementation.
Descriptor = Any
Field = Any
_TEXT = FieldDescriptor.TYPE_STRING
_MESSAGE = FieldDescriptor.TYPE_MESSAGE


def filled(descriptor: Descriptor, ids: Mapping[str, str]) -> Message:
    """A message with every field of `ids` that it has, and what is required beside them."""
    message: Message = GetMessageClass(descriptor)()
    _fill(message, ids, DEPTH_MAX)
    return message


def takes_ids(descriptor: Descriptor, names: frozenset[str], depth: int = DEPTH_MAX) -> bool:
    return any(
        field.name in names
        or (_plain(field) and depth > 0 and takes_ids(field.message_type, names, depth - 1))
        for field in descriptor.fields
    )


def id_fields(descriptor: Descriptor, depth: int = DEPTH_MAX) -> Iterator[str]:
    """The names of all ids that a message takes."""
    for field in descriptor.fields:
        if names_a_thing(field.name):
            yield field.name
        elif _plain(field) and depth > 0:
            yield from id_fields(field.message_type, depth - 1)


def ids_in(message: Message) -> Iterator[tuple[str, str]]:
    """Every id in a reply, by the name of its field."""
    for field, value in message.ListFields():
        values = value if field.is_repeated else [value]
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            continue
        for each in values:
            if isinstance(each, Message):
                yield from ids_in(each)
            elif isinstance(each, str) and each and names_a_thing(field.name):
                yield field.name, each


def timeless(message: Message) -> Message:
    """The same message without its points in time."""
    fields: list[tuple[Field, Any]] = list(message.ListFields())
    for field, value in fields:
        if field.type != _MESSAGE or field.message_type.GetOptions().map_entry:
            continue
        if field.message_type.full_name == "google.protobuf.Timestamp":
            message.ClearField(field.name)
        else:
            for each in value if field.is_repeated else [value]:
                timeless(each)
    return message


def names_a_thing(field: str) -> bool:
    return (field.endswith("_id") and field != "request_id") or field == "member_number"


def _plain(field: Field) -> bool:
    """A message of ours that is no map."""
    return (
        field.type == _MESSAGE
        and not field.message_type.GetOptions().map_entry
        and field.message_type.full_name.startswith("trunkline.")
    )


def _fill(message: Message, ids: Mapping[str, str], depth: int) -> None:
    for field in message.DESCRIPTOR.fields:
        rules = field.GetOptions().Extensions[validate_pb2.field]
        if field.name in ids and field.type == _TEXT:
            _put(message, field, ids[field.name])
        elif field.containing_oneof and _chosen(message, field):
            continue
        elif _plain(field) and depth > 0 and _wanted(field, rules, ids, depth):
            child = getattr(message, field.name)
            child = child.add() if field.is_repeated else child
            child.SetInParent()
            _fill(child, ids, depth - 1)
        else:
            _put_required(message, field, rules)


def _wanted(field: Field, rules: Any, ids: Mapping[str, str], depth: int) -> bool:
    needed = rules.required or rules.repeated.min_items or field.containing_oneof is not None
    return bool(needed) or takes_ids(field.message_type, frozenset(ids), depth - 1)


def _chosen(message: Message, field: Field) -> bool:
    return message.WhichOneof(field.containing_oneof.name) is not None


def _put_required(message: Message, field: Field, rules: Any) -> None:
    element = rules.repeated.items if field.is_repeated else rules
    if field.is_repeated and not rules.repeated.min_items:
        return
    if element.string.uuid and element.ignore != validate_pb2.IGNORE_IF_ZERO_VALUE:
        _put(message, field, str(uuid.uuid4()))
    elif field.type == _TEXT and element.string.min_len:
        _put(message, field, "a" * element.string.min_len)
    elif field.enum_type is not None and (rules.required or 0 in element.enum.not_in):
        _put(message, field, 1)
    elif field.name == "update_mask":
        known = element.field_mask
        getattr(message, field.name).paths.append(getattr(known, "in")[0])


def _put(message: Message, field: Field, value: Any) -> None:
    if field.is_repeated:
        getattr(message, field.name).append(value)
    else:
        setattr(message, field.name, value)
