"""RecordEvents and StreamEvents: once, whatever is sent how often, and each judged on its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import asyncpg
import grpc.aio
import pytest

from tests.running import Running, details
from tests.stats.conftest import Stats, call, count_everything
from trunkline.api.errors.v1 import reason_pb2
from trunkline.api.stats.v1 import stats_service_pb2 as pb
from trunkline_server.db import Database
from trunkline_server.rpc.caller import Role

RECORDED = pb.EVENT_STATUS_RECORDED
DUPLICATE = pb.EVENT_STATUS_DUPLICATE
CONFLICT = pb.EVENT_STATUS_CONFLICT
REFUSED = pb.EVENT_STATUS_REFUSED


def now() -> datetime:
    return datetime.now(UTC)


async def test_an_event_is_recorded_once_however_often_it_is_sent(
    stats: Stats, admin: asyncpg.Connection
) -> None:
    events = [call(now() - timedelta(minutes=i), outcome=f"o{i % 3}") for i in range(50)]
    first = await stats.record(*events)
    assert list(first.statuses) == [RECORDED] * 50
    marks = await admin.fetchval("SELECT count(*) FROM stats_dirty")
    again = await stats.record(*reversed(events))
    assert list(again.statuses) == [DUPLICATE] * 50
    assert again.counts.duplicates == 50 and not again.problems
    assert await admin.fetchval("SELECT count(*) FROM events") == 50
    # A retry changes nothing, so it makes no work.
    assert await admin.fetchval("SELECT count(*) FROM stats_dirty") == marks


async def test_the_same_id_with_other_content_is_told_and_the_first_stays(
    stats: Stats, admin: asyncpg.Connection
) -> None:
    at = now() - timedelta(minutes=5)
    kept = call(at, seconds=60)
    other = call(at, seconds=61, event_id=kept.event_id)
    await stats.record(kept)
    reply = await stats.record(call(at), other, call(at))
    assert list(reply.statuses) == [RECORDED, CONFLICT, RECORDED]
    (problem,) = reply.problems
    assert (problem.index, problem.event_id) == (1, kept.event_id)
    assert problem.error.reason == reason_pb2.REASON_EVENT_CONFLICT
    stored = await admin.fetchval(
        "SELECT duration_us FROM events WHERE event_id = $1", kept.event_id
    )
    assert stored == 60_000_000


async def test_one_batch_may_hold_an_event_twice(stats: Stats) -> None:
    one = call(now())
    other = call(now() - timedelta(hours=3), event_id=one.event_id)
    reply = await stats.record(one, one, other)
    assert list(reply.statuses) == [RECORDED, DUPLICATE, CONFLICT]
    again = await stats.record(one, one, other)
    assert list(again.statuses) == [DUPLICATE, DUPLICATE, CONFLICT]


async def test_attributes_are_part_of_the_content_in_any_order(stats: Stats) -> None:
    one = call(now() - timedelta(minutes=1))
    one.attributes.update({"queue": "north", "line": "2"})
    same, other = pb.Event(), pb.Event()
    same.CopyFrom(one)
    other.CopyFrom(one)
    same.attributes.clear()
    same.attributes.update({"line": "2", "queue": "north"})
    other.attributes["line"] = "3"
    assert list((await stats.record(one)).statuses) == [RECORDED]
    assert list((await stats.record(same)).statuses) == [DUPLICATE]
    assert list((await stats.record(other)).statuses) == [CONFLICT]


def without_id() -> pb.Event:
    event = call(now())
    event.event_id = ""
    return event


def changed(**fields: object) -> pb.Event:
    event = call(now())
    for name, value in fields.items():
        setattr(event, name, value)
    return event


def with_duration(seconds: int, nanos: int = 0) -> pb.Event:
    event = call(now())
    event.duration.seconds, event.duration.nanos = seconds, nanos
    return event


def with_attributes(count: int, length: int = 1) -> pb.Event:
    event = call(now())
    event.attributes.update({f"key_{i}": "x" * length for i in range(count)})
    return event


def without_time() -> pb.Event:
    event = call(now())
    event.ClearField("occurred_at")
    return event


@pytest.mark.parametrize(
    ("event", "reason", "field"),
    [
        (without_id(), reason_pb2.REASON_EVENT_INVALID, "event_id"),
        (changed(event_id="not-a-uuid"), reason_pb2.REASON_EVENT_INVALID, "event_id"),
        (changed(kind=0), reason_pb2.REASON_EVENT_INVALID, "kind"),
        (changed(kind=99), reason_pb2.REASON_EVENT_INVALID, "kind"),
        (changed(kind=pb.EVENT_KIND_SIGN_IN), reason_pb2.REASON_EVENT_KIND_NOT_ALLOWED, ""),
        (without_time(), reason_pb2.REASON_EVENT_INVALID, "occurred_at"),
        (call(now() - timedelta(days=35, minutes=1)), reason_pb2.REASON_EVENT_TOO_OLD, ""),
        (call(now() + timedelta(minutes=30)), reason_pb2.REASON_EVENT_TOO_NEW, ""),
        (changed(agent_id="agent 7"), reason_pb2.REASON_EVENT_INVALID, "agent_id"),
        (with_duration(-1), reason_pb2.REASON_EVENT_INVALID, "duration"),
        (with_duration(0, -1), reason_pb2.REASON_EVENT_INVALID, "duration"),
        (with_duration(604_801), reason_pb2.REASON_EVENT_INVALID, "duration"),
        (changed(outcome="a b"), reason_pb2.REASON_EVENT_INVALID, "outcome"),
        (changed(outcome="x" * 65), reason_pb2.REASON_EVENT_INVALID, "outcome"),
        (changed(quantity=-1), reason_pb2.REASON_EVENT_INVALID, "quantity"),
        (changed(quantity=1_000_000_001), reason_pb2.REASON_EVENT_INVALID, "quantity"),
        (with_attributes(21), reason_pb2.REASON_EVENT_INVALID, "attributes"),
        (with_attributes(1, 257), reason_pb2.REASON_EVENT_INVALID, "attributes"),
    ],
)  # fmt: skip
async def test_a_bad_event_is_refused_alone(
    stats: Stats, event: pb.Event, reason: int, field: str
) -> None:
    reply = await stats.record(call(now()), event, call(now()))
    assert list(reply.statuses) == [RECORDED, REFUSED, RECORDED]
    (problem,) = reply.problems
    assert (problem.index, problem.error.reason) == (1, reason)
    assert [f.field for f in problem.error.fields] == ([field] if field else [])
    assert (reply.counts.recorded, reply.counts.refused) == (2, 1)


async def test_a_batch_has_bounds(stats: Stats) -> None:
    for events in ([], [call(now())] * 1_001):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stats.record(*events)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert details(caught.value)["BadRequest"].field_violations[0].field == "events"


async def test_the_edges_of_the_window_are_inside(stats: Stats) -> None:
    oldest = call(now() - timedelta(days=35) + timedelta(minutes=1))
    newest = call(now() + timedelta(minutes=4))
    assert list((await stats.record(oldest, newest)).statuses) == [RECORDED, RECORDED]


async def test_agents_speak_for_themselves_only(stats: Stats, admin: asyncpg.Connection) -> None:
    mine, theirs = call(now()), call(now(), agent=str(uuid4()))
    reply = await stats.record(mine, theirs, role=Role.AGENT)
    assert list(reply.statuses) == [RECORDED, REFUSED]
    assert reply.problems[0].error.reason == reason_pb2.REASON_ROLE_NOT_ALLOWED
    assert list((await stats.record(theirs)).statuses) == [RECORDED]
    agent = await admin.fetchval("SELECT agent_id FROM events WHERE event_id = $1", mine.event_id)
    assert await admin.fetchval("SELECT role FROM api_keys WHERE key_id = $1", agent) == "AGENT"


async def test_batches_that_share_events_do_not_block_each_other(stats: Stats) -> None:
    events = [call(now() - timedelta(seconds=i)) for i in range(400)]
    orders = [events, events[::-1], events[200:] + events[:200], events[::2] + events[1::2]]
    replies = await asyncio.gather(*(stats.record(*order) for order in orders))
    assert sum(reply.counts.recorded for reply in replies) == 400
    assert sum(reply.counts.duplicates for reply in replies) == 1_200


async def requests(*batches: list[pb.Event]) -> AsyncIterator[pb.StreamEventsRequest]:
    for events in batches:
        yield pb.StreamEventsRequest(events=events)


async def test_a_stream_is_answered_with_what_became_of_it(stats: Stats) -> None:
    good = [[call(now() - timedelta(seconds=i)) for i in range(900)] for _ in range(12)]
    bad = [good[0][0], changed(outcome="a b")]
    reply = await stats.stub.StreamEvents(requests(*good, bad), metadata=stats.as_(Role.SYSTEM))
    counts = reply.counts
    assert (counts.recorded, counts.duplicates, counts.refused) == (10_800, 1, 1)
    assert [problem.index for problem in reply.problems] == [10_801]
    assert reply.unread_events == 0


async def test_an_empty_stream_records_nothing(stats: Stats) -> None:
    reply = await stats.stub.StreamEvents(requests(), metadata=stats.as_(Role.SYSTEM))
    assert reply == pb.StreamEventsResponse(counts=pb.EventCounts())


async def test_a_stream_is_told_of_a_shutdown(server: Running, stats: Stats) -> None:
    first_is_in, stop_now = asyncio.Event(), asyncio.Event()

    async def sending() -> AsyncIterator[pb.StreamEventsRequest]:
        yield pb.StreamEventsRequest(events=[call(now())])
        first_is_in.set()
        await stop_now.wait()
        yield pb.StreamEventsRequest(events=[call(now()), call(now())])

    async def run() -> pb.StreamEventsResponse:
        return await stats.stub.StreamEvents(sending(), metadata=stats.as_(Role.SYSTEM))

    call_ = asyncio.create_task(run())
    await first_is_in.wait()
    stopping = asyncio.create_task(server.server.stop())
    await server.server.drain.draining.wait()
    stop_now.set()
    reply = await call_
    await stopping
    assert reply.counts.recorded + reply.unread_events == 3
    assert reply.unread_events >= 2


async def test_events_of_others_are_nobodys_business(
    server: Running, stats: Stats, worker_db: Database
) -> None:
    event = call(now() - timedelta(minutes=2))
    await stats.record(event)
    other = Stats(stats.stub, await server.org("other"))
    # The same id in another organisation is another event.
    assert list((await other.record(event)).statuses) == [RECORDED]
    for org in (stats.org, other.org):
        await count_everything(worker_db, org.org_id)
    assert await stats.value("count") == 1
    assert await other.value("count") == 1
