"""What this process has open, and news of imports between processes. News are hints: whoever gets
none looks by himself, a little later."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Protocol
from uuid import UUID

from trunkline_server.link import Link
from trunkline_server.rpc.drain import Drain

TOPIC_IMPORT = "import"
TOPIC_UPLOAD = "upload"


class OpenStream(Protocol):
    @property
    def import_id(self) -> UUID | None: ...
    def drain(self) -> None: ...
    def take_over(self, epoch: int) -> None: ...


class Live:
    """Streams to be told that a newer one took over, and watches to be told of changes."""

    def __init__(self, link: Link | None, drain: Drain) -> None:
        self._link = link
        self._drain = drain
        self._streams: dict[OpenStream, None] = {}
        self._watches: dict[str, set[asyncio.Event]] = defaultdict(set)
        self._tasks: set[asyncio.Task[bool]] = set()
        self._is_told = False
        if link is not None:
            link.subscribe(TOPIC_UPLOAD, self._heard_upload)
            link.subscribe(TOPIC_IMPORT, self._heard_import)

    @property
    def draining(self) -> bool:
        return self._drain.draining.is_set()

    @property
    def watches(self) -> int:
        return sum(map(len, self._watches.values()))

    # ---- uploads ----

    def enter(self, stream: OpenStream) -> None:
        if not self._is_told:
            self._is_told = True
            self._drain.on_goaway(self._say_goaway)
        self._streams[stream] = None
        if self.draining:
            stream.drain()

    def leave(self, stream: OpenStream) -> None:
        self._streams.pop(stream, None)

    def opened(self, import_id: UUID, epoch: int) -> None:
        self._heard_upload(f"{import_id} {epoch}")
        self._tell(TOPIC_UPLOAD, f"{import_id} {epoch}")

    def changed(self, org_id: UUID, import_id: UUID) -> None:
        self._heard_import(f"{org_id} {import_id}")
        self._tell(TOPIC_IMPORT, f"{org_id} {import_id}")

    def _tell(self, topic: str, payload: str) -> None:
        """Nobody waits for Valkey."""
        if self._link is None:
            return
        task = asyncio.create_task(self._link.publish(topic, payload))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _heard_upload(self, payload: str) -> None:
        import_id, _, epoch = payload.partition(" ")
        for stream in list(self._streams):
            if stream.import_id is not None and str(stream.import_id) == import_id:
                stream.take_over(int(epoch))

    def _say_goaway(self) -> None:
        for stream in list(self._streams):
            stream.drain()
        for events in self._watches.values():
            for event in events:
                event.set()

    # ---- watches ----

    def watch(self, org_id: UUID, import_id: UUID) -> asyncio.Event:
        event = asyncio.Event()
        self._watches[f"{org_id} {import_id}"].add(event)
        return event

    def unwatch(self, org_id: UUID, import_id: UUID, event: asyncio.Event) -> None:
        key = f"{org_id} {import_id}"
        self._watches[key].discard(event)
        if not self._watches[key]:
            del self._watches[key]

    def _heard_import(self, payload: str) -> None:
        for event in self._watches.get(payload, ()):
            event.set()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
