"""An upload as a test drives it: frame by frame, with the digests of the bytes it is given."""

from __future__ import annotations

import asyncio
import zlib
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import grpc.aio

from tests.running import Metadata, Org, Running, details
from trunkline.api.imports.v1 import imports_service_pb2 as pb
from trunkline.api.imports.v1.imports_service_pb2_grpc import ImportServiceStub
from trunkline_server.rpc.caller import Role

PATIENCE_S = 15.0
HEADER = b"member_number,given_name,email\n"
SMALL = HEADER + b"M-1,Ada,ada@example.org\nM-2,Bob,bob@example.org\n"


def file_of(rows: int) -> bytes:
    return HEADER + b"".join(b"M-%d,Name %d,m%d@example.org\n" % (i, i, i) for i in range(rows))


class Refusal(Exception):
    """A stream's end without OK: its status, and what was said in-band before."""

    def __init__(self, error: grpc.aio.AioRpcError, refused: pb.UploadRefused | None) -> None:
        super().__init__(f"{error.code()} {error.details()}")
        self.code = error.code()
        self.details = details(error)
        self.reason: str = self.details["reason"]
        self.refused = refused


@dataclass
class Upload:
    """One UploadImport stream."""

    stub: Any
    metadata: Metadata
    import_id: str
    persisted: int = 0
    send_limit: int = 0
    epoch: int = 0
    seen: list[pb.UploadImportResponse] = field(default_factory=list)
    _call: Any = None

    async def start(self) -> Upload:
        self._call = self.stub.UploadImport(metadata=self.metadata)
        return self

    async def open(self, data: bytes = b"", offset: int | None = None) -> Upload:
        """Opens at `offset`, or at the end of `data`."""
        await self.start()
        at = len(data) if offset is None else offset
        frame = pb.UploadOpen(
            import_id=self.import_id, offset=at, prefix_crc32=zlib.crc32(data[:at])
        )
        await self.write(pb.UploadImportRequest(open=frame))
        opened = await self.until("opened")
        self.epoch = opened.epoch
        return self

    async def write(self, frame: pb.UploadImportRequest) -> None:
        async with asyncio.timeout(PATIENCE_S):
            await self._call.write(frame)

    async def chunk(self, offset: int, data: bytes, crc32: int | None = None) -> None:
        crc32 = zlib.crc32(data) if crc32 is None else crc32
        chunk = pb.UploadChunk(offset=offset, data=data, crc32=crc32)
        await self.write(pb.UploadImportRequest(chunk=chunk))

    async def send(self, data: bytes, start: int = 0, size: int = 1 << 18) -> None:
        """Chunks from `start` on, each within the grant."""
        for at in range(start, len(data), size):
            piece = data[at : at + size]
            while self.send_limit < at + len(piece):
                await self.read()
            await self.chunk(at, piece)

    async def finish(self, data: bytes) -> None:
        frame = pb.UploadFinish(total_bytes=len(data), crc32=zlib.crc32(data))
        await self.write(pb.UploadImportRequest(finish=frame))

    async def read(self) -> pb.UploadImportResponse | None:
        """The next response; None at the stream's good end."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                response: Any = await self._call.read()
        except grpc.aio.AioRpcError as broken:
            raise Refusal(broken, self._refused) from None
        if response is grpc.aio.EOF:
            code = await self._call.code()
            if code is grpc.StatusCode.OK:
                return None
            head = await self._call.initial_metadata()
            tail = await self._call.trailing_metadata()
            text = await self._call.details()
            raise Refusal(grpc.aio.AioRpcError(code, head, tail, text), self._refused)
        self.seen.append(response)
        event = getattr(response, response.WhichOneof("event"))
        if hasattr(event, "persisted_bytes"):
            self.persisted = event.persisted_bytes
        if hasattr(event, "send_limit"):
            self.send_limit = max(self.send_limit, event.send_limit)
        return response  # type: ignore[no-any-return]

    @property
    def _refused(self) -> pb.UploadRefused | None:
        last = self.seen[-1] if self.seen else None
        return last.refused if last is not None and last.HasField("refused") else None

    async def until(self, event: str) -> Any:
        while (response := await self.read()) is not None:
            if response.WhichOneof("event") == event:
                return getattr(response, event)
        raise AssertionError(f"the stream ended without {event}: {self.events}")

    async def stored(self, size: int) -> None:
        while self.persisted < size:
            assert await self.read() is not None, "the stream ended"

    @property
    def events(self) -> list[str]:
        return [str(response.WhichOneof("event")) for response in self.seen]

    async def half_close(self) -> None:
        await self._call.done_writing()

    async def ended(self) -> None:
        """Reads on to the end, which is OK or raises Refusal."""
        while await self.read() is not None:
            pass

    async def refusal(self) -> Refusal:
        """How the server ended it. It waits for our half-close, as a client's library does."""
        try:
            while (response := await self.read()) is not None:
                if response.HasField("refused"):
                    await self.half_close()
        except Refusal as refusal:
            return refusal
        raise AssertionError(f"it was not refused: {self.events}")

    def cancel(self) -> None:
        self._call.cancel()


class Importer:
    """A caller of ImportService."""

    def __init__(self, running: Running, org: Org, role: Role = Role.ADMIN) -> None:
        self.running = running
        self.org = org
        self.metadata = org.as_(role)
        self.stub = ImportServiceStub(running.channel)

    async def call(self, method: str, request: Any) -> Any:
        async with asyncio.timeout(PATIENCE_S):
            return await getattr(self.stub, method)(request, metadata=self.metadata)

    async def create(self, request_id: str = "", **spec: Any) -> Any:
        request = pb.CreateImportRequest(
            request_id=request_id or str(uuid4()), spec=pb.ImportSpec(**spec)
        )
        return await self.call("CreateImport", request)

    async def new(self, **spec: Any) -> str:
        return str(getattr(await self.create(**spec), "import").import_id)

    def upload(self, import_id: str) -> Upload:
        return Upload(self.stub, self.metadata, import_id)

    async def opened(self, **spec: Any) -> Upload:
        return await self.upload(await self.new(**spec)).open()

    async def look(self, import_id: str) -> pb.Import:
        found = await self.call("GetImport", pb.GetImportRequest(import_id=import_id))
        return getattr(found, "import")  # type: ignore[no-any-return]

    async def whole(self, data: bytes, **spec: Any) -> pb.Import:
        """Uploads a file from beginning to end."""
        upload = await self.opened(**spec)
        await upload.send(data)
        await upload.finish(data)
        done = await upload.until("done")
        await upload.half_close()
        await upload.ended()
        return getattr(done, "import")  # type: ignore[no-any-return]

    def watch(self, import_id: str) -> Any:
        request = pb.WatchImportRequest(import_id=import_id)
        return self.stub.WatchImport(request, metadata=self.metadata)


async def refused(awaitable: Any) -> Refusal:
    """How a unary call was refused."""
    try:
        await awaitable
    except grpc.aio.AioRpcError as error:
        return Refusal(error, None)
    raise AssertionError("it was not refused")
