"""Two processes, a killed Valkey, a frozen PostgreSQL: what validation does then."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc

from tests.members.desk import Desk
from tests.running import make_org, running
from trunkline.api.members.v1 import members_service_pb2 as pb
from trunkline_server.local import Postgres, Valkey
from trunkline_server.rpc.caller import Role

VISIBLE_S = 2.0  # with the link up; the bench measures how much sooner it is


async def test_an_update_is_seen_by_the_other_process(desk: Desk, start_server: Any) -> None:
    async with start_server() as second:
        there = Desk(second.channel, desk.org, desk.database_url)
        member = await desk.create("M-1")
        assert await there.decision("M-1") == "ELIGIBLE"
        await desk.update(member, status=pb.MEMBER_STATUS_SUSPENDED)
        assert await desk.decision("M-1") == "NOT_ELIGIBLE"  # the writer's own, at once
        async with asyncio.timeout(VISIBLE_S):
            while await there.decision("M-1") == "ELIGIBLE":
                pass
        assert await there.decision("M-1", consistency=pb.CONSISTENCY_FRESH) == "NOT_ELIGIBLE"


async def test_a_member_that_was_not_there_is_seen_once_it_is(
    desk: Desk, start_server: Any
) -> None:
    async with start_server() as second:
        there = Desk(second.channel, desk.org, desk.database_url)
        assert await there.decision("M-1") == "NOT_FOUND"
        await desk.create("M-1")
        async with asyncio.timeout(VISIBLE_S):
            while await there.decision("M-1") == "NOT_FOUND":
                pass


async def test_validation_goes_on_without_one_failure_while_valkey_is_killed(
    database_url: str, valkey: Valkey
) -> None:
    async with running(database_url, valkey.url()) as started:
        desk = Desk(started.channel, await started.org("north"), database_url)
        for number in range(20):
            await desk.create(f"M-{number}")
        decisions: list[str] = []
        until = time.monotonic() + 2.5
        killed = False
        while time.monotonic() < until:
            decisions.append(await desk.decision(f"M-{len(decisions) % 20}", Role.ADMIN))
            await asyncio.sleep(0.004)  # within the quota: without Valkey a process has a share
            if not killed and len(decisions) == 100:
                await asyncio.to_thread(valkey.kill)
                killed = True
        assert killed
        assert set(decisions) == {"ELIGIBLE"}
        member = await desk.get(member_number="M-3")
        await desk.update(member, status=pb.MEMBER_STATUS_SUSPENDED)
        assert await desk.decision("M-3") == "NOT_ELIGIBLE"


async def test_a_frozen_postgres_is_unavailable_within_the_deadline(
    postgres: Postgres, redis_url: str
) -> None:
    url = postgres.url("trunkline")
    async with running(url, redis_url) as started:
        desk = Desk(started.channel, await make_org(url, "north"), url)
        await desk.create("M-1")
        assert await desk.decision("M-1", Role.ADMIN) == "ELIGIBLE"
        postgres.freeze()
        try:
            assert await desk.decision("M-1", Role.ADMIN) == "ELIGIBLE"  # from memory
            for number in range(4):
                request = pb.ValidateMemberRequest(member_number=f"M-40{number}")
                began = time.monotonic()
                try:
                    await desk.stub.ValidateMember(
                        request, metadata=desk.org.as_(Role.ADMIN), timeout=2.0
                    )
                except grpc.aio.AioRpcError as error:
                    assert error.code() is grpc.StatusCode.UNAVAILABLE
                else:
                    raise AssertionError("a frozen database cannot have answered")
                assert time.monotonic() - began < 2.0
        finally:
            postgres.thaw()
        async with asyncio.timeout(10):
            while True:
                try:
                    assert await desk.decision("M-404", Role.ADMIN) == "NOT_FOUND"
                    break
                except grpc.aio.AioRpcError:
                    await asyncio.sleep(0.1)
