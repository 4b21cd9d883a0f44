"""A stream in both directions, read while it is written; the blocking one."""

import queue
import threading
from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import grpc

from trunkline._shared.credentials import Metadata

Request = TypeVar("Request")
Reply = TypeVar("Reply")

# One request on its way and one ready: grpc takes the next when the connection has room.
UNSENT_MAX = 1
LOOK_AGAIN_S = 0.2
READER_END_TIMEOUT_S = 5.0


class Duplex(Generic[Request, Reply]):
    """What arrives is kept until it is asked for; the protocols on top send little that way."""

    def __init__(
        self,
        method: "grpc.StreamStreamMultiCallable[Request, Reply]",
        metadata: Metadata,
        timeout_s: float,
    ) -> None:
        self._unsent: queue.Queue[Request | None] = queue.Queue(UNSENT_MAX)
        self._arrived: deque[Reply] = deque()
        self._news = threading.Condition()
        self._ended = False
        self._error: grpc.RpcError | None = None
        self._call: Any = method(self._requests(), timeout=timeout_s, metadata=metadata)
        self._reader = threading.Thread(target=self._read, daemon=True, name="trunkline-reader")
        self._reader.start()

    def _requests(self) -> Iterator[Request]:
        while (request := self._unsent.get()) is not None:
            yield request

    def _read(self) -> None:
        try:
            for reply in self._call:
                with self._news:
                    self._arrived.append(reply)
                    self._news.notify()
        except grpc.RpcError as error:
            self._error = error
        finally:
            with self._news:
                self._ended = True
                self._news.notify()

    @property
    def waiting(self) -> bool:
        """Whether `receive` would return at once."""
        return bool(self._arrived) or self._ended

    def send(self, request: Request) -> None:
        """Sends as fast as the connection takes it. On a stream that ended it does nothing:
        `receive` tells why it did."""
        self._put(request)

    def half_close(self) -> None:
        self._put(None)

    def _put(self, request: Request | None) -> None:
        while not self._ended:
            try:
                self._unsent.put(request, timeout=LOOK_AGAIN_S)
                return
            except queue.Full:
                continue

    def receive(self, timeout_s: float) -> Reply | None:
        """The next reply; None at the end. Raises what ended the stream, or TimeoutError."""
        with self._news:
            if not self._news.wait_for(lambda: self.waiting, timeout_s):
                raise TimeoutError
        if self._arrived:
            return self._arrived.popleft()
        if self._error is not None:
            raise self._error
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._call.cancel()
        self._reader.join(READER_END_TIMEOUT_S)
        # grpc's own thread may wait for another request: room, and the sign that there is none.
        while True:
            try:
                self._unsent.put_nowait(None)
                return
            except queue.Full:
                try:
                    self._unsent.get_nowait()
                except queue.Empty:
                    continue
