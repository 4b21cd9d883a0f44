"""The Python client beside bare stubs: MB/s of an upload, seconds of a validation.

Both sides of each ratio talk to the same server process. The raw stream sends chunks from memory
with the digests the protocol wants, as far as the grants reach, and waits for Done; the uploader
sends a file and does everything it does for users: journal, digest of the whole file, checks.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from zlib import crc32

import grpc.aio

from bench import product
from bench.alternate import alternate, ratios
from bench.figures import Figure, figure
from bench.registry import Plan
from trunkline import AsyncClient, Client
from trunkline._shared.connection import channel_options
from trunkline.api.imports.v1 import imports_service_pb2 as imports
from trunkline.api.imports.v1.imports_service_pb2_grpc import ImportServiceStub
from trunkline.api.members.v1 import members_service_pb2 as members
from trunkline.api.members.v1.members_service_pb2_grpc import MemberServiceStub
from trunkline_server.rpc.caller import Role

NAME = "client"
FILE_BYTES = 32 << 20
CHUNK_BYTES = 1 << 20
CALLS = 400
QUOTAS = {
    "user_uploads_per_5_minutes": 10_000,
    "imports_waiting": 10_000,
    "import_starts_per_minute": 10_000,
}
NUMBER = "A-1"


def run(plan: Plan) -> Iterator[Figure]:
    with ExitStack() as started:
        stack = started.enter_context(product.stack())
        tenant = product.seed(stack, quotas=QUOTAS)
        watched = started.enter_context(product.watched(stack))
        folder = Path(started.enter_context(tempfile.TemporaryDirectory()))
        address = watched.server.address
        admin = started.enter_context(Client(address, api_key=tenant.api_keys[Role.ADMIN]))
        admin.members.create(NUMBER, family_name="Bench", plan="gold")
        runner = started.enter_context(asyncio.Runner())
        uploads = Uploads(runner, address, tenant.api_keys[Role.ADMIN], folder, admin)
        sides = {"uploader": uploads.uploader, "raw": uploads.raw}
        alternate(sides, rounds=1)
        rates = alternate(sides, rounds=plan.pick(full=11, quick=5))
        yield figure(NAME, "upload_to_raw_stream", ratios(rates["uploader"], rates["raw"]))
        yield figure(NAME, "upload_mb_per_s", rates["uploader"], unit="MB/s")
        yield figure(NAME, "raw_mb_per_s", rates["raw"], unit="MB/s")

        calls = Calls(runner, address, tenant.api_keys[Role.AGENT])
        paces = {"bare": calls.bare, "client": calls.client}
        alternate(paces, rounds=3)
        seconds = alternate(paces, rounds=plan.pick(full=41, quick=15))
        calls.close()
        relative = ratios(seconds["client"], seconds["bare"])
        yield figure(NAME, "call_overhead", [ratio - 1 for ratio in relative])
        yield figure(NAME, "call_us", [s / CALLS * 1e6 for s in seconds["client"]], unit="us")


class Uploads:
    """One roster, uploaded both ways. An import is cancelled afterwards: no worker reads it."""

    def __init__(
        self, runner: asyncio.Runner, address: str, api_key: str, folder: Path, admin: Client
    ) -> None:
        self._runner = runner
        self._address = address
        self._metadata = (("authorization", f"Bearer {api_key}"),)
        self._admin = admin
        self._path = folder / "roster.csv"
        rows = (f"A-{number:012},{os.urandom(40).hex()}\n" for number in range(FILE_BYTES // 96))
        self._path.write_text("member_number,family_name\n" + "".join(rows))
        self._content = self._path.read_bytes()

    def uploader(self) -> float:
        started = time.perf_counter()
        job = self._admin.imports.upload(self._path, allow_same_file=True)
        return self._done(started, job.import_id)

    def raw(self) -> float:
        started = time.perf_counter()
        import_id = self._runner.run(self._stream())
        return self._done(started, import_id)

    def _done(self, started: float, import_id: str) -> float:
        seconds = time.perf_counter() - started
        self._admin.imports.cancel(import_id)
        return len(self._content) / 1e6 / seconds

    async def _stream(self) -> str:
        options = channel_options("bench", own_connection=True)
        async with grpc.aio.insecure_channel(self._address, options=options) as channel:
            stub: Any = ImportServiceStub(channel)
            spec = imports.ImportSpec(
                mode=imports.IMPORT_MODE_UPSERT,
                allow_same_file=True,
                total_bytes=len(self._content),
            )
            created = await stub.CreateImport(
                imports.CreateImportRequest(spec=spec), metadata=self._metadata
            )
            import_id: str = created.upload.import_id
            call = stub.UploadImport(metadata=self._metadata)
            await self._send(call, import_id)
        return import_id

    async def _send(self, call: Any, import_id: str) -> None:
        opening = imports.UploadOpen(import_id=import_id, offset=0, prefix_crc32=0)
        await call.write(imports.UploadImportRequest(open=opening))
        limit = (await call.read()).opened.send_limit
        digest = offset = 0
        granted = asyncio.Event()
        reader: asyncio.Task[None] | None = None

        async def read() -> None:
            nonlocal limit
            while (event := await call.read()) is not grpc.aio.EOF:
                if event.WhichOneof("event") == "ack":
                    limit = event.ack.send_limit
                    granted.set()
                elif event.WhichOneof("event") == "done":
                    return

        reader = asyncio.create_task(read())
        while offset < len(self._content):
            content = self._content[offset : offset + CHUNK_BYTES]
            while offset + len(content) > limit:
                granted.clear()
                await granted.wait()
            digest = crc32(content, digest)
            chunk = imports.UploadChunk(offset=offset, data=content, crc32=crc32(content))
            await call.write(imports.UploadImportRequest(chunk=chunk))
            offset += len(content)
        finish = imports.UploadFinish(total_bytes=offset, crc32=digest)
        await call.write(imports.UploadImportRequest(finish=finish))
        await reader


class Calls:
    """The same validation again and again, one after the other, both ways on one loop."""

    def __init__(self, runner: asyncio.Runner, address: str, api_key: str) -> None:
        self._runner = runner
        self._metadata = (("authorization", f"Bearer {api_key}"),)
        runner.run(self._open(address, api_key))

    async def _open(self, address: str, api_key: str) -> None:
        self._channel = grpc.aio.insecure_channel(address, options=channel_options("bench"))
        self._stub: Any = MemberServiceStub(self._channel)
        self._client = AsyncClient(address, api_key=api_key)

    def bare(self) -> float:
        return self._runner.run(self._bare())

    def client(self) -> float:
        return self._runner.run(self._validate())

    async def _bare(self) -> float:
        started = time.perf_counter()
        for _ in range(CALLS):
            request = members.ValidateMemberRequest(member_number=NUMBER)
            await self._stub.ValidateMember(request, timeout=2.0, metadata=self._metadata)
        return time.perf_counter() - started

    async def _validate(self) -> float:
        started = time.perf_counter()
        for _ in range(CALLS):
            await self._client.members.validate(NUMBER)
        return time.perf_counter() - started

    def close(self) -> None:
        self._runner.run(self._client.close())
        self._runner.run(self._channel.close())
