"""5,000 concurrent misses on one member: how many queries reach PostgreSQL, per process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import asyncpg
import grpc.aio

from bench import product, roster
from bench.figures import Figure, figure
from bench.process import Server
from bench.product import Stack, Tenant
from bench.registry import Plan
from trunkline.api.members.v1 import members_service_pb2 as pb
from trunkline_server.rpc.caller import Role

NAME = "stampede"
PATH = "/trunkline.api.members.v1.MemberService/ValidateMember"
AT_ONCE = 5_000
CHANNELS = 50
QUOTAS = {"cost_per_second": 10_000_000, "actor_cost_per_second": 10_000_000}
WARM_S = 2.0

# Each read of a member is one scan of this index, whoever makes it.
_READS = "SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = 'members_number'"
_COUNT_NOW = "SELECT pg_stat_force_next_flush()"
STATISTICS_S = 1.5


def run(plan: Plan) -> Iterator[Figure]:
    queries, seconds, answered = [], [], []
    with ExitStack() as started:
        stack = started.enter_context(product.stack())
        tenant = product.seed(stack, quotas=QUOTAS)
        roster.fill(stack.database_url, tenant.org_id, 1_000, indexed=False)
        server = started.enter_context(product.server(stack, "bench.servers.product"))
        asyncio.run(_call_at_once(server, tenant, "M-00000999", 50))
        time.sleep(WARM_S)
        for number in range(plan.pick(full=7, quick=3)):
            before = asyncio.run(_reads(stack))
            began = time.perf_counter()
            done = asyncio.run(_call_at_once(server, tenant, f"M-{number + 1:08d}", AT_ONCE))
            seconds.append(time.perf_counter() - began)
            answered.append(done / AT_ONCE)
            queries.append(asyncio.run(_reads(stack)) - before)
    yield figure(NAME, "queries_per_process", queries)
    yield figure(NAME, "answered", answered, unit="ratio")
    yield figure(NAME, "seconds", seconds, unit="s", better="lower")


async def _reads(stack: Stack) -> float:
    # A backend tells of its scans at most once a second.
    await asyncio.sleep(STATISTICS_S)
    database = await asyncpg.connect(stack.database_url)
    try:
        await database.fetchval(_COUNT_NOW)
        return float(await database.fetchval(_READS))
    finally:
        await database.close()


async def _call_at_once(server: Server, tenant: Tenant, number: str, calls: int) -> int:
    """How many were answered; what is shed is refused without a query, and tried again."""
    request = pb.ValidateMemberRequest(member_number=number).SerializeToString()
    metadata = tuple(tenant.bearer(Role.ADMIN).items())
    options = (("grpc.use_local_subchannel_pool", 1),)
    channels = [grpc.aio.insecure_channel(server.address, options=options) for _ in range(CHANNELS)]
    methods: list[Any] = [channel.unary_unary(PATH) for channel in channels]
    for channel in channels:
        await channel.channel_ready()
    replies = await asyncio.gather(
        *(methods[n % CHANNELS](request, metadata=metadata, timeout=20) for n in range(calls)),
        return_exceptions=True,
    )
    for channel in channels:
        await channel.close()
    return sum(isinstance(reply, bytes) for reply in replies)
