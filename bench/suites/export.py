"""ExportMembers beside COPY TO STDOUT of the same rows, and a hundred exports at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import asyncpg
import grpc.aio

from bench import product, roster
from bench.alternate import alternate, ratios
from bench.figures import Figure, figure
from bench.process import Server
from bench.product import Stack, Tenant
from bench.registry import CannotMeasure, Plan
from bench.sampler import Sampler
from trunkline.api.members.v1 import members_service_pb2 as pb
from trunkline_server.rpc.caller import Role

NAME = "export"
PATH = "/trunkline.api.members.v1.MemberService/ExportMembers"
AT_ONCE = 100
ROWS_EACH = 10_000
QUOTA_S = 2.0
QUOTAS = {"cost_per_second": 10_000_000, "actor_cost_per_second": 10_000_000}

_COPY = """
SELECT member_number, given_name, family_name, email, phone, date_of_birth, plan, status,
       effective_from, effective_to
FROM members WHERE org_id = $1 AND deleted_at IS NULL
"""


def run(plan: Plan) -> Iterator[Figure]:
    rows = plan.pick(full=500_000, quick=100_000)
    with ExitStack() as started:
        stack = started.enter_context(product.stack())
        big = product.seed(stack, quotas=QUOTAS)
        small = product.seed(stack, slug="small", quotas=QUOTAS)
        roster.fill(stack.database_url, big.org_id, rows, indexed=False)
        roster.fill(stack.database_url, small.org_id, ROWS_EACH, indexed=False)
        server = started.enter_context(product.server(stack, "bench.servers.product"))
        sides = {
            "copy": lambda: asyncio.run(_copied(stack, big)),
            "export": lambda: asyncio.run(_exported(server, big)),
        }
        alternate(sides, rounds=1)
        values = alternate(sides, rounds=plan.pick(full=7, quick=3))
        # The server learns the tenant's quota with its first call.
        asyncio.run(_exported(server, small))
        time.sleep(QUOTA_S)
        seconds, growth_mb = [], []
        for _ in range(plan.pick(full=5, quick=3)):
            with Sampler(server.pid) as sampled:
                seconds.append(asyncio.run(_hundred(server, small)))
            growth_mb.append((sampled.peak_rss_mb - sampled.first_rss_mb) / AT_ONCE)
    yield figure(NAME, "to_copy_out", ratios(values["export"], values["copy"]))
    yield figure(NAME, "hundred_exports_s", seconds)
    yield figure(NAME, "mb_per_export", growth_mb, unit="MB", better="lower")
    for name, runs in values.items():
        yield figure(NAME, f"{name}_mb_per_s", [each / 1e6 for each in runs], unit="MB/s")


async def _copied(stack: Stack, tenant: Tenant) -> float:
    """Bytes a second."""
    size = 0

    async def count(data: bytes) -> None:
        nonlocal size
        size += len(data)

    database = await asyncpg.connect(stack.database_url)
    try:
        began = time.perf_counter()
        await database.copy_from_query(_COPY, tenant.org_id, output=count, format="csv")
        return size / (time.perf_counter() - began)
    finally:
        await database.close()


async def _exported(server: Server, tenant: Tenant) -> float:
    async with grpc.aio.insecure_channel(server.address) as channel:
        began = time.perf_counter()
        size, _ = await _export(channel, tenant)
        return size / (time.perf_counter() - began)


async def _hundred(server: Server, tenant: Tenant) -> float:
    # Twenty to a connection, as a proxy would pass them on.
    options = (("grpc.use_local_subchannel_pool", 1),)
    channels = [grpc.aio.insecure_channel(server.address, options=options) for _ in range(5)]
    for channel in channels:
        await channel.channel_ready()
    began = time.perf_counter()
    done = await asyncio.gather(
        *(_export(channels[number % len(channels)], tenant) for number in range(AT_ONCE))
    )
    seconds = time.perf_counter() - began
    for channel in channels:
        await channel.close()
    if any(rows != ROWS_EACH for _, rows in done):
        raise CannotMeasure("an export was not complete")
    return seconds


async def _export(channel: grpc.aio.Channel, tenant: Tenant) -> tuple[int, int]:
    call: Any = channel.unary_stream(
        PATH,
        request_serializer=pb.ExportMembersRequest.SerializeToString,
        response_deserializer=pb.ExportMembersResponse.FromString,
    )
    size = rows = 0
    metadata = tuple(tenant.bearer(Role.ADMIN).items())
    async for part in call(pb.ExportMembersRequest(), metadata=metadata, timeout=120):
        size += len(part.data)
        rows = part.rows_sent
    return size, rows
