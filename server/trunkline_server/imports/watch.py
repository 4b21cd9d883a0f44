"""WatchImport: an import each time it changes, until it ends. News are only hints."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from uuid import UUID

from trunkline.api.imports.v1 import imports_service_pb2 as pb
from trunkline_server.imports.live import Live

# Small imports end soon: quick looks first, then patient ones.
LOOK_S_MIN = 0.05
LOOK_S_MAX = 1.0
# A worker may commit many batches a second; nobody reads as many messages.
TELL_S = 0.02
WATCH_AGE_S = 1_500.0

_FINAL = frozenset({
    pb.IMPORT_STATE_SUCCEEDED, pb.IMPORT_STATE_FAILED, pb.IMPORT_STATE_CANCELLED,
    pb.IMPORT_STATE_DEAD, pb.IMPORT_STATE_UNDONE,
})  # fmt: skip


class Watch:
    """Resumable by itself: every message is the whole import, and a new watch starts with it."""

    def __init__(
        self,
        live: Live,
        org_id: UUID,
        import_id: UUID,
        version: Callable[[], Awaitable[int | None]],
        look: Callable[[], Awaitable[pb.Import]],
    ) -> None:
        self._live = live
        self._org_id = org_id
        self._import_id = import_id
        self._version = version
        self._look = look

    async def run(self) -> AsyncGenerator[pb.WatchImportResponse, None]:
        ends_at = time.monotonic() + WATCH_AGE_S
        news = self._live.watch(self._org_id, self._import_id)
        try:
            while True:
                found = await self._look()
                is_final = found.state in _FINAL
                go_away = not is_final and (self._live.draining or time.monotonic() > ends_at)
                yield pb.WatchImportResponse(go_away=go_away, **{"import": found})
                if is_final or go_away:
                    return
                await self._changed(news, found.etag, ends_at)
        finally:
            self._live.unwatch(self._org_id, self._import_id, news)

    async def _changed(self, news: asyncio.Event, etag: str, ends_at: float) -> None:
        await asyncio.sleep(TELL_S)
        pause_s = LOOK_S_MIN
        while time.monotonic() <= ends_at and not self._live.draining:
            try:
                async with asyncio.timeout(pause_s):
                    await news.wait()
            except TimeoutError:
                pause_s = min(pause_s * 2, LOOK_S_MAX)
            news.clear()
            if str(await self._version()) != etag:
                return
