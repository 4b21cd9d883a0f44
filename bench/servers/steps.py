"""One server per step of a wrapper round a handler: `python -m bench.servers.steps STEP TIMES`.

The step is taken TIMES times per call, so that a cost of a microsecond shows. Every step but the
interceptors sits in a coroutine put round the handler once, at registration.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc.aio
import protovalidate

from bench import contract
from bench.servers.bare import Generic
from bench.servers.grpc_server import serve

Handle = Callable[[Any, Any], Awaitable[Any]]
CALL_TIMEOUT_S = 30.0

_caller: contextvars.ContextVar[str] = contextvars.ContextVar("caller")
_validator = protovalidate.Validator()
_parse = contract.EchoRequest.FromString
_serialise = contract.EchoResponse.SerializeToString


async def _echo(request: Any, context: Any) -> Any:
    return contract.reply(request)


def _plain(handle: Handle) -> Handle:
    async def call(request: Any, context: Any) -> Any:
        return await handle(request, context)

    return call


def _parsing(handle: Handle) -> Handle:
    async def call(request: Any, context: Any) -> Any:
        return await handle(_parse(request), context)

    return call


def _parsing_and_serialising(handle: Handle) -> Handle:
    async def call(request: Any, context: Any) -> Any:
        return _serialise(await handle(_parse(request), context))

    return call


# Where messages are parsed; these can be taken only once a call.
PARSERS: dict[str, Callable[[Handle], Handle]] = {
    "parse": _parsing,
    "parse_serialise": _parsing_and_serialising,
}


def _context_variable(handle: Handle) -> Handle:
    async def call(request: Any, context: Any) -> Any:
        _caller.set("someone")
        return await handle(request, context)

    return call


def _timeout(handle: Handle) -> Handle:
    async def call(request: Any, context: Any) -> Any:
        async with asyncio.timeout(CALL_TIMEOUT_S):
            return await handle(request, context)

    return call


def _timer(handle: Handle) -> Handle:
    async def call(request: Any, context: Any) -> Any:
        task = asyncio.current_task()
        assert task is not None
        timer = asyncio.get_running_loop().call_later(CALL_TIMEOUT_S, task.cancel)
        try:
            return await handle(request, context)
        finally:
            timer.cancel()

    return call


def _wait_for(handle: Handle) -> Handle:
    async def call(request: Any, context: Any) -> Any:
        return await asyncio.wait_for(handle(request, context), CALL_TIMEOUT_S)

    return call


def _metadata(handle: Handle) -> Handle:
    async def call(request: Any, context: Any) -> Any:
        authorization = ""
        for key, value in context.invocation_metadata():
            if key == "authorization":
                authorization = value
        return await handle(request, context) if authorization is not None else None

    return call


def _deadline(handle: Handle) -> Handle:
    async def call(request: Any, context: Any) -> Any:
        context.time_remaining()
        return await handle(request, context)

    return call


def _peer(handle: Handle) -> Handle:
    async def call(request: Any, context: Any) -> Any:
        context.peer()
        return await handle(request, context)

    return call


def _validate(handle: Handle) -> Handle:
    async def call(request: Any, context: Any) -> Any:
        _validator.validate(request)
        return await handle(request, context)

    return call


def _clock(handle: Handle) -> Handle:
    buckets = [0] * 64

    async def call(request: Any, context: Any) -> Any:
        start = time.perf_counter()
        try:
            return await handle(request, context)
        finally:
            buckets[int((time.perf_counter() - start) * 1e6).bit_length()] += 1

    return call


def _trailers(handle: Handle) -> Handle:
    async def call(request: Any, context: Any) -> Any:
        context.set_trailing_metadata((("x-request-id", "0198c0de"),))
        return await handle(request, context)

    return call


WRAPPERS: dict[str, Callable[[Handle], Handle]] = {
    "wrapped": _plain,
    "contextvar": _context_variable,
    "asyncio_timeout": _timeout,
    "call_later": _timer,
    "wait_for": _wait_for,
    "metadata": _metadata,
    "time_remaining": _deadline,
    "peer": _peer,
    "protovalidate": _validate,
    "clock": _clock,
    "trailing_metadata": _trailers,
}


class Interceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc, unused-ignore]
    """Wraps the handler: anew on each call, or once per method when `caching`."""

    def __init__(self, *, caching: bool) -> None:
        self._caching = caching
        self._wrapped: dict[str, Any] = {}

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        wrapped = self._wrapped.get(details.method) if self._caching else None
        if wrapped is None:
            handler = await continuation(details)
            wrapped = grpc.unary_unary_rpc_method_handler(
                _plain(handler.unary_unary),
                request_deserializer=handler.request_deserializer,
                response_serializer=handler.response_serializer,
            )
            self._wrapped[details.method] = wrapped
        return wrapped


# Whether it caches the wrapped handler.
INTERCEPTORS: dict[str, bool] = {"interceptor": False, "interceptor_caching": True}


async def _build() -> grpc.aio.Server:
    step, times = sys.argv[1], int(sys.argv[2])
    interceptors = [
        Interceptor(caching=INTERCEPTORS[step]) for _ in range(times) if step in INTERCEPTORS
    ]
    handle: Handle = _echo
    for _ in range(times):
        wrap = WRAPPERS.get(step) or PARSERS.get(step)
        handle = handle if wrap is None else wrap(handle)
    server = grpc.aio.server(interceptors=interceptors)
    handler = grpc.unary_unary_rpc_method_handler(
        handle,
        request_deserializer=None if step in PARSERS else _parse,
        response_serializer=None if step == "parse_serialise" else _serialise,
    )
    server.add_generic_rpc_handlers((Generic({"Echo": handler}),))
    return server


if __name__ == "__main__":
    serve(_build)
