"""An ImportService in memory that keeps the upload protocol to the letter, and fails on demand.

It stands in for the server where a test needs a fault at an exact byte; the same client runs
against the real server in tests/client/_async/test_server.py.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter, deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

import grpc
from google.rpc import code_pb2

from trunkline.api.errors.v1 import item_error_pb2, reason_pb2
from trunkline.api.imports.v1 import imports_service_pb2 as pb
from trunkline.api.imports.v1.imports_service_pb2_grpc import ImportServiceServicer

CHUNK_BYTES_MAX = 32 << 10
WINDOW_BYTES = 128 << 10

_Context = Any


@dataclass(frozen=True)
class Fault:
    """Happens once, when so many bytes are stored."""

    at_bytes: int
    kind: str  # drop, abort, go_away, refuse, refuse_for_good, pause, lose_ack, take_over
    then_s: float = 0.0


@dataclass
class Held:
    """One import."""

    import_id: str
    spec: pb.ImportSpec
    stored: bytearray = field(default_factory=bytearray)
    epoch: int = 0
    state: pb.ImportState.ValueType = pb.IMPORT_STATE_CREATED
    rejected: int = 0

    def message(self) -> pb.Import:
        text = bytes(self.stored)
        rows = max(0, text.count(b"\n") - 1)
        return pb.Import(
            import_id=self.import_id,
            state=self.state,
            spec=self.spec,
            counters=pb.ImportCounters(
                bytes_received=len(text), rows_read=rows, rejected=self.rejected
            ),
        )

    def limit(self, window_bytes: int) -> int:
        """No further than the size that was told: then nothing is granted at the end."""
        limit = len(self.stored) + window_bytes
        return min(limit, self.spec.total_bytes) if self.spec.total_bytes else limit

    def upload(self) -> pb.Upload:
        return pb.Upload(
            import_id=self.import_id,
            persisted_bytes=len(self.stored),
            prefix_crc32=crc32(self.stored),
            chunk_bytes_max=CHUNK_BYTES_MAX,
            epoch=self.epoch,
            finished=self.state not in (pb.IMPORT_STATE_CREATED, pb.IMPORT_STATE_UPLOADING),
        )


class _Ends(Exception):
    """The stream ends as the fault says."""


class Imports(ImportServiceServicer):
    """Counts what was asked; `faults` happen in their order."""

    def __init__(self) -> None:
        self.held: dict[str, Held] = {}
        self.faults: deque[Fault] = deque()
        self.calls: Counter[str] = Counter()
        self.resent_bytes = 0
        self.grants_when_used_up = False
        self.window_bytes = WINDOW_BYTES
        # From so many bytes on the server is away.
        self.down_from_bytes: int | None = None
        self.reject_rows = 0
        # Creates imports, and does not say so.
        self.loses_creations = False
        self.stored_something = asyncio.Event()
        self._by_request: dict[str, str] = {}

    @property
    def only(self) -> Held:
        (held,) = self.held.values()
        return held

    async def CreateImport(
        self, request: pb.CreateImportRequest, context: _Context
    ) -> pb.CreateImportResponse:
        self.calls["CreateImport"] += 1
        import_id = self._by_request.setdefault(request.request_id, str(uuid.uuid4()))
        held = self.held.setdefault(import_id, Held(import_id, request.spec))
        if self.loses_creations:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        reply = pb.CreateImportResponse(upload=held.upload())
        getattr(reply, "import").CopyFrom(held.message())
        return reply

    async def GetUpload(
        self, request: pb.GetUploadRequest, context: _Context
    ) -> pb.GetUploadResponse:
        self.calls["GetUpload"] += 1
        return pb.GetUploadResponse(upload=(await self._find(request, context)).upload())

    async def GetImport(
        self, request: pb.GetImportRequest, context: _Context
    ) -> pb.GetImportResponse:
        reply = pb.GetImportResponse()
        getattr(reply, "import").CopyFrom((await self._find(request, context)).message())
        return reply

    async def _find(self, request: Any, context: _Context) -> Held:
        if request.import_id not in self.held:
            await context.abort(grpc.StatusCode.NOT_FOUND, "There is no such import.")
        return self.held[request.import_id]

    async def WatchImport(
        self, request: pb.WatchImportRequest, context: _Context
    ) -> AsyncIterator[pb.WatchImportResponse]:
        self.calls["WatchImport"] += 1
        held = await self._find(request, context)
        for state in (pb.IMPORT_STATE_QUEUED, pb.IMPORT_STATE_RUNNING, pb.IMPORT_STATE_SUCCEEDED):
            if state < held.state:
                continue
            held.state = state
            held.rejected = self.reject_rows
            reply = pb.WatchImportResponse()
            getattr(reply, "import").CopyFrom(held.message())
            yield reply
            if self.calls["WatchImport"] == 1 and state == pb.IMPORT_STATE_QUEUED:
                yield pb.WatchImportResponse(go_away=True)
                return

    async def ListRejects(
        self, request: pb.ListRejectsRequest, context: _Context
    ) -> pb.ListRejectsResponse:
        first = int(request.page_token or 0)
        size = request.page_size or 2
        rows = range(first, min(first + size, self.reject_rows))
        following = first + size
        return pb.ListRejectsResponse(
            rejects=[pb.Reject(row_no=row + 1, message="no") for row in rows],
            next_page_token=str(following) if following < self.reject_rows else "",
        )

    async def UploadImport(
        self, requests: AsyncIterator[pb.UploadImportRequest], context: _Context
    ) -> AsyncIterator[pb.UploadImportResponse]:
        self.calls["UploadImport"] += 1
        first = await anext(requests)
        held = await self._find(first.open, context)
        await self._be_down(held, context)
        held.epoch += 1
        epoch = held.epoch
        opening = first.open
        if opening.offset > len(held.stored) or opening.prefix_crc32 != crc32(
            held.stored[: opening.offset]
        ):
            yield refused(held, reason_pb2.REASON_IMPORT_CONTENT_DIFFERS, resumable=False)
            return
        limit = held.limit(self.window_bytes)
        yield pb.UploadImportResponse(
            opened=pb.UploadOpened(
                persisted_bytes=len(held.stored),
                send_limit=limit,
                chunk_bytes_max=CHUNK_BYTES_MAX,
                epoch=epoch,
            )
        )
        async for request in requests:
            if held.epoch != epoch:
                yield refused(held, reason_pb2.REASON_IMPORT_UPLOAD_TAKEN_OVER, resumable=True)
                return
            if request.WhichOneof("frame") == "finish":
                yield self._finish(held, request.finish)
                return
            problem = self._store(held, request.chunk, limit)
            if problem is not None:
                yield problem
                return
            await self._be_down(held, context)
            fault = self._fault_due(held)
            if fault is not None:
                async for reply in self._happen(fault, held, context):
                    yield reply
                if fault.kind in ("go_away", "refuse", "refuse_for_good", "take_over"):
                    async for _ in requests:  # to its half-close, so that no status is lost
                        pass
                    return
                if fault.kind == "lose_ack":
                    continue
            if self.grants_when_used_up and len(held.stored) < limit:
                continue
            limit = max(limit, held.limit(self.window_bytes))
            yield pb.UploadImportResponse(
                ack=pb.UploadAck(persisted_bytes=len(held.stored), send_limit=limit)
            )

    async def _be_down(self, held: Held, context: _Context) -> None:
        if self.down_from_bytes is not None and len(held.stored) >= self.down_from_bytes:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")

    def _store(
        self, held: Held, chunk: pb.UploadChunk, limit: int
    ) -> pb.UploadImportResponse | None:
        end = chunk.offset + len(chunk.data)
        if crc32(chunk.data) != chunk.crc32:
            return refused(held, reason_pb2.REASON_IMPORT_DIGEST_MISMATCH, resumable=True)
        if chunk.offset > len(held.stored):
            return refused(held, reason_pb2.REASON_IMPORT_OFFSET_GAP, resumable=True)
        if end > limit:
            return refused(held, reason_pb2.REASON_IMPORT_SEND_LIMIT_PASSED, resumable=False)
        known = len(held.stored) - chunk.offset
        if held.stored[chunk.offset : end] != chunk.data[:known]:
            return refused(held, reason_pb2.REASON_IMPORT_CONTENT_DIFFERS, resumable=False)
        self.resent_bytes += min(known, len(chunk.data))
        held.stored += chunk.data[known:]
        held.state = pb.IMPORT_STATE_UPLOADING
        self.stored_something.set()
        return None

    def _finish(self, held: Held, finish: pb.UploadFinish) -> pb.UploadImportResponse:
        if finish.total_bytes != len(held.stored) or finish.crc32 != crc32(held.stored):
            return refused(held, reason_pb2.REASON_IMPORT_SIZE_MISMATCH, resumable=False)
        held.state = pb.IMPORT_STATE_QUEUED
        done = pb.UploadDone()
        getattr(done, "import").CopyFrom(held.message())
        return pb.UploadImportResponse(done=done)

    def _fault_due(self, held: Held) -> Fault | None:
        if self.faults and len(held.stored) >= self.faults[0].at_bytes:
            return self.faults.popleft()
        return None

    async def _happen(
        self, fault: Fault, held: Held, context: _Context
    ) -> AsyncIterator[pb.UploadImportResponse]:
        match fault.kind:
            case "abort":
                await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
            case "drop":
                await context.abort(grpc.StatusCode.INTERNAL, "Received RST_STREAM")
            case "go_away":
                yield pb.UploadImportResponse(
                    go_away=pb.UploadGoAway(
                        reason=pb.GO_AWAY_REASON_DRAIN, persisted_bytes=len(held.stored)
                    )
                )
            case "refuse":
                yield refused(held, reason_pb2.REASON_IMPORT_UPLOAD_STALLED, resumable=True)
            case "refuse_for_good":
                yield refused(held, reason_pb2.REASON_IMPORT_FILE_TOO_LARGE, resumable=False)
            case "take_over":
                yield refused(held, reason_pb2.REASON_IMPORT_UPLOAD_TAKEN_OVER, resumable=True)
            case "pause":
                yield pb.UploadImportResponse(
                    pause=pb.UploadPause(reason=pb.PAUSE_REASON_DATABASE_SLOW)
                )
                await asyncio.sleep(fault.then_s)
            case "hang":
                await asyncio.Event().wait()


def refused(
    held: Held, reason: reason_pb2.Reason.ValueType, *, resumable: bool
) -> pb.UploadImportResponse:
    error = item_error_pb2.ItemError(
        code=code_pb2.FAILED_PRECONDITION, reason=reason, message="The test says no."
    )
    return pb.UploadImportResponse(
        refused=pb.UploadRefused(error=error, persisted_bytes=len(held.stored), resumable=resumable)
    )
