"""The enumeration guard through a real channel, on two processes, and its false alarms."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import grpc

from tests.members.desk import Desk, refused
from trunkline.api.members.v1 import members_service_pb2 as pb
from trunkline_server.members import guarding
from trunkline_server.members.guard import Guard, GuardLimits, Level
from trunkline_server.rpc.caller import Role

FIRST = 48_217


async def search_for_numbers(desk: Desk, most: int = 60) -> list[int]:
    """Neighbours, one after another, until it is stopped; the levels that were told."""
    levels = []
    for number in range(FIRST, FIRST + most):
        try:
            levels.append((await desk.validate(f"M-{number}")).guard_level)
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.PERMISSION_DENIED
            break
    return levels


async def eventually(check: Any) -> None:
    async with asyncio.timeout(5):
        while not await check():
            await asyncio.sleep(0.02)


async def test_a_search_is_warned_slowed_stopped_everywhere_and_released(
    desk: Desk, start_server: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(guarding, "SLOW_DELAY_S", 0.0)
    monkeypatch.setattr("trunkline_server.members.validating.SLOW_DELAY_S", 0.01)
    async with start_server() as second:
        there = Desk(second.channel, desk.org, desk.database_url)
        levels = await search_for_numbers(desk)
        assert levels == sorted(levels)
        assert set(levels) == {0, 1, 2, 3}
        with refused(grpc.StatusCode.PERMISSION_DENIED, "ENUMERATION_SUSPECTED"):
            await desk.validate("M-1")

        async def is_stopped_there() -> bool:
            try:
                await there.validate("M-1")
            except grpc.aio.AioRpcError:
                return True
            return False

        await eventually(is_stopped_there)
        assert await desk.decision("M-1", Role.ADMIN) == "NOT_FOUND"

        # A process that starts later refuses as well.
        async with start_server() as third:
            late = Desk(third.channel, desk.org, desk.database_url)
            with refused(grpc.StatusCode.PERMISSION_DENIED, "ENUMERATION_SUSPECTED"):
                await late.validate("M-1")

        listed = await desk.call("ListValidationGuards", pb.ListValidationGuardsRequest())
        (guard,) = listed.guards
        assert guard.level == pb.GUARD_LEVEL_STOPPED
        assert guard.longest_sequence >= 16
        request = pb.ReleaseValidationGuardRequest(actor_id=guard.actor_id, note="a drill")
        assert (await there.call("ReleaseValidationGuard", request)).guard == guard
        assert await there.decision("M-1") == "NOT_FOUND"

        async def is_free_here() -> bool:
            try:
                await desk.validate("M-1")
            except grpc.aio.AioRpcError:
                return False
            return True

        await eventually(is_free_here)
        with refused(grpc.StatusCode.NOT_FOUND, "VALIDATION_GUARD_NOT_FOUND"):
            await desk.call("ReleaseValidationGuard", request)
    async with desk.database() as database:
        actions = await database.fetch(
            "SELECT action, details ->> 'level' AS level FROM audit_log WHERE org_id = $1"
            " AND action LIKE 'validation.%' ORDER BY at",
            desk.org.org_id,
        )
    told = [(row["action"], row["level"]) for row in actions]
    assert ("validation.guard", "STOPPED") in told
    assert told[-1] == ("validation.guard.release", "STOPPED")


async def test_a_batch_is_no_way_round_the_guard(desk: Desk) -> None:
    questions = [pb.MemberQuery(member_number=f"M-{n}") for n in range(FIRST, FIRST + 200)]
    request = pb.BatchValidateMembersRequest(queries=questions)
    reply = await desk.call("BatchValidateMembers", request, Role.AGENT)
    assert reply.guard_level == pb.GUARD_LEVEL_STOPPED
    told = [answer.WhichOneof("result") for answer in reply.answers]
    answered = told.count("validation")
    assert answered < 40
    assert told == ["validation"] * answered + ["error"] * (200 - answered)


async def test_systems_are_not_watched(desk: Desk) -> None:
    for number in range(FIRST, FIRST + 40):
        assert await desk.decision(f"M-{number}", Role.SYSTEM) == "NOT_FOUND"


def test_false_alarms_on_realistic_traffic() -> None:
    """500 agents, a shift of 8 hours each: a call a minute, 6 % misread, some asked for twice.

    Members come from one file of consecutive numbers, so that neighbours do occur by chance.
    """
    randomness, guard, limits = random.Random(11), Guard(), GuardLimits()
    warned = slowed = 0
    for agent in range(500):
        now_s = float(randomness.randrange(3_600))
        worst = Level.OK
        for _ in range(480):
            now_s += randomness.expovariate(1 / 60)
            number = f"M-{randomness.randrange(100_000):06}"
            for _ in range(randomness.choice((1, 1, 1, 2))):
                missed = randomness.random() < 0.06
                reading = guard.record(agent, number, missed=missed, limits=limits, now_s=now_s)
                worst = max(worst, reading.level)
        warned += worst >= Level.WARN
        slowed += worst >= Level.SLOW
    assert slowed == 0
    assert warned <= 1  # of 240,000 calls
