"""How soon an update is seen by every process, and what is granted once the link is cut."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import grpc.aio
from google.protobuf.field_mask_pb2 import FieldMask

from bench import product, roster
from bench.figures import Figure, figure
from bench.process import Server
from bench.product import Tenant
from bench.registry import CannotMeasure, Plan
from trunkline.api.members.v1 import members_service_pb2 as pb
from trunkline.api.members.v1.members_service_pb2_grpc import MemberServiceStub
from trunkline_server.members.validation import SHORT_TTL_S
from trunkline_server.rpc.caller import Role

NAME = "stale"
PROCESSES = 2
# A cut link is noticed within this time; from then on entries live SHORT_TTL_S.
NOTICE_S = 1.0
QUOTAS = {"cost_per_second": 10_000_000, "actor_cost_per_second": 10_000_000}


def run(plan: Plan) -> Iterator[Figure]:
    updates = plan.pick(full=300, quick=60)
    with ExitStack() as started:
        stack = started.enter_context(product.stack())
        if stack.valkey_pid is None:
            raise CannotMeasure("REDIS_URL names a Valkey that is not ours to freeze: unset it")
        tenant = product.seed(stack, quotas=QUOTAS)
        roster.fill(stack.database_url, tenant.org_id, 1_000, indexed=False)
        servers = [
            started.enter_context(product.server(stack, "bench.servers.product"))
            for _ in range(PROCESSES)
        ]
        time.sleep(NOTICE_S)
        visible_ms = asyncio.run(_visible(servers, tenant, updates))
        os.kill(stack.valkey_pid, signal.SIGSTOP)
        try:
            stale = asyncio.run(_stale_grants(servers, tenant, plan.pick(full=40, quick=10)))
        finally:
            os.kill(stack.valkey_pid, signal.SIGCONT)
    visible_ms.sort()
    yield figure(NAME, "visible_p99_ms", [visible_ms[int(0.99 * (len(visible_ms) - 1))]])
    yield figure(NAME, "stale_grants", [float(stale)])
    yield figure(
        NAME, "visible_p50_ms", [visible_ms[len(visible_ms) // 2]], unit="ms", better="lower"
    )


class _Desk:
    """One process as an administrator sees it."""

    def __init__(self, channel: grpc.aio.Channel, tenant: Tenant) -> None:
        self._stub: Any = MemberServiceStub(channel)
        self._metadata = tuple(tenant.bearer(Role.ADMIN).items())

    async def is_eligible(self, number: str) -> bool:
        request = pb.ValidateMemberRequest(member_number=number)
        reply = await self._stub.ValidateMember(request, metadata=self._metadata, timeout=5)
        return bool(reply.validation.decision == pb.DECISION_ELIGIBLE)

    async def member_id(self, number: str) -> str:
        request = pb.GetMemberRequest(member_number=number)
        reply = await self._stub.GetMember(request, metadata=self._metadata, timeout=5)
        return str(reply.member.member_id)

    async def set_status(self, member_id: str, status: pb.MemberStatus.ValueType) -> None:
        request = pb.UpdateMemberRequest(
            member=pb.Member(member_id=member_id, status=status),
            update_mask=FieldMask(paths=["status"]),
        )
        await self._stub.UpdateMember(request, metadata=self._metadata, timeout=5)


async def _visible(servers: list[Server], tenant: Tenant, updates: int) -> list[float]:
    """From the answer to the update until every process gives the new decision."""
    channels = [grpc.aio.insecure_channel(server.address) for server in servers]
    desks = [_Desk(channel, tenant) for channel in channels]
    number = "M-00000002"
    member_id = await desks[0].member_id(number)
    taken_ms = []
    for turn in range(updates):
        suspended = turn % 2 == 0
        for desk in desks:
            await desk.is_eligible(number)
        status = pb.MEMBER_STATUS_SUSPENDED if suspended else pb.MEMBER_STATUS_ACTIVE
        await desks[turn % PROCESSES].set_status(member_id, status)
        answered = time.perf_counter()
        for desk in desks:
            while await desk.is_eligible(number) is suspended:
                pass
        taken_ms.append((time.perf_counter() - answered) * 1000)
    for channel in channels:
        await channel.close()
    return taken_ms


async def _stale_grants(servers: list[Server], tenant: Tenant, members: int) -> int:
    """Members suspended with the link cut, and still granted once the shortened life is over."""
    await asyncio.sleep(NOTICE_S)
    channels = [grpc.aio.insecure_channel(server.address) for server in servers]
    writer, reader = (_Desk(channel, tenant) for channel in channels)
    stale = 0
    for offset in range(members):
        number = f"M-{100 + offset * 10 + 1:08d}"
        member_id = await writer.member_id(number)
        await reader.is_eligible(number)
        await writer.set_status(member_id, pb.MEMBER_STATUS_SUSPENDED)
        await asyncio.sleep(SHORT_TTL_S)
        stale += await reader.is_eligible(number)
    for channel in channels:
        await channel.close()
    return stale
