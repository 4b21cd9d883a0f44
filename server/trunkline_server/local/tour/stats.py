"""How are we doing: a day of calls, its numbers, and what late events do to them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from uuid import NAMESPACE_OID, uuid5

from trunkline import AsyncClient
from trunkline.api.stats.v1 import stats_service_pb2 as pb
from trunkline_server.local.tour.guide import Tour

AGENTS = 200
CALLS_AN_AGENT = 12
LATE_CALLS = 60
COUNTED_WITHIN_S = 30.0
POLL_S = 0.2
_OUTCOMES = ("resolved", "resolved", "resolved", "transferred", "callback")


async def visit(tour: Tour) -> None:
    day = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=1)
    async with tour.client("ADMIN") as admin:
        events = list(_calls(day, CALLS_AN_AGENT))
        recorded = await admin.stats.record(events)
        tour.say(f"{recorded.counts.recorded:,} calls of {AGENTS} agents are recorded.")
        again = await admin.stats.record(events)
        tour.expect(again.counts.recorded == 0, "a repeat was recorded twice")
        tour.say("Sent once more, as after a lost connection: nothing is counted twice.")
        before = await _counted(tour, admin, day)
        await _overview(tour, admin, day, before)
        await _late(tour, admin, day, before)


def _calls(day: datetime, each: int, *, late: bool = False) -> Iterator[pb.Event]:
    """The same ids on every run, so that a second tour records nothing new."""
    for agent in range(AGENTS):
        for number in range(each):
            name = f"{day:%Y-%m-%d} {agent} {number} {late}"
            event = pb.Event(
                event_id=str(uuid5(NAMESPACE_OID, name)),
                kind=pb.EVENT_KIND_CALL,
                agent_id=str(uuid5(NAMESPACE_OID, f"agent {agent}")),
                outcome=_OUTCOMES[(agent + number) % len(_OUTCOMES)],
            )
            minute = 8 * 60 + (agent * 7 + number * 41) % (9 * 60)
            event.occurred_at.FromDatetime(day + timedelta(minutes=minute))
            event.duration.FromSeconds(60 + (agent * 37 + number * 101) % 840)
            yield event


async def _counted(tour: Tour, admin: AsyncClient, day: datetime) -> pb.QueryStatsResponse:
    """Waits for the workers; a number that is not complete says so itself."""
    try:
        async with asyncio.timeout(COUNTED_WITHIN_S):
            while True:
                reply = await admin.stats.query(
                    "calls", day, day + timedelta(days=1), time_zone="UTC", values=["count"]
                )
                if not reply.finality.hours_pending and reply.finality.revision:
                    return reply
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        tour.expect(False, "events were not counted: is a worker running?")
        raise


async def _overview(
    tour: Tour, admin: AsyncClient, day: datetime, counted: pb.QueryStatsResponse
) -> None:
    overview = await admin.stats.overview(
        from_time=day, to_time=day + timedelta(days=1), time_zone="UTC"
    )
    calls = overview.calls
    tour.expect(calls.count == _count(counted), "the overview and the series differ")
    tour.say(
        f"Yesterday: {calls.count:,} calls by {calls.active_agents} agents, half of them within"
        f" {calls.handle_seconds_p50 / 60:.1f} minutes, 99 % within"
        f" {calls.handle_seconds_p99 / 60:.1f}."
    )
    final = counted.finality.final_after.ToDatetime(UTC)
    tour.say(f"Revision {counted.finality.revision}; final after {final:%Y-%m-%d %H:%M} UTC.")


async def _late(
    tour: Tour, admin: AsyncClient, day: datetime, before: pb.QueryStatsResponse
) -> None:
    late = list(_calls(day, 1, late=True))[:LATE_CALLS]
    recorded = await admin.stats.record(late)
    tour.say(f"{len(late)} calls arrive a day late, from an agent's laptop that was offline.")
    after = await _counted(tour, admin, day)
    expected = _count(before) + recorded.counts.recorded
    tour.expect(_count(after) == expected, "late events are not in the number")
    if recorded.counts.recorded:
        grown = after.finality.revision > before.finality.revision
        tour.expect(grown, "a corrected number kept its revision")
    tour.say(
        f"The number is corrected to {_count(after):,}: revision {after.finality.revision},"
        f" {after.finality.late_events} late events."
    )


def _count(reply: pb.QueryStatsResponse) -> int:
    return int(reply.series[0].points[0].values[0].value)
