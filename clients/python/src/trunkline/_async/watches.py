"""Streams that come back: a watch opens its stream again where it stopped."""

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from trunkline._async.session import AsyncServerStream
from trunkline._shared import tasks_async as tasks
from trunkline._shared.backoff import Backoff
from trunkline.errors import Cancelled, DeadlineExceeded, Unavailable

Request = TypeVar("Request", bound=Message)
Reply = TypeVar("Reply", bound=Message)
Item = TypeVar("Item")


class AsyncWatch(Generic[Request, Reply, Item]):
    """Iterate it. It reconnects with back-off when the server restarts, says `go_away` or the
    call reaches its longest duration; any other error ends it."""

    def __init__(
        self,
        stream: AsyncServerStream[Request, Reply],
        request: Callable[[str], Request],
        items: Callable[[Reply], Sequence[Item]],
        checkpoint: str = "",
        is_last: Callable[[Item], bool] = lambda item: False,
    ) -> None:
        self._stream = stream
        self._request = request
        self._items = items
        self._is_last = is_last
        self.checkpoint = checkpoint

    async def __aiter__(self) -> AsyncIterator[Item]:
        backoff = Backoff()
        while True:
            stream = self._stream(self._request(self.checkpoint))
            try:
                async for reply in stream:
                    backoff.reset()
                    for item in self._items(reply):
                        yield item
                        if self._is_last(item):
                            return
                    self._note(reply)
                    if getattr(reply, "go_away", False):
                        break
            except (Cancelled, DeadlineExceeded, Unavailable) as error:
                if self._stream.closed:
                    raise
                await tasks.sleep(backoff.next_s(error.retry_after_s))
            else:
                await tasks.sleep(backoff.next_s())
            finally:
                await stream.aclose()

    def _note(self, reply: Any) -> None:
        """The checkpoint moves when the items before it have been read."""
        checkpoint = getattr(reply, "checkpoint", "")
        if checkpoint:
            self.checkpoint = checkpoint
