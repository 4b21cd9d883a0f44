"""A quick yes to the plain messages of hot methods; every doubt goes to protovalidate.

protovalidate costs 5 to 6 us a call in a running server, where its code is never warm. The rules of
a flat message (lengths, patterns, ranges, enums) fit one regular expression over its texts and a
few comparisons of its numbers. The shortcut only ever says "certainly valid": tests compare it
with protovalidate on every message of the contract.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from operator import attrgetter
from typing import Any, Final

from buf.validate import validate_pb2 as rules_pb
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

Quick = Callable[[Message], bool]

FIELDS_MAX = 16
_INT_RULES: Final = {
    FieldDescriptor.TYPE_INT32: "int32",
    FieldDescriptor.TYPE_INT64: "int64",
    FieldDescriptor.TYPE_UINT32: "uint32",
    FieldDescriptor.TYPE_UINT64: "uint64",
}
_UUID = "[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"
# Texts are joined by NUL, so no pattern may match one: no negated class, no dot.
_NOT_CONTROL = ("\\P{Cc}", "[ -~\\u00a0-\\U0010ffff]")
_UNSAFE = re.compile(r"\[\^|(?<!\[)(?<!\\)\.(?!\])|\\[^.\-+*?()\[\]{}|/]|\(\?")
_TEXT = "[\\u0001-\\U0010ffff]"


class _TooComplex(Exception):
    """The message has a rule that is not read here."""


def quick_check(descriptor: Descriptor) -> Quick | None:
    """A function that says whether a message is plainly valid; None where there is none."""
    if len(descriptor.fields) > FIELDS_MAX or _has_message_rules(descriptor):
        return None
    texts: dict[str, str] = {}
    numbers: dict[str, tuple[int, int]] = {}
    nested: list[str] = []
    try:
        for field in descriptor.fields:
            if field.is_repeated or field.containing_oneof is not None:
                nested.append(field.name)
            elif field.type == FieldDescriptor.TYPE_STRING:
                texts[field.name] = _text(_rules(field))
            elif field.type == FieldDescriptor.TYPE_MESSAGE:
                nested.append(field.name)
            elif (bounds := _bounds(field, _rules(field))) is not None:
                numbers[field.name] = bounds
        if not all(_may_be_absent(descriptor.fields_by_name[name]) for name in nested):
            return None
    except _TooComplex:
        return None
    return _compiled(texts, numbers, nested)


def _compiled(
    texts: dict[str, str], numbers: dict[str, tuple[int, int]], nested: list[str]
) -> Quick | None:
    # A nested field is seldom set; one that is set is looked at by protovalidate.
    allowed = frozenset([*texts, *numbers]) if nested else frozenset()
    matches = re.compile("\0".join(f"(?:{source})" for source in texts.values())).fullmatch
    get_texts = attrgetter(*texts) if texts else None
    single = len(texts) == 1
    ranges = [(attrgetter(name), low, high) for name, (low, high) in numbers.items()]

    def check(message: Any) -> bool:
        if nested:
            for field, _ in message.ListFields():
                if field.name not in allowed:
                    return False
        if get_texts is not None:
            found: Any = get_texts(message)
            if matches(found if single else "\0".join(found)) is None:
                return False
        for get, low, high in ranges:  # noqa: SIM110 - a generator costs more than the check
            if not low <= get(message) <= high:
                return False
        return True

    return check


def _rules(field: FieldDescriptor) -> rules_pb.FieldRules:
    options = field.GetOptions()
    if not options.HasExtension(rules_pb.field):
        return rules_pb.FieldRules()
    rules: rules_pb.FieldRules = options.Extensions[rules_pb.field]
    if rules.cel or rules.cel_expression or rules.ignore == rules_pb.IGNORE_ALWAYS:
        raise _TooComplex
    return rules


def _may_be_absent(field: FieldDescriptor) -> bool:
    rules = _rules(field)
    return not (rules.required or rules.repeated.min_items or rules.map.min_pairs)


def _has_message_rules(descriptor: Descriptor) -> bool:
    options = descriptor.GetOptions()
    if options.HasExtension(rules_pb.message):
        return True
    return any(oneof.GetOptions().HasExtension(rules_pb.oneof) for oneof in descriptor.oneofs)


def _text(rules: rules_pb.FieldRules) -> str:
    """The texts that pass, as one pattern without a NUL in any of its classes."""
    string = rules.string
    known = {"min_len", "max_len", "pattern", "uuid"}
    if any(field.name not in known for field, _ in string.ListFields()) or rules.required:
        raise _TooComplex
    if string.uuid:
        source = _UUID
    elif string.pattern:
        source = _pattern(string.pattern)
    else:
        source = f"{_TEXT}*"
    if string.HasField("min_len") or string.HasField("max_len"):
        high = string.max_len if string.HasField("max_len") else ""
        source = f"(?={_TEXT}{{{string.min_len},{high}}}(?:\0|$))(?:{source})"
    if rules.ignore == rules_pb.IGNORE_IF_ZERO_VALUE:
        source = f"(?:{source})?"
    return source


def _pattern(source: str) -> str:
    if not source.startswith("^") or not source.endswith("$"):
        raise _TooComplex
    source = source[1:-1].replace(*_NOT_CONTROL)
    bare = source.replace(_NOT_CONTROL[1], "")
    if _UNSAFE.search(bare):
        raise _TooComplex
    return source


def _bounds(field: FieldDescriptor, rules: rules_pb.FieldRules) -> tuple[int, int] | None:
    """The numbers that pass; None when all do."""
    kind = rules.WhichOneof("type")
    if kind is None and not rules.required:
        return None
    if field.type == FieldDescriptor.TYPE_ENUM:
        return _enum_bounds(field, rules)
    if kind is None or _INT_RULES.get(field.type) != kind:
        raise _TooComplex
    bounds: Any = getattr(rules, kind)
    set_rules = {rule.name for rule, _ in bounds.ListFields()}
    set_rules |= {name for name in ("gte", "lte") if bounds.HasField(name)}
    if not set_rules <= {"gte", "lte"} or rules.required:
        raise _TooComplex
    low = bounds.gte if bounds.HasField("gte") else -(1 << 63)
    high = bounds.lte if bounds.HasField("lte") else (1 << 64) - 1
    if low > high:
        raise _TooComplex
    return low, high


def _enum_bounds(field: FieldDescriptor, rules: rules_pb.FieldRules) -> tuple[int, int]:
    enum = rules.enum
    names = {rule.name for rule, _ in enum.ListFields()}
    if not names <= {"defined_only", "not_in"} or list(enum.not_in) not in ([], [0]):
        raise _TooComplex
    assert field.enum_type is not None
    numbers = sorted(value.number for value in field.enum_type.values)
    if numbers != list(range(len(numbers))):
        raise _TooComplex
    return (1 if enum.not_in or rules.required else 0), numbers[-1]
