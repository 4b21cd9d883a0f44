"""The shortcut says yes only where protovalidate has nothing to say."""

from __future__ import annotations

import random
import uuid
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message_factory import GetMessageClass
from protovalidate import Validator

from trunkline_server.app import MEMBERS, SERVICES
from trunkline_server.rpc.shortcut import quick_check

REQUESTS: list[Descriptor] = list(
    {
        method.input_type.full_name: method.input_type
        for service in SERVICES
        for method in service.methods
    }.values()
)
QUICK = [descriptor for descriptor in REQUESTS if quick_check(descriptor) is not None]

TEXTS = (
    "", "a", "A-1", "a" * 64, "a" * 65, "a" * 200, "a" * 201, "ä", "\u0085", "\x7f", "a\nb", "\n",
    "a\n", "2024-02-30", "2024-13-01", "2024-12-31", "2024-12-31\n", " ", "\u00a0", "𝟙" * 64,
    str(uuid.UUID(int=5)), str(uuid.UUID(int=5)).upper(), "x" + str(uuid.UUID(int=5)),
    uuid.UUID(int=5).hex, "de-DE", "DE", "~", "!", "a.b", "a_b", "UTC", "../x",
)  # fmt: skip
NUMBERS = (0, 1, -1, 2, 3, 7, 99, 100, 101, 1000, 1001, 100_000, 2**31 - 1, -(2**31))


def filled(descriptor: Descriptor, dice: random.Random) -> Any:
    message: Any = GetMessageClass(descriptor)()
    for field in descriptor.fields:
        if field.is_repeated or dice.random() < 0.3:
            continue
        if field.type == FieldDescriptor.TYPE_STRING:
            setattr(message, field.name, dice.choice(TEXTS))
        elif field.type == FieldDescriptor.TYPE_ENUM:
            setattr(message, field.name, dice.choice(NUMBERS[:8]))
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            if dice.random() < 0.1:
                getattr(message, field.name).SetInParent()
        elif field.type in (FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_INT64):
            setattr(message, field.name, dice.choice(NUMBERS))
        elif field.type in (FieldDescriptor.TYPE_UINT32, FieldDescriptor.TYPE_UINT64):
            setattr(message, field.name, abs(dice.choice(NUMBERS)))
    return message


@pytest.mark.parametrize("descriptor", QUICK, ids=lambda d: d.name)
def test_a_quick_yes_is_protovalidates_yes(descriptor: Descriptor) -> None:
    check, validator, dice = quick_check(descriptor), Validator(), random.Random(7)
    assert check is not None
    for _ in range(400):
        message = filled(descriptor, dice)
        if check(message):
            assert validator.collect_violations(message) == [], message


def test_the_hot_methods_have_a_shortcut_and_it_says_yes() -> None:
    descriptor = MEMBERS.methods_by_name["ValidateMember"].input_type
    check = quick_check(descriptor)
    assert check is not None
    assert check(GetMessageClass(descriptor)(member_number="A-100", date_of_birth="1980-02-29"))
    assert not check(GetMessageClass(descriptor)(member_number=""))
    assert not check(GetMessageClass(descriptor)(member_number="A\n1"))


def test_the_shortcut_is_not_empty() -> None:
    assert len(QUICK) >= 10
