"""Replies put together from prepared bytes, where building messages would be the dearest part.

The field numbers are the contract's; tests/members/test_wire.py parses what is made here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

_RESULT_VALIDATION: Final = b"\x12"  # MemberAnswer.validation
_RESULT_ERROR: Final = b"\x1a"  # MemberAnswer.error
_KEY: Final = b"\x0a"  # MemberAnswer.key
_ANSWER: Final = b"\x0a"  # BatchValidateMembersResponse.answers, StreamValidateMembersResponse
_VALIDATION: Final = b"\x0a"  # ValidateMemberResponse.validation
_GUARD_LEVEL: Final = b"\x10"  # guard_level of both replies


def varint(number: int) -> bytes:
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


# Nearly all lengths of a validation: a look-up instead of a loop.
_SHORT: Final = tuple(varint(number) for number in range(1 << 12))


def length(content: bytes) -> bytes:
    size = len(content)
    return _SHORT[size] if size < len(_SHORT) else varint(size)


class Prepared:
    """A reply that is bytes already; the wrapper asks a reply for nothing else."""

    __slots__ = ("_content",)

    def __init__(self, content: bytes) -> None:
        self._content = content

    def SerializeToString(self) -> bytes:  # noqa: N802 - protobuf's name
        return self._content


def guard_level(level: int) -> bytes:
    return _GUARD_LEVEL + varint(level) if level else b""


def validate_response(validation: bytes) -> bytes:
    return _VALIDATION + length(validation) + validation


def framed_validation(validation: bytes) -> bytes:
    """The validation as the result of a MemberAnswer."""
    return _RESULT_VALIDATION + length(validation) + validation


def framed_error(error: bytes) -> bytes:
    return _RESULT_ERROR + length(error) + error


def member_answer(key: str, result: bytes) -> bytes:
    """A MemberAnswer with its own length, as an element of a batch or an event of a stream."""
    if key:
        encoded = key.encode()
        result = _KEY + length(encoded) + encoded + result
    return _ANSWER + length(result) + result


def batch_response(answers: Sequence[bytes], level: int) -> Prepared:
    return Prepared(b"".join(answers) + guard_level(level))
