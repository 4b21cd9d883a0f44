"""The uploader: bytes to the server, over as many streams as it takes."""

from collections import deque
from collections.abc import Callable

import grpc

from trunkline._async.session import AsyncSession
from trunkline._shared import reading_async as reading
from trunkline._shared import tasks_async as tasks
from trunkline._shared.backoff import Backoff
from trunkline._shared.contract import max_deadline_s
from trunkline._shared.credentials import Metadata
from trunkline._shared.duplex_async import AsyncDuplex
from trunkline._shared.enums import name_of
from trunkline._shared.progress import Progress
from trunkline._shared.window import Chunk, Window
from trunkline.api.errors.v1 import reason_pb2
from trunkline.api.imports.v1 import imports_service_pb2 as pb
from trunkline.api.imports.v1 import imports_service_pb2_grpc as stubs
from trunkline.errors import (
    Cancelled,
    Conflict,
    DeadlineExceeded,
    FileChanged,
    Interrupted,
    RateLimited,
    ServerError,
    TrunklineError,
    Unauthenticated,
    Unavailable,
    from_grpc,
    from_item,
)

# Longer silence than this while something is due means that nobody is there.
SILENCE_TIMEOUT_S = 60.0
# Without a byte of progress for so long the uploader leaves it to its caller.
GIVE_UP_AFTER_S = 300.0
# A file is looked at for changes each time so many bytes were read, and at the end.
CHECK_EACH_BYTES = 64 << 20

_UPLOAD = pb.DESCRIPTOR.services_by_name["ImportService"].methods_by_name["UploadImport"]
_TIMEOUT_S = max_deadline_s(_UPLOAD)
PASSING = (Unavailable, DeadlineExceeded, ServerError, Cancelled)
_OTHER_CONTENT = frozenset(
    {reason_pb2.REASON_IMPORT_CONTENT_DIFFERS, reason_pb2.REASON_IMPORT_SIZE_MISMATCH}
)


class _Reopen(Exception):
    """The stream ended in a way that is continued by another one."""

    def __init__(self, after_s: float, cause: TrunklineError | None = None) -> None:
        super().__init__()
        self.after_s = after_s
        self.cause = cause


def _reopened(error: TrunklineError) -> Exception:
    """What an error means for the upload: another stream, or its end."""
    if isinstance(error, RateLimited) and error.retry_after_s is None:
        return error
    if isinstance(error, (*PASSING, RateLimited)):
        return _Reopen(error.retry_after_s or 0.0, error)
    return error


