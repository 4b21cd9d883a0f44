"""A closed-loop client whose calls ask for one member after another, in no order."""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from typing import Any

import grpc.aio
import uvloop

from trunkline.api.members.v1 import members_service_pb2 as pb

PATH = "/trunkline.api.members.v1.MemberService/ValidateMember"


async def _run(spec: dict[str, Any]) -> dict[str, float]:
    metadata = tuple(spec["metadata"].items())
    numbers = list(range(spec["first"], spec["first"] + spec["count"]))
    random.Random(7).shuffle(numbers)
    requests = [
        pb.ValidateMemberRequest(member_number=f"M-{number:08d}").SerializeToString()
        for number in numbers
    ]
    left = spec["calls"]

    async def one_after_another() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await method(requests[left % len(requests)], metadata=metadata, timeout=5)

    async with grpc.aio.insecure_channel(spec["address"]) as channel:
        method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(PATH)
        await channel.channel_ready()
        start = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(spec["concurrency"]):
                group.create_task(one_after_another())
    return {"calls": spec["calls"], "seconds": time.perf_counter() - start}


if __name__ == "__main__":
    print(json.dumps(uvloop.run(_run(json.loads(sys.argv[1])))))
