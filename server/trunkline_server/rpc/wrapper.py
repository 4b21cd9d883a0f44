"""The one wrapper: deadline, identity, policy, limits, shedding, telemetry, errors.

Each method is wrapped once, when it is registered: a call costs one dictionary look-up and one
coroutine, where an interceptor would run again for every call (docs/adr/0001).
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, cast

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
    Metadata = Sequence[tuple[str, str | bytes]] | None
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


class Reply(Protocol):
    """What a handler answers: a message, or bytes that were prepared as one."""

    def SerializeToString(self) -> bytes: ...  # noqa: N802


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
    call: type["_Call"]


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
        self._methods: dict[str, Method] = {}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler | None:
        """The call as its own handler: grpc has read the metadata, and a second time costs 5 us."""
        method = self._methods.get(handler_call_details.method)
        if method is None:
            return None
        call = method.call(self, method, handler_call_details.invocation_metadata)
        return cast("Handler", call)  # grpc asks for its attributes, not for its class

    @property
    def methods(self) -> frozenset[str]:
        return frozenset(self._methods)

    def bind(self, service: ServiceDescriptor, servicer: object | None) -> None:
        """Registers every method of the service; those the servicer lacks answer UNIMPLEMENTED."""
        for descriptor in service.methods:
            method = self._method(service, descriptor, servicer)
            self._methods[method.path] = method

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
            call=_ManyReplies if descriptor.server_streaming else _OneReply,
        )


class _Call:
    """One call on its way through the steps; to grpc, its handler.

    To grpc every method takes a stream: for one that does not, grpc would wait for its message
    without a time limit, and leave a call that ends without one unanswered.
    """

    __slots__ = (
        "_admitted_at", "_compress", "_context", "_metadata", "_method", "_remaining_s",
        "_request", "_span", "_started", "_timeout_s", "_wrapper", "code",
    )  # fmt: skip

    request_streaming = True
    response_streaming = False
    request_deserializer = None
    response_serializer = None
    unary_unary = None
    unary_stream = None

    def __init__(self, wrapper: Wrapper, method: Method, metadata: "Metadata") -> None:
        self._wrapper = wrapper
        self._method = method
        self._metadata = metadata
        self.code = _OK

    def _begin(self, context: Context) -> None:
        self._wrapper.inflight.enter()
        self._started = time.monotonic()
        self._context = context
        self._admitted_at: float | None = None
        self._span: Span | None = None
        self._request: Request | None = None
        self._compress = False
        self._timeout_s: float | None = None
        self._remaining_s = self._set_deadline(self._method.policy, context.time_remaining())

    async def _enter(self, incoming: Any) -> Any:
        """All steps before the handler; what it is called with."""
        method = self._method
        if method.takes_stream:
            raw = None
        else:
            raw = await self._context.read()
            if raw is grpc.aio.EOF:
                raise MessageMissing
        authorization, request = self._read_metadata()
        wrapper, policy = self._wrapper, method.policy
        if not policy.anonymous:
            caller = None
            if authorization.__class__ is str:
                caller = wrapper._authenticator.cached(authorization)
            if caller is None:
                caller = await self._identify(authorization)
            if not policy.role_mask >> caller.role & 1:
                raise PermissionDenied
            request.caller = caller
            if not policy.exempt:
                wrapper._limits.take(caller, policy.cost)
        if not (policy.exempt or policy.queued):
            wrapper._shedder.admit(policy.priority, self._remaining_s)
            if method.takes_stream or method.gives_stream:
                # A stream is let in or not; open for hours, it must not hold a place.
                wrapper._shedder.release(None, True)
            else:
                self._admitted_at = time.monotonic()
        if raw is None:
            return self._requests(incoming)
        return wrapper._messages.read(method.request_class, raw)

    def _read_metadata(self) -> tuple[str | bytes | None, Request]:
        """The facts of the request, as its metadata and its method tell them."""
        wrapper, method, context = self._wrapper, self._method, self._context
        authorization = traceparent = request_id = None
        read_peer = context.peer
        metadata_bytes = 0
        for key, value in self._metadata or ():
            metadata_bytes += len(key) + len(value)
            if key == "authorization":
                if authorization is not None:
                    raise Unauthenticated("Send one authorization value, not several.")
                authorization = value
                continue  # checked where it is not known yet
            if value.__class__ is str and not (value.isascii() and value.isprintable()):
                raise _not_printable(key)
            if key == "traceparent":
                traceparent = value
            elif key == "x-request-id":
                request_id = value
            elif key == COMPRESS_HEADER:
                self._compress = value == "gzip"
            elif key == "x-forwarded-for" and wrapper._trusted_proxies:
                trusted = wrapper._trusted_proxies
                read_peer = partial(behind_proxies, context.peer, str(value), trusted)
        # grpc keeps the limit only towards clients that acknowledged its settings.
        if metadata_bytes > METADATA_BYTES_MAX:
            raise MetadataTooLarge
        deadline = self._started + self._remaining_s
        span = wrapper._telemetry.start_span(method.path, traceparent)
        self._span = span
        self._request = request = Request(
            method.path, request_id, read_peer, None, deadline, traceparent, span
        )
        CURRENT.set(request)
        if request_id is not None:
            self._echo(request_id)
        return authorization, request

    def _set_deadline(self, policy: MethodPolicy, remaining_s: float | None) -> float:
        """The seconds this call may take. The client's own deadline is kept by grpc itself."""
        if remaining_s is None:
            self._timeout_s = policy.default_deadline_s
        elif remaining_s > policy.max_deadline_s:
            self._timeout_s = policy.max_deadline_s
        else:
            return remaining_s
        return self._timeout_s

    def _echo(self, request_id: str | bytes) -> None:
        if isinstance(request_id, bytes) or len(request_id) > REQUEST_ID_MAX_CHARS:
            raise HeaderInvalid(
                violations=[FieldViolation("metadata.x-request-id", "at most 128 characters")]
            )
        self._context.set_trailing_metadata((("x-request-id", request_id),))

    async def _identify(self, authorization: str | bytes | None) -> Caller:
        if not isinstance(authorization, str):
            raise Unauthenticated
        if not (authorization.isascii() and authorization.isprintable()):
            raise _not_printable("authorization")
        return await self._wrapper._authenticator.authenticate(authorization)

    async def _requests(self, incoming: AsyncIterator[bytes]) -> AsyncIterator[Message]:
        read, request_class = self._wrapper._messages.read, self._method.request_class
        async for raw in incoming:
            yield read(request_class, raw)

    async def _fail(self, error: BaseException) -> NoReturn:
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

    def _leave(self) -> None:
        now = time.monotonic()
        self._method.meter.record(self.code, now - self._started)
        if self._admitted_at is not None:
            # From the admission on: how slowly a client sends says nothing of our load.
            self._wrapper._shedder.release(now - self._admitted_at, self.code == _OK)
        if self._span is not None:
            self._span.end(self.code)
        self._wrapper.inflight.leave()


