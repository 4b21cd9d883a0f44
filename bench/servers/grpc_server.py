"""What every server of a bench shares: grpc.aio on uvloop, a free port, `ready ADDRESS`.

Ends with SIGTERM, and with its stdin: a bench that dies leaves no server behind.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable

import grpc.aio
import uvloop

Build = Callable[[], Awaitable[grpc.aio.Server]]
Answer = Callable[[str], str]
_LINE_BYTES_MAX = 4096


def serve(build: Build) -> None:
    uvloop.run(_serve(build))


async def _serve(build: Build) -> None:
    server = await build()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    await until_told(port)
    await server.stop(0)


async def until_told(port: int, answer: Answer = str) -> None:
    """Says where it serves. `answer` gets each line the bench sends; what it returns is printed."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for each in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(each, stopped.set)

    def asked() -> None:
        lines = os.read(sys.stdin.fileno(), _LINE_BYTES_MAX).decode().splitlines()
        if not lines:
            stopped.set()
        for line in lines:
            print(answer(line), flush=True)

    loop.add_reader(sys.stdin.fileno(), asked)
    print(f"ready 127.0.0.1:{port}", flush=True)
    await stopped.wait()
    loop.remove_reader(sys.stdin.fileno())
