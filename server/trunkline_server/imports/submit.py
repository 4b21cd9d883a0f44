"""SubmitCsv: a file in one call, for callers that resume nothing. HTTP/2 slows the caller down."""

from __future__ import annotations

import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import UUID

from trunkline.api.imports.v1 import imports_service_pb2 as pb
from trunkline_server import db
from trunkline_server.errors import AppError, Unavailable
from trunkline_server.imports.errors import FILE_FAULTS, OpenMissing, Stalled, TakenOver
from trunkline_server.imports.flow import Stream
from trunkline_server.imports.inbox import Inbox
from trunkline_server.imports.protocol import Phase
from trunkline_server.imports.storage import Place, Storage
from trunkline_server.imports.upload import GRANT_POLL_S

Create = Callable[[pb.SubmitCsvOpen], Awaitable[UUID]]


class SubmitStream:
    """The same storage as UploadImport; the server decides when to read on."""

    def __init__(
        self,
        place: Place,
        stream: Stream,
        frames: AsyncIterator[pb.SubmitCsvRequest],
        context: Any,
        *,
        stall_s: float,
        create: Create,
    ) -> None:
        self._place = place
        self._stream = stream
        self._inbox: Inbox[pb.SubmitCsvRequest] = Inbox(frames, context, place.flow.window_bytes)
        self._stall_s = stall_s
        self._create = create
        self._heard_at = time.monotonic()
        self._storage: Storage | None = None
        self._position = 0
        self._interrupted = False
        self._taken_over = False

    @property
    def import_id(self) -> UUID | None:
        return None if self._storage is None else self._storage.import_id

    def drain(self) -> None:
        self._interrupted = True
        self._inbox.wake.set()

    def take_over(self, epoch: int) -> None:
        if self._storage is not None and self._storage.epoch < epoch:
            self._taken_over = True
            self._inbox.wake.set()

    async def run(self) -> pb.SubmitCsvResponse:
        self._inbox.start()
        try:
            try:
                storage = await self._open()
                await self._take(storage)
            except Exception as error:
                self._place.flow.refused(await self._inbox.drain())
                if self._storage is None or not _leaves_a_part(error, self._storage):
                    raise
            await self._inbox.drain()
            assert self._storage is not None
            return pb.SubmitCsvResponse(
                persisted_bytes=self._storage.machine.persisted,
                **{"import": await self._storage.present()},
            )
        finally:
            self._inbox.stop()
            if self._storage is not None:
                self._storage.close()

    async def _open(self) -> Storage:
        frame = await self._next()
        if frame is None or frame.WhichOneof("frame") != "open":
            raise OpenMissing.here()
        import_id = await self._create(frame.open)
        # A repeat of the same request begins at the first byte: what is stored is compared.
        self._storage = await Storage.open(self._place, self._stream, import_id, 0, 0)
        self._storage.machine.grant(self._storage.size_max)
        return self._storage

    async def _take(self, storage: Storage) -> None:
        try:
            while storage.machine.phase is Phase.OPEN and not self._interrupted:
                frame = await self._next()
                if frame is None:
                    break
                await self._add(storage, frame)
                if self._inbox.is_empty:
                    await storage.flush()
                    self._inbox.release()
                    await self._room(storage)
            await self._end(storage)
        except AppError as error:
            if isinstance(error, FILE_FAULTS) and storage.machine.phase is not Phase.FINISHED:
                await storage.fail(error)
            raise

    async def _end(self, storage: Storage) -> None:
        if storage.machine.phase is not Phase.OPEN:
            return
        if self._interrupted:
            await storage.flush()
            return
        storage.machine.finish(self._position, storage.machine.crc32)
        await storage.complete()

    async def _add(self, storage: Storage, frame: pb.SubmitCsvRequest) -> None:
        if frame.WhichOneof("frame") != "data":
            raise OpenMissing.here()
        data = frame.data
        overlap, fresh = storage.machine.chunk(self._position, data, zlib.crc32(data))
        if overlap is not None:
            await storage.compare(overlap)
        storage.append(fresh)
        self._position += len(data)

    async def _room(self, storage: Storage) -> None:
        """Not reading is how the caller is told to wait."""
        machine = storage.machine
        while not self._interrupted and not self._taken_over:
            given = await self._place.flow.grant(self._stream, machine.persisted, storage.size_max)
            if given.send_limit > machine.persisted or self._inbox.ended:
                return
            self._place.flow.pauses += 1
            await self._inbox.wait(GRANT_POLL_S)
            self._heard_at = time.monotonic()

    async def _next(self) -> pb.SubmitCsvRequest | None:
        """The next frame; None at the half-close, or when the server goes away."""
        while True:
            frame = self._inbox.take()
            if self._taken_over:
                raise TakenOver
            if frame is not None:
                self._heard_at = time.monotonic()
                return frame
            if self._inbox.ended or self._interrupted:
                return None
            left_s = self._heard_at + self._stall_s - time.monotonic()
            if left_s <= 0:
                raise Stalled
            await self._inbox.wait(left_s)


def _leaves_a_part(error: Exception, storage: Storage) -> bool:
    """What is stored can be continued with UploadImport, so the caller is told of it instead."""
    known = error if isinstance(error, AppError) else db.translated(error)
    return isinstance(known, Stalled | Unavailable) and storage.machine.persisted > 0
