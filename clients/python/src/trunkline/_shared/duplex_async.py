"""A stream in both directions, read while it is written."""

import asyncio
from collections import deque
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import grpc
import grpc.aio

from trunkline._shared.credentials import Metadata

Request = TypeVar("Request")
Reply = TypeVar("Reply")


class AsyncDuplex(Generic[Request, Reply]):
    """What arrives is kept until it is asked for; the protocols on top send little that way."""

    def __init__(
        self,
        method: "grpc.aio.StreamStreamMultiCallable[Request, Reply]",
        metadata: Metadata,
        timeout_s: float,
    ) -> None:
        self._call: Any = method(timeout=timeout_s, metadata=metadata)
        self._arrived: deque[Reply] = deque()
        self._news = asyncio.Event()
        self._ended = False
        self._error: grpc.RpcError | None = None
        self._reader = asyncio.get_running_loop().create_task(self._read())

    async def _read(self) -> None:
        try:
            async for reply in self._call:
                self._arrived.append(reply)
                self._news.set()
        except grpc.RpcError as error:
            self._error = error
        finally:
            self._ended = True
            self._news.set()

    @property
    def waiting(self) -> bool:
        """Whether `receive` would return at once."""
        return bool(self._arrived) or self._ended

    async def send(self, request: Request) -> None:
        """Sends as fast as the connection takes it. On a stream that ended it does nothing:
        `receive` tells why it did."""
        if self._ended:
            return
        try:
            await self._call.write(request)
        except (grpc.RpcError, asyncio.InvalidStateError):
            await self._until_ended()

    async def half_close(self) -> None:
        if self._ended:
            return
        try:
            await self._call.done_writing()
        except (grpc.RpcError, asyncio.InvalidStateError):
            await self._until_ended()

    async def receive(self, timeout_s: float) -> Reply | None:
        """The next reply; None at the end. Raises what ended the stream, or TimeoutError."""
        async with asyncio.timeout(timeout_s):
            while not self._arrived and not self._ended:
                self._news.clear()
                await self._news.wait()
        if self._arrived:
            return self._arrived.popleft()
        if self._error is not None:
            raise self._error
        return None

    async def _until_ended(self) -> None:
        await asyncio.gather(self._reader, return_exceptions=True)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._call.cancel()
        self._reader.cancel()
        await self._until_ended()
