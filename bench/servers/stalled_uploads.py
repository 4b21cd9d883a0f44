"""Uploads that stall: opened, fed as far as the server lets them, and left standing.

`open N` opens N streams and waits until a first chunk of each is stored; `push` sends on each as
much as grants and flow control take within a time, acknowledged or not; `close` ends them.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any
from zlib import crc32

import grpc.aio

from trunkline.api.imports.v1 import imports_service_pb2 as pb
from trunkline.api.imports.v1.imports_service_pb2_grpc import ImportServiceStub

CHUNK_BYTES = 256 << 10
STREAMS_PER_CHANNEL = 25
PUSH_S = 2.0
HEADER = b"member_number,given_name\n"
FILE = HEADER + b"M-1,Ada\n" * (CHUNK_BYTES // 8 - 8)


class _Stream:
    def __init__(self, stub: Any, metadata: Any) -> None:
        self._stub = stub
        self._metadata = metadata
        self._sent = 0
        self._limit = 0

    async def open(self) -> None:
        created = await self._stub.CreateImport(
            pb.CreateImportRequest(spec=pb.ImportSpec()), metadata=self._metadata
        )
        self.call = self._stub.UploadImport(metadata=self._metadata)
        opening = pb.UploadOpen(import_id=created.upload.import_id, offset=0, prefix_crc32=0)
        await self.call.write(pb.UploadImportRequest(open=opening))
        self._limit = (await self.call.read()).opened.send_limit
        await self._send(FILE)
        persisted = 0
        while persisted < self._sent:
            event = await self.call.read()
            if event.HasField("ack"):
                persisted, self._limit = event.ack.persisted_bytes, event.ack.send_limit

    async def _send(self, data: bytes) -> None:
        chunk = pb.UploadChunk(offset=self._sent, data=data, crc32=crc32(data))
        self._sent += len(data)
        await self.call.write(pb.UploadImportRequest(chunk=chunk))

    async def push(self) -> None:
        try:
            async with asyncio.timeout(PUSH_S):
                while self._sent + len(FILE) <= self._limit:
                    await self._send(FILE)
        except TimeoutError:
            return


class _Uploads:
    def __init__(self, address: str, key: str) -> None:
        self._address = address
        self._metadata = (("authorization", f"Bearer {key}"),)
        self._streams: list[_Stream] = []
        self._channels: list[grpc.aio.Channel] = []

    async def answer(self, line: str) -> str:
        word, _, count = line.partition(" ")
        if word == "open":
            await self._open(int(count))
        elif word == "push":
            await asyncio.gather(*(stream.push() for stream in self._streams))
        else:
            await self._close()
        return word

    async def _open(self, count: int) -> None:
        for first in range(0, count, STREAMS_PER_CHANNEL):
            channel = grpc.aio.insecure_channel(
                self._address, options=(("grpc.use_local_subchannel_pool", 1),)
            )
            self._channels.append(channel)
            stub = ImportServiceStub(channel)
            some = min(STREAMS_PER_CHANNEL, count - first)
            self._streams += [_Stream(stub, self._metadata) for _ in range(some)]
        for stream in self._streams:
            await stream.open()

    async def _close(self) -> None:
        for stream in self._streams:
            stream.call.cancel()
        for channel in self._channels:
            await channel.close()
        self._streams, self._channels = [], []


async def _main(address: str, key: str) -> None:
    uploads = _Uploads(address, key)
    print("ready", flush=True)
    while line := (await asyncio.to_thread(sys.stdin.readline)).strip():
        print(await uploads.answer(line), flush=True)


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
