# Made from clients/python/src/trunkline/_async/watches.py by tools/unasync.py: change that one.
"""Streams that come back: a watch opens its stream again where it stopped."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from trunkline._shared import tasks_sync as tasks
from trunkline._shared.backoff import Backoff
from trunkline._sync.session import ServerStream
from trunkline.errors import Cancelled, DeadlineExceeded, Unavailable

Request = TypeVar("Request", bound=Message)
Reply = TypeVar("Reply", bound=Message)
Item = TypeVar("Item")


class Watch(Generic[Request, Reply, Item]):
    """Iterate it. It reconnects with back-off when the server restarts, says `go_away` or the
    call reaches its longest duration; any other error ends it."""

    def __init__(
        self,
        stream: ServerStream[Request, Reply],
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

    def __iter__(self) -> Iterator[Item]:
        backoff = Backoff()
        while True:
            stream = self._stream(self._request(self.checkpoint))
            try:
                for reply in stream:
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
                tasks.sleep(backoff.next_s(error.retry_after_s))
            else:
                tasks.sleep(backoff.next_s())
            finally:
                stream.close()

    def _note(self, reply: Any) -> None:
        """The checkpoint moves when the items before it have been read."""
        checkpoint = getattr(reply, "checkpoint", "")
        if checkpoint:
            self.checkpoint = checkpoint
