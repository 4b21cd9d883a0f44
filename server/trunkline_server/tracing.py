"""Spans for the few calls that are sampled. The decision is made before anything is built."""

from __future__ import annotations

import random
import time
from typing import Final

import grpc
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, TraceFlags
from opentelemetry.trace.status import Status, StatusCode

from trunkline_server.traceparent import Parent

# A caller that marks every call as sampled must not make the server build a span for each.
FORCED_SPANS_PER_S_MAX = 100
ATTRIBUTE_CHARS_MAX = 128

_CODE_NAMES: Final = {code.value[0]: code.name for code in grpc.StatusCode}
_SERVER_FAULTS: Final = frozenset(
    code.value[0]
    for code in (
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    )
)

# The only span attributes there are: ids, names of code, counts. No text a person could have typed.
ATTRIBUTES: Final = frozenset(
    {
        "db.operation.name",
        "db.system.name",
        "error.type",
        "rpc.method",
        "rpc.response.status_code",
        "rpc.system.name",
        "trunkline.attempt",
        "trunkline.bytes",
        "trunkline.cache",
        "trunkline.import_id",
        "trunkline.job_id",
        "trunkline.kind",
        "trunkline.org_id",
        "trunkline.reason",
        "trunkline.request_id",
        "trunkline.rows",
    }
)


class Span:
    """A recording span. Unknown attributes are a programming error and are refused."""

    __slots__ = ("_span", "_tracer", "span_id", "trace_id")

    def __init__(self, tracer: trace.Tracer, span: trace.Span) -> None:
        context = span.get_span_context()
        self._tracer = tracer
        self._span = span
        self.trace_id = trace.format_trace_id(context.trace_id)
        self.span_id = trace.format_span_id(context.span_id)

    @property
    def traceparent(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-01"

    def set(self, key: str, value: str | int | float | bool) -> None:
        if key not in ATTRIBUTES:
            raise ValueError(f"span attribute {key} is not on the allow-list")
        self._span.set_attribute(key, value)

    def child(self, name: str) -> Span:
        context = trace.set_span_in_context(self._span)
        return Span(self._tracer, self._tracer.start_span(name, context, SpanKind.INTERNAL))

    def fail(self, error_type: str) -> None:
        """Name the kind of failure. Its text stays out: a driver's text holds row values."""
        self._span.set_attribute("error.type", error_type)
        self._span.set_status(Status(StatusCode.ERROR))

    def end(self, code: int = 0) -> None:
        """`code` is the gRPC status; only the server's own failures mark a span as failed."""
        name = _CODE_NAMES.get(code, str(code))
        self._span.set_attribute("rpc.response.status_code", name)
        if code in _SERVER_FAULTS:
            self.fail(name)
        self._span.end()


class Sampler:
    """Ratio for calls without a parent; a parent's decision holds, within a rate."""

    __slots__ = ("_forced", "_ratio", "_second", "forced_refused")

    def __init__(self, ratio: float) -> None:
        if not 0.0 <= ratio <= 1.0:
            raise ValueError("the trace ratio is a share between 0 and 1")
        self._ratio = ratio
        self._second = 0
        self._forced = 0
        self.forced_refused = 0

    def root(self) -> bool:
        return random.random() < self._ratio

    def follow(self, remote: Parent) -> bool:
        if not remote.sampled:
            return False
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._forced = second, 0
        if self._forced >= FORCED_SPANS_PER_S_MAX:
            self.forced_refused += 1
            return False
        self._forced += 1
        return True


def start(
    tracer: trace.Tracer, name: str, remote: Parent | None, kind: SpanKind = SpanKind.SERVER
) -> Span:
    context = trace.set_span_in_context(NonRecordingSpan(_remote(remote))) if remote else None
    return Span(tracer, tracer.start_span(name, context, kind))


def _remote(parent: Parent) -> SpanContext:
    return SpanContext(
        trace_id=int(parent.trace_id, 16),
        span_id=int(parent.span_id, 16),
        is_remote=True,
        trace_flags=TraceFlags(TraceFlags.SAMPLED),
    )
