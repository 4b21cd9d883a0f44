"""Every validation is written down: in batches, on drain, after an outage; a crash loses little."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

from tests.members.desk import Desk
from tests.running import Running
from trunkline.api.members.v1 import members_service_pb2 as pb
from trunkline_server.members import lookups
from trunkline_server.rpc.caller import Role

_LOGGED = """
SELECT decision, sum(validations) AS validations, sum(cardinality(member_ids)) AS members
FROM validation_log WHERE org_id = $1 GROUP BY decision
"""


async def logged(desk: Desk) -> Counter[str]:
    async with desk.database() as database:
        rows = await database.fetch(_LOGGED, desk.org.org_id)
    return Counter({row["decision"]: int(row["validations"]) for row in rows})


async def test_each_is_counted_once_within_the_interval(desk: Desk) -> None:
    await desk.create("M-1")
    await desk.create("M-2", status=pb.MEMBER_STATUS_PENDING)
    for _ in range(3):
        await desk.validate("M-1")
    await desk.validate("M-2")
    questions = [pb.MemberQuery(member_number=number) for number in ("M-1", "M-2", "M-3", "M-1")]
    request = pb.BatchValidateMembersRequest(queries=questions)
    await desk.call("BatchValidateMembers", request, Role.SYSTEM)
    began = time.monotonic()
    expected = Counter(ELIGIBLE=5, NOT_ELIGIBLE=2, NOT_FOUND=1)
    async with asyncio.timeout(5):
        while await logged(desk) != expected:
            await asyncio.sleep(0.02)
    assert lookups.FLUSH_INTERVAL_S <= 0.25
    assert time.monotonic() - began < 2  # the interval, and a machine that is busy with others
    async with desk.database() as database:
        row = await database.fetchrow(
            "SELECT reasons, member_ids FROM validation_log WHERE decision = 'NOT_ELIGIBLE' LIMIT 1"
        )
    assert row is not None
    assert row["reasons"] == ["PENDING"]
    assert len(row["member_ids"]) == 1


async def test_a_drain_writes_what_is_left(desk: Desk, start_server: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(lookups.ValidationLog, "start", lambda self: None)
    async with start_server() as other:
        there = Desk(other.channel, desk.org, desk.database_url)
        for _ in range(20):
            await there.validate("M-404", Role.ADMIN)
        assert other.server.members.unwritten == 20
        assert await logged(desk) == Counter()
    assert await logged(desk) == Counter(NOT_FOUND=20)


async def test_an_outage_delays_and_then_nothing_is_lost_or_doubled(
    desk: Desk, server: Running
) -> None:
    async with desk.database() as database:
        await database.execute("REVOKE INSERT ON validation_log FROM trunkline_app")
        for _ in range(10):
            await desk.validate("M-404", Role.ADMIN)
        await asyncio.sleep(2 * lookups.FLUSH_INTERVAL_S)  # it has tried by now, and failed
        assert server.server.members.unwritten == 10
        await database.execute("GRANT INSERT ON validation_log TO trunkline_app")
    async with asyncio.timeout(10):
        while server.server.members.unwritten:
            await asyncio.sleep(0.05)
    assert await logged(desk) == Counter(NOT_FOUND=10)


async def test_the_buffer_is_bounded_and_counts_what_it_drops(desk: Desk, server: Running) -> None:
    log = server.server.members._log
    log._buffer_max = 50
    async with desk.database() as database:
        await database.execute("REVOKE INSERT ON validation_log FROM trunkline_app")
        for _ in range(80):
            await desk.validate("M-404", Role.ADMIN)
        assert len(log) <= 80
        assert log.counts.dropped + len(log) == 80
        await database.execute("GRANT INSERT ON validation_log TO trunkline_app")
