"""What every bare server shares: grpc.aio on uvloop, a free port, `ready ADDRESS`, SIGTERM."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable

import grpc.aio
import uvloop

Build = Callable[[], Awaitable[grpc.aio.Server]]


def serve(build: Build) -> None:
    uvloop.run(_serve(build))


async def _serve(build: Build) -> None:
    server = await build()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    stopped = asyncio.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(each, stopped.set)
    print(f"ready 127.0.0.1:{port}", flush=True)
    await stopped.wait()
    await server.stop(0)