class AsyncUpload:
    """One file on its way. Bytes are kept until the server has committed them, so whatever
    breaks between is sent again and nothing else."""

    def __init__(
        self,
        session: AsyncSession,
        source: reading.Source,
        upload: pb.Upload,
        window: Window,
        on_progress: Callable[[Progress], None] | None = None,
        give_up_after_s: float = GIVE_UP_AFTER_S,
    ) -> None:
        self._session = session
        self._source = source
        self._import_id = upload.import_id
        self._window = window
        self._on_progress = on_progress
        self._give_up_after_s = give_up_after_s
        self._chunk_bytes = upload.chunk_bytes_max
        self._send_limit = 0
        self._unsent: deque[Chunk] = deque()
        self._ahead = b""
        self._source_ended = False
        self._checked_at = 0
        self._finish_sent = False
        self._waits_for = ""
        self._silence_s = SILENCE_TIMEOUT_S
        self._idle_s = 0.0
        self._rows_read = self._rows_rejected = 0

    async def run(self) -> pb.Import:
        """Send all of it; returns the import once its file is complete."""
        backoff = Backoff()
        while True:
            stored = self._window.stored
            try:
                return await self._one_stream()
            except _Reopen as reopen:
                if self._window.stored > stored:
                    backoff.reset()
                    self._idle_s = 0.0
                pause_s = backoff.next_s(reopen.after_s)
                self._idle_s += pause_s
                if self._idle_s > self._give_up_after_s:
                    raise self._interrupted(reopen.cause) from reopen.cause
                await tasks.sleep(pause_s)

    def _interrupted(self, cause: TrunklineError | None) -> Interrupted:
        why = f": {cause}" if cause else "."
        return Interrupted(
            f"The upload stopped at {self._window.stored} bytes{why}",
            reason=cause.reason if cause else "",
        )

    async def _one_stream(self) -> pb.Import:
        try:
            metadata = await self._session.metadata()
        except TrunklineError as error:
            raise _reopened(error) from error
        stub: stubs.ImportServiceAsyncStub
        stub = stubs.ImportServiceStub(self._session.upload_channel)
        try:
            async with AsyncDuplex(stub.UploadImport, metadata, _TIMEOUT_S) as stream:
                return await self._talk(stream)
        except TimeoutError:
            raise _Reopen(0.0, Unavailable("The server fell silent.")) from None
        except grpc.RpcError as error:
            found = from_grpc(error, self._session.target.address)
        if isinstance(found, Unauthenticated) and await self._renewed(metadata):
            raise _Reopen(0.0, found)
        raise _reopened(found)

    async def _renewed(self, refused: Metadata) -> bool:
        try:
            return await self._session.auth.renew(refused) is not None
        except TrunklineError as error:
            raise _reopened(error) from error

    async def _talk(
        self, stream: AsyncDuplex[pb.UploadImportRequest, pb.UploadImportResponse]
    ) -> pb.Import:
        self._send_limit = -1
        self._finish_sent = False
        self._waits_for = ""
        opening = pb.UploadOpen(
            import_id=self._import_id,
            offset=self._window.stored,
            prefix_crc32=self._window.stored_crc32,
        )
        await stream.send(pb.UploadImportRequest(open=opening))
        while True:
            if not stream.waiting and await self._sent_something(stream):
                continue
            event = await stream.receive(self._silence_s)
            if event is None:
                raise _Reopen(0.0, Unavailable("The server closed the stream early."))
            done = await self._handle(stream, event)
            if done is not None:
                return done

    async def _sent_something(
        self, stream: AsyncDuplex[pb.UploadImportRequest, pb.UploadImportResponse]
    ) -> bool:
        """Send the next chunk, or the end, if the server's grant allows it."""
        if self._send_limit < 0 or self._finish_sent:
            return False
        chunk = await self._next_chunk()
        if chunk is not None:
            message = pb.UploadChunk(offset=chunk.offset, data=chunk.content, crc32=chunk.crc32)
            await stream.send(pb.UploadImportRequest(chunk=message))
            return True
        if not self._source_ended or self._unsent:
            return False
        self._source.check_unchanged()
        self._finish_sent = True
        finish = pb.UploadFinish(total_bytes=self._window.end, crc32=self._window.crc32)
        await stream.send(pb.UploadImportRequest(finish=finish))
        return True

    async def _next_chunk(self) -> Chunk | None:
        """What was sent before and is not stored, then more of the source; None: wait, or end."""
        if self._unsent:
            return self._unsent_within_grant()
        # Read before there is room: at the end of a file no more room will come.
        ahead = await self._look_ahead()
        room = self._send_limit - self._window.end
        # A part of a chunk only if nothing is on its way: small grants make no small chunks.
        if not ahead or room <= 0 or (room < len(ahead) and self._window.end > self._window.stored):
            return None
        return self._window.take(self._taken(room))

    def _unsent_within_grant(self) -> Chunk | None:
        chunk, limit = self._unsent[0], self._send_limit
        if chunk.end <= limit:
            return self._unsent.popleft()
        if limit <= chunk.offset or chunk.offset > self._window.stored:
            return None
        head, self._unsent[0] = chunk.split(limit)
        return head

    async def _look_ahead(self) -> bytes:
        """What comes next, left where it is; empty at the end."""
        if not self._ahead and not self._source_ended:
            self._ahead = await self._read(self._chunk_bytes)
            self._source_ended = not self._ahead
        return self._ahead

    def _taken(self, size: int) -> bytes:
        taken, self._ahead = self._ahead[:size], self._ahead[size:]
        return taken

    async def _read(self, size: int) -> bytes:
        if self._window.end - self._checked_at >= CHECK_EACH_BYTES:
            self._checked_at = self._window.end
            self._source.check_unchanged()
        return await reading.read(self._source, size)

    async def _handle(
        self,
        stream: AsyncDuplex[pb.UploadImportRequest, pb.UploadImportResponse],
        event: pb.UploadImportResponse,
    ) -> pb.Import | None:
        self._silence_s = SILENCE_TIMEOUT_S
        match event.WhichOneof("event"):
            case "opened":
                await self._opened(event.opened)
            case "ack":
                self._acknowledged(event.ack)
            case "row_errors":
                pass
            case "pause":
                self._waits_for = name_of(pb.PauseReason, event.pause.reason)
                self._silence_s += event.pause.expected_duration.ToTimedelta().total_seconds()
                self._report()
            case "go_away":
                self._window.acknowledge(event.go_away.persisted_bytes)
                await self._drained(stream)
                raise _Reopen(event.go_away.reconnect_after.ToTimedelta().total_seconds())
            case "refused":
                self._refused(event.refused)
            case "done":
                self._window.acknowledge(self._window.end)
                self._report()
                return import_of(event.done)
            case _:  # an event of a newer server
                pass
        return None

    async def _opened(self, opened: pb.UploadOpened) -> None:
        """Where the server is; bytes it has that this process never saw are read past."""
        self._chunk_bytes = opened.chunk_bytes_max or self._chunk_bytes
        while self._window.end < opened.persisted_bytes:
            missing = opened.persisted_bytes - self._window.end
            if not await self._look_ahead():
                raise FileChanged("The server has stored more bytes than there are.")
            self._window.take(self._taken(missing))
        self._window.acknowledge(opened.persisted_bytes)
        self._unsent = deque(self._window.unstored())
        self._send_limit = opened.send_limit
        self._report()

    def _acknowledged(self, ack: pb.UploadAck) -> None:
        if ack.persisted_bytes > self._window.stored:
            self._idle_s = 0.0
            self._waits_for = ""
        self._window.acknowledge(ack.persisted_bytes)
        self._send_limit = max(self._send_limit, ack.send_limit)
        self._rows_read, self._rows_rejected = ack.rows_seen, ack.rows_rejected
        self._report()

    def _refused(self, refused: pb.UploadRefused) -> None:
        error = from_item(refused.error)
        reason = refused.error.reason
        if reason in _OTHER_CONTENT:
            raise FileChanged(error.message, reason=error.reason)
        if reason == reason_pb2.REASON_IMPORT_UPLOAD_TAKEN_OVER:
            raise Conflict(error.message, reason=error.reason)
        if not refused.resumable:
            raise error
        self._window.acknowledge(min(refused.persisted_bytes, self._window.end))
        raise _Reopen(error.retry_after_s or 0.0, error)

    async def _drained(
        self, stream: AsyncDuplex[pb.UploadImportRequest, pb.UploadImportResponse]
    ) -> None:
        """Let the server end the stream: it may still say what it has stored."""
        await stream.half_close()
        while (event := await stream.receive(SILENCE_TIMEOUT_S)) is not None:
            if event.WhichOneof("event") == "ack":
                self._acknowledged(event.ack)

    def _report(self) -> None:
        if self._on_progress is None:
            return
        self._on_progress(
            Progress(
                import_id=self._import_id,
                state="UPLOADING",
                bytes_stored=self._window.stored,
                bytes_total=self._source.size_bytes,
                bytes_processed=0,
                rows_read=self._rows_read,
                rows_rejected=self._rows_rejected,
                waits_for=self._waits_for,
            )
        )


def import_of(reply: object) -> pb.Import:
    """The `import` of a reply, a field whose name Python keeps for itself."""
    found: pb.Import = getattr(reply, "import")
    return found
