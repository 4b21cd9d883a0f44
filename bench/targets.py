"""What the open-loop driver can call: each an async context manager that gives `call(number)`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio

from trunkline.api.identity.v1 import identity_service_pb2

CALL_TIMEOUT_S = 30.0


Call = Callable[[int], Awaitable[str]]


@asynccontextmanager
async def unary(given: Mapping[str, Any]) -> AsyncIterator[Call]:
    """One call over and over: `address`, `path`, `request` (hex), `metadata`, `channels`.

    The outcome is `ok` or the name of the status.
    """
    request = bytes.fromhex(given["request"])
    async with _calls(given, lambda number: request) as call:
        yield call


@asynccontextmanager
async def several(given: Mapping[str, Any]) -> AsyncIterator[Call]:
    """One request after another of `requests` (hex), otherwise as `unary`."""
    requests = [bytes.fromhex(request) for request in given["requests"]]
    async with _calls(given, lambda number: requests[number % len(requests)]) as call:
        yield call


@asynccontextmanager
async def logins(given: Mapping[str, Any]) -> AsyncIterator[Call]:
    """Log-ins of one user after another: as `unary`, with `slug`, `emails` and `password`."""
    requests = [
        identity_service_pb2.LoginRequest(
            org_slug=given["slug"], email=email, password=given["password"]
        ).SerializeToString()
        for email in given["emails"]
    ]
    async with _calls(given, lambda number: requests[number % len(requests)]) as call:
        yield call


@asynccontextmanager
async def _calls(given: Mapping[str, Any], request: Callable[[int], bytes]) -> AsyncIterator[Call]:
    metadata = tuple(given.get("metadata", {}).items())
    timeout_s = given.get("timeout_s", CALL_TIMEOUT_S)
    # A channel shares its connection with every other to the same address unless told otherwise.
    options = (("grpc.use_local_subchannel_pool", 1),)
    channels = [
        grpc.aio.insecure_channel(given["address"], options=options)
        for _ in range(given.get("channels", 1))
    ]
    methods: list[grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]] = [
        channel.unary_unary(given["path"]) for channel in channels
    ]
    for channel in channels:
        await channel.channel_ready()

    async def call(number: int) -> str:
        try:
            method = methods[number % len(methods)]
            await method(request(number), metadata=metadata, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            return error.code().name
        return "ok"

    yield call
    for channel in channels:
        await channel.close()
