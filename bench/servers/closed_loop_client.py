"""A grpc.aio client process in a closed loop, for machines without h2load."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import grpc.aio
import uvloop


async def _run(spec: dict[str, Any]) -> dict[str, float]:
    metadata = tuple(spec["metadata"].items())
    request = bytes.fromhex(spec["request"])
    left = spec["calls"]

    async def one_after_another() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await method(request, metadata=metadata, timeout=30)

    async with grpc.aio.insecure_channel(spec["address"]) as channel:
        method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(spec["path"])
        await channel.channel_ready()
        start = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(spec["concurrency"]):
                group.create_task(one_after_another())
    return {"calls": spec["calls"], "seconds": time.perf_counter() - start}


if __name__ == "__main__":
    print(json.dumps(uvloop.run(_run(json.loads(sys.argv[1])))))
