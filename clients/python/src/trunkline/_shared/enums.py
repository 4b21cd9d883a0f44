"""Enum values by the names people use: `"ACTIVE"` for `MEMBER_STATUS_ACTIVE`."""

from typing import TYPE_CHECKING, TypeAlias, TypeVar

from google.protobuf.descriptor import EnumDescriptor

from trunkline.errors import Invalid

Value = TypeVar("Value", bound=int)

if TYPE_CHECKING:  # a name of the type stubs only
    from google.protobuf.internal.enum_type_wrapper import _EnumTypeWrapper

    Enum: TypeAlias = _EnumTypeWrapper[Value]


def prefix(descriptor: EnumDescriptor) -> str:
    """`MEMBER_STATUS_`, from the first value, which is always `.._UNSPECIFIED`."""
    return descriptor.values[0].name.removesuffix("UNSPECIFIED")


def value_of(enum: "Enum[Value]", choice: Value | str) -> Value:
    """The value itself, or the one of this name, in any case and with or without its prefix."""
    if not isinstance(choice, str):
        return choice
    start = prefix(enum.DESCRIPTOR)
    name = choice.upper().replace("-", "_")
    for candidate in (name, start + name):
        if candidate in enum.DESCRIPTOR.values_by_name:
            return enum.Value(candidate)
    names = ", ".join(names_of(enum))
    raise Invalid(
        f"{choice!r} is not one of {names}.", remedy=f"Use one of {names}.", reason="INVALID_FIELD"
    )


def name_of(enum: "Enum[Value]", value: int) -> str:
    """The short name: `ACTIVE`; a number this version does not know stays a number."""
    found = enum.DESCRIPTOR.values_by_number.get(value)
    return found.name.removeprefix(prefix(enum.DESCRIPTOR)) if found else str(value)


def names_of(enum: "Enum[Value]") -> list[str]:
    """All short names, the unspecified one left out."""
    start = prefix(enum.DESCRIPTOR)
    return [value.name.removeprefix(start) for value in enum.DESCRIPTOR.values[1:]]
