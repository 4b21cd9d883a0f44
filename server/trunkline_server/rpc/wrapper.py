"""The one wrapper: deadline, identity, policy, limits, shedding, telemetry, errors.

Each method is wrapped once, when it is registered: a call costs one dictionary look-up and one
coroutine, where an interceptor would run again for every call (docs/adr/0001).
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import grpc
import grpc.aio
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from trunkline.api.errors.v1 import reason_pb2
from trunkline.api.options.v1.policy_pb2 import Priority
from trunkline_server import db
from trunkline_server.errors import (
    AppError,
    DeadlineExceeded,
    FieldViolation,
    Internal,
    Invalid,
    PermissionDenied,
    TooLarge,
    Unauthenticated,
    Unimplemented,
    to_status,
)
from trunkline_server.ids import uuid7
from trunkline_server.rpc.caller import CURRENT, Caller, Request, TraceIds, behind_proxies
from trunkline_server.rpc.options import METADATA_BYTES_MAX
from trunkline_server.rpc.policy import MethodPolicy, policy_of
from trunkline_server.rpc.validation import MessageClass, Messages

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]
    Handler = grpc.RpcMethodHandler[Any, Any]
else:  # generic for the type checker only
    Context, Handler = grpc.aio.ServicerContext, grpc.RpcMethodHandler

REQUEST_ID_MAX_CHARS = 128
KEY_CHARS_MAX = 64  # of a metadata key in an error
COMPRESS_FROM_BYTES = 1024
COMPRESS_HEADER = "x-trunkline-compress"

_OK = 0
_CANCELLED = grpc.StatusCode.CANCELLED.value[0]


class Authenticator(Protocol):
    """Who is behind an `authorization` value. `cached` must not wait for anything."""

    def cached(self, authorization: str) -> Caller | None: ...
    async def authenticate(self, authorization: str) -> Caller: ...


class Limits(Protocol):
    def take(self, caller: Caller, cost: int) -> None: ...


class Shedder(Protocol):
    def admit(self, priority: Priority.ValueType, remaining_s: float | None) -> None: ...
    def release(self, latency_s: float | None, ok: bool) -> None: ...


class Meter(Protocol):
    def record(self, code: int, seconds: float) -> None: ...


class Span(TraceIds, Protocol):
    def end(self, code: int) -> None: ...


class Telemetry(Protocol):
    def rpc(self, method: str) -> Meter: ...
    def start_span(self, method: str, traceparent: str | bytes | None, /) -> Span | None: ...


class Journal(Protocol):
    """Where an unknown exception is written down, without its text."""

    def failure(self, method: str, incident: str, error: BaseException) -> None: ...


class HeaderInvalid(Invalid):
    reason = reason_pb2.REASON_MALFORMED_METADATA
    text = "A metadata value holds characters that are not printable ASCII, or is too long."


class MetadataTooLarge(TooLarge):
    reason = reason_pb2.REASON_METADATA_TOO_LARGE
    text = "The call's metadata is larger than 8 KiB."


class MessageMissing(Invalid):
    reason = reason_pb2.REASON_MALFORMED_MESSAGE
    text = "The call ended before its message was complete."


@dataclass(frozen=True, slots=True)
class Method:
    """All that a call needs to know of its method, looked up once."""

    path: str
    policy: MethodPolicy
    request_class: MessageClass
    behaviour: Callable[..., Any]
    meter: Meter
    takes_stream: bool
    gives_stream: bool


class Inflight:
    """Calls that were accepted and are not answered yet; a drain waits for them."""

    def __init__(self) -> None:
        self.count = 0
        self._idle: asyncio.Event | None = None

    def enter(self) -> None:
        self.count += 1

    def leave(self) -> None:
        self.count -= 1
        if self._idle is not None and not self.count:
            self._idle.set()

    async def wait_idle(self) -> None:
        if self.count:
            # Made only now: a drain comes once, calls come always.
            self._idle = self._idle or asyncio.Event()
            self._idle.clear()
            await self._idle.wait()


class Wrapper(grpc.GenericRpcHandler):
    """Binds services to wrapped handlers and finds them for grpc."""

    def __init__(
        self,
        *,
        authenticator: Authenticator,
        limits: Limits,
        shedder: Shedder,
        telemetry: Telemetry,
        journal: Journal,
        trusted_proxies: Collection[str] = (),
    ) -> None:
        self._trusted_proxies = frozenset(trusted_proxies)
        self.inflight = Inflight()
        self._authenticator = authenticator
        self._limits = limits
        self._shedder = shedder
        self._telemetry = telemetry
        self._journal = journal
        self._messages = Messages()
        self._handlers: dict[str, Handler] = {}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler | None:
        return self._handlers.get(handler_call_details.method)

    @property
    def methods(self) -> frozenset[str]:
        return frozenset(self._handlers)

    def bind(self, service: ServiceDescriptor, servicer: object | None) -> None:
        """Registers every method of the service; those the servicer lacks answer UNIMPLEMENTED."""
        for descriptor in service.methods:
            method = self._method(service, descriptor, servicer)
            self._handlers[method.path] = self._wrapped(method)

    def _method(
        self, service: ServiceDescriptor, descriptor: MethodDescriptor, servicer: object | None
    ) -> Method:
        path = f"/{service.full_name}/{descriptor.name}"
        return Method(
            path=path,
            policy=policy_of(descriptor),
            request_class=GetMessageClass(descriptor.input_type),
            behaviour=_behaviour(servicer, descriptor),
            meter=self._telemetry.rpc(path),
            takes_stream=descriptor.client_streaming,
            gives_stream=descriptor.server_streaming,
        )

    def _wrapped(self, method: Method) -> Handler:
        # To grpc every method takes a stream: for one that does not, grpc would wait for its
        # message without a time limit, and leave a call that ends without one unanswered.
        if method.gives_stream:
            return grpc.stream_stream_rpc_method_handler(self._streaming(method))
        return grpc.stream_unary_rpc_method_handler(self._unary(method))

    def _unary(self, method: Method) -> Callable[[Any, Context], Awaitable[bytes]]:
        """One reply: unary calls and client streams."""

        async def handle(incoming: Any, context: Context) -> bytes:
            call = _Call(self, method, context)
            try:
                if call.timeout_s is None:
                    reply: Message = await method.behaviour(await call.enter(incoming), context)
                else:
                    async with asyncio.timeout(call.timeout_s):
                        reply = await method.behaviour(await call.enter(incoming), context)
                payload = reply.SerializeToString()
                if call.compress and len(payload) >= COMPRESS_FROM_BYTES:
                    context.set_compression(grpc.Compression.Gzip)
                return payload
            except BaseException as error:
                await call.fail(error)
            finally:
                call.leave()

        return handle

    def _streaming(self, method: Method) -> Callable[[Any, Context], AsyncIterator[bytes]]:
        """Many replies: server streams and both-way streams."""

        async def handle(incoming: Any, context: Context) -> AsyncIterator[bytes]:
            call = _Call(self, method, context)
            try:
                async with asyncio.timeout(call.timeout_s):
                    request = await call.enter(incoming)
                    if call.compress:
                        context.set_compression(grpc.Compression.Gzip)
                    async for reply in method.behaviour(request, context):
                        yield reply.SerializeToString()
            except GeneratorExit:
                call.code = _CANCELLED
                raise
            except BaseException as error:
                await call.fail(error)
            finally:
                call.leave()

        return handle


class _Call:
    """One call on its way through the steps."""

    __slots__ = (
        "_admitted_at", "_context", "_method", "_remaining_s", "_request", "_span", "_started",
        "_wrapper",
        "code", "compress", "timeout_s",
    )  # fmt: skip

    def __init__(self, wrapper: Wrapper, method: Method, context: Context) -> None:
        wrapper.inflight.enter()
        self._started = time.monotonic()
        self._wrapper = wrapper
        self._method = method
        self._context = context
        self._admitted_at: float | None = None
        self._span: Span | None = None
        self._request: Request | None = None
        self.code = _OK
        self.compress = False
        self.timeout_s: float | None = None
        self._remaining_s = self._set_deadline(method.policy, context.time_remaining())

    async def enter(self, incoming: Any) -> Any:
        """All steps before the handler; what it is called with."""
        if self._method.takes_stream:
            await self._pass()
            return self._requests(incoming)
        raw = await self._context.read()
        if raw is grpc.aio.EOF:
            raise MessageMissing
        await self._pass()
        return self._wrapper._messages.read(self._method.request_class, raw)

    async def _pass(self) -> None:
        wrapper, method, context = self._wrapper, self._method, self._context
        policy = method.policy
        authorization = traceparent = request_id = None
        read_peer = context.peer
        metadata_bytes = 0
        for key, value in context.invocation_metadata() or ():
            metadata_bytes += len(key) + len(value)
            if value.__class__ is str and not (value.isascii() and value.isprintable()):
                raise HeaderInvalid(
                    violations=[
                        FieldViolation(f"metadata.{key[:KEY_CHARS_MAX]}", "printable ASCII only")
                    ]
                )
            if key == "authorization":
                if authorization is not None:
                    raise Unauthenticated("Send one authorization value, not several.")
                authorization = value
            elif key == "traceparent":
                traceparent = value
            elif key == "x-request-id":
                request_id = value
            elif key == COMPRESS_HEADER:
                self.compress = value == "gzip"
            elif key == "x-forwarded-for" and wrapper._trusted_proxies:
                trusted = wrapper._trusted_proxies
                read_peer = partial(behind_proxies, context.peer, str(value), trusted)
        # grpc keeps the limit only towards clients that acknowledged its settings.
        if metadata_bytes > METADATA_BYTES_MAX:
            raise MetadataTooLarge
        deadline = self._started + self._remaining_s
        self._request = request = Request(method.path, request_id, read_peer, None, deadline)
        CURRENT.set(request)
        if request_id is not None:
            self._echo(request_id)
        request.traceparent = traceparent
        self._span = request.span = wrapper._telemetry.start_span(method.path, traceparent)
        if not policy.anonymous:
            caller = None
            if isinstance(authorization, str):
                caller = wrapper._authenticator.cached(authorization)
            if caller is None:
                caller = await self._identify(authorization)
            if not policy.role_mask >> caller.role & 1:
                raise PermissionDenied
            request.caller = caller
            if not policy.exempt:
                wrapper._limits.take(caller, policy.cost)
        if not policy.exempt:
            wrapper._shedder.admit(policy.priority, self._remaining_s)
            if method.takes_stream or method.gives_stream:
                # A stream is let in or not; open for hours, it must not hold a place.
                wrapper._shedder.release(None, True)
            else:
                self._admitted_at = time.monotonic()

    def _set_deadline(self, policy: MethodPolicy, remaining_s: float | None) -> float:
        """The seconds this call may take. The client's own deadline is kept by grpc itself."""
        if remaining_s is None:
            self.timeout_s = policy.default_deadline_s
        elif remaining_s > policy.max_deadline_s:
            self.timeout_s = policy.max_deadline_s
        else:
            return remaining_s
        return self.timeout_s

    def _echo(self, request_id: str | bytes) -> None:
        if isinstance(request_id, bytes) or len(request_id) > REQUEST_ID_MAX_CHARS:
            raise HeaderInvalid(
                violations=[FieldViolation("metadata.x-request-id", "at most 128 characters")]
            )
        self._context.set_trailing_metadata((("x-request-id", request_id),))

    async def _identify(self, authorization: str | bytes | None) -> Caller:
        if not isinstance(authorization, str):
            raise Unauthenticated
        return await self._wrapper._authenticator.authenticate(authorization)

    async def _requests(self, incoming: AsyncIterator[bytes]) -> AsyncIterator[Message]:
        read, request_class = self._wrapper._messages.read, self._method.request_class
        async for raw in incoming:
            yield read(request_class, raw)

    async def fail(self, error: BaseException) -> NoReturn:
        """The only place where an exception becomes a status."""
        if isinstance(error, asyncio.CancelledError | KeyboardInterrupt | SystemExit):
            self.code = _CANCELLED
            raise error
        known = self._known(error)
        self.code = known.code.value[0]
        status = to_status(known)
        trailers: list[tuple[str, str | bytes]] = [
            ("grpc-status-details-bin", status.SerializeToString())
        ]
        if self._request is not None and not isinstance(known, HeaderInvalid):
            trailers.append(("x-request-id", self._request.request_id))
        if known.retry_after_s is not None and known.code is grpc.StatusCode.UNAVAILABLE:
            trailers.append(("grpc-retry-pushback-ms", str(int(known.retry_after_s * 1000))))
        await self._context.abort(known.code, known.message, tuple(trailers))

    def _known(self, error: BaseException) -> AppError:
        if isinstance(error, AppError):
            return error
        translated = db.translated(error)
        if isinstance(translated, AppError):
            return translated
        if isinstance(error, TimeoutError):
            return DeadlineExceeded()
        incident = str(uuid7())
        self._wrapper._journal.failure(self._method.path, incident, error)
        return Internal(metadata={"incident": incident})

    def leave(self) -> None:
        now = time.monotonic()
        self._method.meter.record(self.code, now - self._started)
        if self._admitted_at is not None:
            # From the admission on: how slowly a client sends says nothing of our load.
            self._wrapper._shedder.release(now - self._admitted_at, self.code == _OK)
        if self._span is not None:
            self._span.end(self.code)
        self._wrapper.inflight.leave()


def _behaviour(servicer: object | None, descriptor: MethodDescriptor) -> Callable[..., Any]:
    """The servicer's own method; what generated base classes offer instead does not count."""
    found = getattr(servicer, descriptor.name, None)
    if found is not None and not _is_generated(found):
        return found  # type: ignore[no-any-return]
    if descriptor.server_streaming:
        return _unimplemented_stream
    return _unimplemented


def _is_generated(found: Callable[..., Any]) -> bool:
    return getattr(found, "__module__", "").endswith("_pb2_grpc")


async def _unimplemented(request: object, context: object) -> Message:
    raise Unimplemented


class _unimplemented_stream:  # noqa: N801 - stands in for a method
    """An asynchronous iterator that fails at its first step."""

    def __init__(self, request: object, context: object) -> None:
        pass

    def __aiter__(self) -> AsyncIterator[Message]:
        return self

    async def __anext__(self) -> Message:
        raise Unimplemented
