"""What a caller streams, read ahead as far as memory allows, and drained to its half-close."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any, Generic, Protocol, TypeVar

import grpc.aio

from trunkline_server.errors import AppError

# Read and not yet committed, at least; half a window where there are few streams. The transport
# holds LOOKAHEAD_BYTES of rpc/options.py beside it.
AHEAD_BYTES_MIN = 512 << 10
# A Python client that is told the status while it sends may lose it, so the server reads on to the
# half-close before it ends the call; but not for ever.
DRAIN_S = 5.0
DRAIN_BYTES_MAX = 1 << 20


class Sized(Protocol):
    def ByteSize(self) -> int: ...  # noqa: N802 - protobuf's


Frame = TypeVar("Frame", bound=Sized)


class Inbox(Generic[Frame]):
    """One reader task; `wake` is set for frames, for the end, and by whoever else has news."""

    def __init__(
        self, frames: AsyncIterator[Frame], context: Any, window_bytes: Callable[[], int]
    ) -> None:
        self._frames = frames
        self._context = context
        self._window_bytes = window_bytes
        self._queue: deque[Frame] = deque()
        self._ahead = 0
        self._drained = 0
        self._draining = False
        self._room = asyncio.Event()
        self._error: AppError | None = None
        self._task: asyncio.Task[None] | None = None
        self.wake = asyncio.Event()
        self.closed = False

    def start(self) -> None:
        self._task = asyncio.create_task(self._read(), name="upload-inbox")

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def wait(self, timeout_s: float) -> None:
        """Until there is news, or the time is over."""
        if not self.wake.is_set():
            try:
                async with asyncio.timeout(max(timeout_s, 0.001)):
                    await self.wake.wait()
            except TimeoutError:
                return
        self.wake.clear()

    def take(self) -> Frame | None:
        """The next frame; a message that could not be read is raised in its place."""
        if self._queue:
            return self._queue.popleft()
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return None

    @property
    def ended(self) -> bool:
        """Half-closed, and everything was taken."""
        return self.closed and not self._queue and self._error is None

    @property
    def is_empty(self) -> bool:
        return not self._queue

    def release(self) -> None:
        """What was taken is committed or dropped: as much may be read again."""
        self._ahead = sum(frame.ByteSize() for frame in self._queue)
        self._room.set()

    async def drain(self) -> int:
        """Reads on to the half-close, within bounds; returns how many bytes were thrown away."""
        self._draining = True
        self._drained = sum(frame.ByteSize() for frame in self._queue)
        self._queue.clear()
        self._room.set()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=DRAIN_S)
        return self._drained

    async def _read(self) -> None:
        try:
            async for frame in self._frames:
                await self._receive(frame)
                if self._drained > DRAIN_BYTES_MAX:
                    return
        except AppError as error:
            self._error = error
            self.wake.set()
            await self._read_raw()
        finally:
            self.closed = True
            self.wake.set()

    async def _receive(self, frame: Frame) -> None:
        size = frame.ByteSize()
        if self._draining:
            self._drained += size
            return
        self._queue.append(frame)
        self._ahead += size
        self.wake.set()
        while self._is_full() and not self._draining:
            self._room.clear()
            await self._room.wait()

    def _is_full(self) -> bool:
        return self._ahead >= max(self._window_bytes() // 2, AHEAD_BYTES_MIN)

    async def _read_raw(self) -> None:
        """After a message that cannot be read the iterator is over, but the stream is not."""
        while self._drained <= DRAIN_BYTES_MAX:
            raw = await self._context.read()
            if raw is grpc.aio.EOF:
                return
            self._drained += len(raw)
