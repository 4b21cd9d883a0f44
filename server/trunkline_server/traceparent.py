"""The W3C traceparent header: what a caller says of its own trace."""

from __future__ import annotations

import re
from typing import Final

# https://www.w3.org/TR/trace-context/#traceparent-header; a later version may append fields.
_TRACEPARENT = re.compile(
    r"(?!ff)([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?\Z"
)
_NO_TRACE: Final = "0" * 32
_NO_SPAN: Final = "0" * 16
_TRACEPARENT_CHARS_MAX = 256
_SAMPLED = 0x01


class Parent:
    """What a valid traceparent says. The SDK's class costs more; it is built if sampled."""

    __slots__ = ("sampled", "span_id", "trace_id")

    def __init__(self, trace_id: str, span_id: str, sampled: bool) -> None:
        self.trace_id = trace_id
        self.span_id = span_id
        self.sampled = sampled


def parent(traceparent: str | bytes) -> Parent | None:
    """The caller's span; None when the header is broken, which is then as good as absent."""
    if not isinstance(traceparent, str) or len(traceparent) > _TRACEPARENT_CHARS_MAX:
        return None
    match = _TRACEPARENT.match(traceparent)
    if match is None:
        return None
    version, trace_id, span_id, flags, rest = match.groups()
    if rest is not None and version == "00":
        return None
    if trace_id == _NO_TRACE or span_id == _NO_SPAN:
        return None
    return Parent(trace_id, span_id, bool(int(flags, 16) & _SAMPLED))
