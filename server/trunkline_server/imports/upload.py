"""UploadImport: one stream from Open to its end. What frames mean is the protocol's business."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, assert_never
from uuid import UUID

from google.protobuf.duration_pb2 import Duration

from trunkline.api.imports.v1 import imports_service_pb2 as pb
from trunkline_server import db
from trunkline_server.errors import AppError
from trunkline_server.imports.errors import (
    FILE_FAULTS,
    OpenMissing,
    Stalled,
    TakenOver,
    UploadFinished,
    item,
)
from trunkline_server.imports.flow import PAUSE_S, Stream
from trunkline_server.imports.inbox import DRAIN_S, Inbox
from trunkline_server.imports.protocol import CHUNK_BYTES_MAX, Phase
from trunkline_server.imports.storage import Place, Storage

# Shorter than the grace that a connection past its age gives its streams (rpc/options.py): a
# stream that began before the connection's end has said GoAway before the grace is over.
STREAM_AGE_S = 45.0
STREAM_AGE_SPREAD = 0.1
GRANT_POLL_S = 0.25
RECONNECT_AFTER_S = 0.05

# Opening again would not help.
_FINAL = (*FILE_FAULTS, UploadFinished)

Response = pb.UploadImportResponse


class UploadStream:
    """Turn by turn: read what has come, store it, tell what is stored and how far to send."""

    def __init__(
        self,
        place: Place,
        stream: Stream,
        frames: AsyncIterator[pb.UploadImportRequest],
        context: Any,
        *,
        stall_s: float,
        age_s: float = STREAM_AGE_S,
    ) -> None:
        self._place = place
        self._stream = stream
        self._inbox: Inbox[pb.UploadImportRequest] = Inbox(frames, context, place.flow.window_bytes)
        self._stall_s = stall_s
        now = time.monotonic()
        self._heard_at = now
        self._ends_at = now + age_s + random.uniform(0, age_s * STREAM_AGE_SPREAD)
        self._storage: Storage | None = None
        self._goaway: pb.GoAwayReason.ValueType | None = None
        self._taken_over = False
        self._paused: pb.PauseReason.ValueType = pb.PAUSE_REASON_UNSPECIFIED
        self._paused_by: pb.PauseReason.ValueType = pb.PAUSE_REASON_UNSPECIFIED

    # ---- what others tell the stream ----

    @property
    def import_id(self) -> UUID | None:
        return None if self._storage is None else self._storage.import_id

    def drain(self) -> None:
        self._goaway = pb.GO_AWAY_REASON_DRAIN
        self._inbox.wake.set()

    def take_over(self, epoch: int) -> None:
        if self._storage is not None and self._storage.epoch < epoch:
            self._taken_over = True
            self._inbox.wake.set()

    # ---- the stream ----

    async def run(self) -> AsyncGenerator[Response, None]:
        self._inbox.start()
        try:
            try:
                async for response in self._converse():
                    yield response
            except Exception as error:
                known = error if isinstance(error, AppError) else db.translated(error)
                if isinstance(known, AppError):
                    yield await self._refused(known)
                self._place.flow.refused(await self._inbox.drain())
                raise
            await self._inbox.drain()
        finally:
            self._inbox.stop()
            if self._storage is not None:
                self._storage.close()

    async def _converse(self) -> AsyncIterator[Response]:
        storage = await self._open()
        for response in await self._opened(storage):
            yield response
        while True:
            responses = await self._turn(storage)
            for response in responses:
                yield response
            if self._inbox.ended or (responses and responses[-1].HasField("go_away")):
                return
            if storage.machine.phase is Phase.FINISHED and self._silent_s() > DRAIN_S:
                return

    def _silent_s(self) -> float:
        return time.monotonic() - self._heard_at

    async def _open(self) -> Storage:
        frame = None
        while frame is None:
            await self._inbox.wait(self._stall_s - self._silent_s())
            frame = self._inbox.take()
            if frame is None and self._inbox.ended:
                raise OpenMissing.here()
            if frame is None and self._silent_s() > self._stall_s:
                raise Stalled
        if frame.WhichOneof("frame") != "open":
            raise OpenMissing.here()
        self._inbox.release()
        self._inbox.wake.set()  # more may have come with it
        self._heard_at = time.monotonic()
        asked = frame.open
        self._storage = await Storage.open(
            self._place, self._stream, UUID(asked.import_id), asked.offset, asked.prefix_crc32
        )
        return self._storage

    async def _opened(self, storage: Storage) -> list[Response]:
        await self._grant(storage)
        machine = storage.machine
        opened = pb.UploadOpened(
            persisted_bytes=machine.persisted,
            send_limit=machine.send_limit,
            chunk_bytes_max=CHUNK_BYTES_MAX,
            epoch=storage.epoch,
        )
        if storage.row["expires_at"] is not None:
            opened.expire_time.FromDatetime(storage.row["expires_at"])
        return [Response(opened=opened), *self._pause(storage)]

    async def _turn(self, storage: Storage) -> list[Response]:
        await self._inbox.wait(self._next_look_s(storage))
        if self._taken_over:
            raise TakenOver
        done = await self._read(storage)
        if done:
            return done
        stored = await storage.flush()
        self._inbox.release()
        goaway = self._goaway_reason(storage)
        if goaway is not None:
            return [_go_away(goaway, storage.machine.persisted)]
        if storage.machine.phase is Phase.FINISHED:
            return []
        self._check_stall(storage)
        granted = await self._grant(storage)
        if stored or granted:
            return [self._ack(storage), *self._pause(storage)]
        return self._pause(storage)

    def _next_look_s(self, storage: Storage) -> float:
        machine = storage.machine
        now = time.monotonic()
        if machine.phase is Phase.FINISHED:
            return self._heard_at + DRAIN_S - now
        look_at = min(self._ends_at, self._heard_at + self._stall_s)
        if self._is_blocked(storage):
            look_at = min(look_at, now + GRANT_POLL_S)
        return look_at - now

    def _is_blocked(self, storage: Storage) -> bool:
        """The caller waits for a grant: the next chunk would not fit into what is left."""
        machine = storage.machine
        left = machine.send_limit - machine.received
        return left < min(CHUNK_BYTES_MAX, storage.size_max - machine.received)

    def _check_stall(self, storage: Storage) -> None:
        machine = storage.machine
        if self._paused or machine.received >= machine.send_limit < storage.size_max:
            self._heard_at = time.monotonic()  # it is the server that keeps the caller waiting
        elif self._silent_s() > self._stall_s:
            raise Stalled

    def _goaway_reason(self, storage: Storage) -> pb.GoAwayReason.ValueType | None:
        if self._goaway is None and time.monotonic() > self._ends_at:
            self._goaway = pb.GO_AWAY_REASON_AGE
        return None if storage.machine.phase is Phase.FINISHED else self._goaway

    async def _read(self, storage: Storage) -> list[Response]:
        """Takes all that has come. What came before a refused frame is stored all the same."""
        try:
            while (frame := self._inbox.take()) is not None:
                self._heard_at = time.monotonic()
                if done := await self._frame(storage, frame):
                    self._inbox.release()
                    self._inbox.wake.set()
                    return done
        except AppError as error:
            await self._settle(storage, error)
            raise
        return []

    async def _settle(self, storage: Storage, error: AppError) -> None:
        if storage.machine.phase is Phase.FINISHED:
            return
        if isinstance(error, FILE_FAULTS):
            await storage.fail(error)
        elif storage.machine.phase is Phase.OPEN:
            await storage.flush()

    async def _frame(self, storage: Storage, frame: pb.UploadImportRequest) -> list[Response]:
        match frame.WhichOneof("frame"):
            case "chunk":
                chunk = frame.chunk
                overlap, fresh = storage.machine.chunk(chunk.offset, chunk.data, chunk.crc32)
                if overlap is not None:
                    await storage.compare(overlap)
                storage.append(fresh)
                return []
            case "finish":
                return [await self._finish(storage, frame.finish)]
            case "open" | None:
                raise OpenMissing.here()
            case unknown:
                assert_never(unknown)

    async def _finish(self, storage: Storage, finish: pb.UploadFinish) -> Response:
        storage.machine.finish(finish.total_bytes, finish.crc32)
        if storage.machine.phase is Phase.FINISHING:
            await storage.complete()
        return Response(done=pb.UploadDone(**{"import": await storage.present()}))

    async def _grant(self, storage: Storage) -> bool:
        machine = storage.machine
        if machine.phase is not Phase.OPEN:
            return False
        given = await self._place.flow.grant(self._stream, machine.persisted, storage.size_max)
        grows = machine.grant(given.send_limit)
        if grows:
            self._heard_at = time.monotonic()
        self._paused_by = pb.PAUSE_REASON_UNSPECIFIED if grows else given.pause
        return grows

    def _pause(self, storage: Storage) -> list[Response]:
        """Said once for each reason, until the grant grows again."""
        reason = self._paused_by if self._is_blocked(storage) else pb.PAUSE_REASON_UNSPECIFIED
        if reason == self._paused:
            return []
        self._paused = reason
        if reason == pb.PAUSE_REASON_UNSPECIFIED:
            return []
        self._place.flow.pauses += 1
        expected = Duration()
        expected.FromMilliseconds(int(PAUSE_S * 1000))
        return [Response(pause=pb.UploadPause(reason=reason, expected_duration=expected))]

    def _ack(self, storage: Storage) -> Response:
        machine = storage.machine
        return Response(
            ack=pb.UploadAck(persisted_bytes=machine.persisted, send_limit=machine.send_limit)
        )

    async def _refused(self, error: AppError) -> Response:
        storage = self._storage
        machine = None if storage is None else storage.machine
        if machine is not None:
            self._place.flow.refused(machine.unstored)
        resumable = machine is not None and machine.phase is not Phase.FINISHED
        return Response(
            refused=pb.UploadRefused(
                error=item(error),
                persisted_bytes=0 if machine is None else machine.persisted,
                resumable=resumable and not isinstance(error, _FINAL),
            )
        )


def _go_away(reason: pb.GoAwayReason.ValueType, persisted: int) -> Response:
    after = Duration()
    after.FromMilliseconds(int(RECONNECT_AFTER_S * 1000))
    return Response(
        go_away=pb.UploadGoAway(reason=reason, persisted_bytes=persisted, reconnect_after=after)
    )