class _OneReply(_Call):
    """Unary calls and client streams."""

    __slots__ = ()

    stream_stream = None

    async def stream_unary(self, incoming: Any, context: Context) -> bytes:
        self._begin(context)
        behaviour = self._method.behaviour
        try:
            if self._timeout_s is None:
                reply: Reply = await behaviour(await self._enter(incoming), context)
            else:
                async with asyncio.timeout(self._timeout_s):
                    reply = await behaviour(await self._enter(incoming), context)
            payload = reply.SerializeToString()
            if self._compress and len(payload) >= COMPRESS_FROM_BYTES:
                context.set_compression(grpc.Compression.Gzip)
            return payload
        except BaseException as error:
            await self._fail(error)
        finally:
            self._leave()


class _ManyReplies(_Call):
    """Server streams and both-way streams."""

    __slots__ = ()

    response_streaming = True
    stream_unary = None

    async def stream_stream(self, incoming: Any, context: Context) -> AsyncIterator[bytes]:
        self._begin(context)
        try:
            async with asyncio.timeout(self._timeout_s):
                request = await self._enter(incoming)
                if self._compress:
                    context.set_compression(grpc.Compression.Gzip)
                async for reply in self._method.behaviour(request, context):
                    yield reply.SerializeToString()
        except GeneratorExit:
            self.code = _CANCELLED
            raise
        except BaseException as error:
            await self._fail(error)
        finally:
            self._leave()


def _not_printable(key: str) -> HeaderInvalid:
    return HeaderInvalid(
        violations=[FieldViolation(f"metadata.{key[:KEY_CHARS_MAX]}", "printable ASCII only")]
    )


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
