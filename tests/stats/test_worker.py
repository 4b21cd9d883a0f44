"""Roll-ups as leased jobs, and what retention may take away."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from uuid import UUID, uuid4

import asyncpg
import pytest

from tests.stats.conftest import Stats, call, count_everything
from trunkline_server import facts
from trunkline_server.db import Database
from trunkline_server.facts import Fact
from trunkline_server.jobs import Lease, LeaseLost, Runner, Timings, Yield
from trunkline_server.jobs.lease import claim
from trunkline_server.stats import rules
from trunkline_server.stats.worker import (
    _COUNT_HOURS,
    FIND_DIRTY,
    ROLL_UP,
    RollUps,
    count_hours,
    drop_month,
    want_roll_up,
)
from trunkline_server.upkeep import make_partitions

FAST = Timings(heartbeat_s=0.5, poll_s=0.1, grace_s=0.5)


@asynccontextmanager
async def working(db: Database, url: str, count: int = 1) -> AsyncIterator[list[RollUps]]:
    made = [RollUps(db, None) for _ in range(count)]
    runners = [
        Runner(db, url, roll_ups.handlers(), schedules=roll_ups.schedules(), timings=FAST)
        for roll_ups in made
    ]
    running = [asyncio.create_task(runner.run()) for runner in runners]
    try:
        yield made
    finally:
        for runner in runners:
            runner.stop()
        await asyncio.gather(*running)


async def until(stats: Stats, count: int, within_s: float = 20.0, **asked: datetime) -> float:
    """Seconds until the number is there."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    async with asyncio.timeout(within_s):
        while await stats.value("count", **asked) != count:
            await asyncio.sleep(0.05)
    return loop.time() - started


async def test_an_event_is_counted_within_seconds(
    stats: Stats, worker_db: Database, database_url: str
) -> None:
    hour = rules.floor_hour(datetime.now(UTC)) - timedelta(hours=5)
    async with working(worker_db, database_url):
        await stats.record(call(hour))
        assert await until(stats, 1) < 5
        await stats.record(call(hour))
        assert await until(stats, 2) < 5.5


async def test_marks_that_nobody_hinted_at_are_found(
    stats: Stats, worker_db: Database, database_url: str, admin: asyncpg.Connection
) -> None:
    await a_fact(worker_db, stats.org.org_id, datetime.now(UTC))
    async with worker_db.system_tx() as tx:
        await want_roll_up(tx, UUID(int=0))  # any other job does not stand in the way
    async with working(worker_db, database_url):
        assert await until(stats, 1) < 15
    kinds = {row["kind"] for row in await admin.fetch("SELECT kind FROM jobs")}
    assert {FIND_DIRTY, ROLL_UP} <= kinds


async def a_fact(db: Database, org_id: UUID, at: datetime) -> None:
    async with db.tenant_tx(org_id) as tx:
        await facts.append(tx, org_id, [Fact("CALL", at, None)])


async def test_two_workers_count_everything_once_while_events_come_in(
    stats: Stats, worker_db: Database, database_url: str, admin: asyncpg.Connection
) -> None:
    now = datetime.now(UTC)
    async with working(worker_db, database_url, count=2):
        for batch in range(12):
            events = [call(now - timedelta(hours=batch * i % 30)) for i in range(40)]
            await stats.record(*events)
            await stats.record(*events)
            await asyncio.sleep(0.1)
        await until(stats, 480)
    live = "SELECT count(*) FROM jobs WHERE kind = $1"
    assert await admin.fetchval(live, ROLL_UP) <= 2  # one at a time


async def test_a_mark_made_while_an_hour_is_counted_is_not_lost(
    stats: Stats, worker_db: Database, admin: asyncpg.Connection
) -> None:
    org_id, hour = stats.org.org_id, rules.floor_hour(datetime.now(UTC)) - timedelta(hours=2)
    await a_fact(worker_db, org_id, hour)
    async with worker_db.tenant_tx(org_id) as writer:
        # Its event is not to be seen yet when the roll-up reads, its mark does not wait for it.
        await facts.append(writer, org_id, [Fact("CALL", hour, None)])
        async with asyncio.timeout(3):
            async with worker_db.tenant_tx(org_id) as tx:
                assert await count_hours(tx, org_id) == 1
    assert await stats.value("count") == 1
    await count_everything(worker_db, org_id)
    assert await stats.value("count") == 2
    assert await admin.fetchval("SELECT count(*) FROM stats_dirty") == 0


async def test_writers_of_one_hour_do_not_wait_for_each_other_nor_for_a_roll_up(
    stats: Stats, worker_db: Database
) -> None:
    org_id, hour = stats.org.org_id, rules.floor_hour(datetime.now(UTC)) - timedelta(hours=2)
    await a_fact(worker_db, org_id, hour)
    async with worker_db.tenant_tx(org_id) as rolling:
        await count_hours(rolling, org_id)
        async with worker_db.tenant_tx(org_id) as writer:
            await facts.append(writer, org_id, [Fact("CALL", hour, None)])
            async with asyncio.timeout(0.9):  # less than any lock_timeout
                await a_fact(worker_db, org_id, hour)
    await count_everything(worker_db, org_id)
    assert await stats.value("count") == 3


async def test_a_run_that_dies_leaves_its_marks(
    stats: Stats, worker_db: Database, admin: asyncpg.Connection
) -> None:
    org_id = stats.org.org_id
    await stats.record(call(datetime.now(UTC)))
    before = await admin.fetchval("SELECT count(*) FROM stats_dirty")
    with pytest.raises(RuntimeError):
        async with worker_db.tenant_tx(org_id) as tx:
            assert await count_hours(tx, org_id)
            raise RuntimeError("the worker died")
    assert await admin.fetchval("SELECT count(*) FROM stats_dirty") == before > 0
    assert await stats.value("count") == 0
    await count_everything(worker_db, org_id)
    assert await stats.value("count") == 1


async def test_a_worker_without_the_lease_counts_nothing(
    stats: Stats, worker_db: Database, admin: asyncpg.Connection
) -> None:
    org_id = stats.org.org_id
    await a_fact(worker_db, org_id, datetime.now(UTC))
    async with worker_db.system_tx() as tx:
        await want_roll_up(tx, org_id)
    lease = await leased(worker_db)
    assert lease is not None
    async with worker_db.system_tx() as tx:
        await want_roll_up(tx, org_id)  # is there already
    assert await leased(worker_db) is None
    await admin.execute("UPDATE jobs SET lease_epoch = lease_epoch + 1")  # another has taken over
    with pytest.raises(LeaseLost):
        await RollUps(worker_db, None).roll_up(lease)
    assert await admin.fetchval("SELECT count(*) FROM stats_hours") == 0
    assert await admin.fetchval("SELECT count(*) FROM stats_dirty") == 1


async def leased(db: Database) -> Lease | None:
    async with db.system_tx() as tx:
        return await claim(tx, [ROLL_UP], "w", FAST)


async def test_those_who_are_watched_are_counted_more_often(worker_db: Database) -> None:
    now = 1_000.0
    roll_ups = RollUps(worker_db, None, clock=lambda: now)
    org_id = uuid4()
    calm = roll_ups._rest(org_id, True, 0.0)
    roll_ups._watch(str(org_id))
    watched = roll_ups._rest(org_id, True, 0.0)
    assert isinstance(watched, Yield) and isinstance(calm, Yield)
    assert watched.after_s < calm.after_s
    slow = roll_ups._rest(org_id, True, 2.0)
    assert slow == Yield(after_s=20)
    now += 100
    assert not roll_ups.watched(org_id)


# ---- partitions and retention ----

OLD = date(2024, 3, 1)


@pytest.fixture
async def old_month(stats: Stats, worker_db: Database, admin: asyncpg.Connection) -> Stats:
    """Events of two organisations in a partition of long ago, not counted yet."""
    await admin.fetchval("SELECT ensure_month_partition('events', $1)", OLD)
    for day in (1, 15, 31):
        await a_fact(worker_db, stats.org.org_id, datetime(2024, 3, day, 12, tzinfo=UTC))
    await a_fact(worker_db, UUID(int=5), datetime(2024, 3, 2, tzinfo=UTC))
    return stats


async def drop(db: Database, month: date = OLD, kept_days: int = 400) -> str:
    async with db.system_tx() as tx:
        return await drop_month(tx, month, kept_days)


async def test_retention_refuses_what_is_not_rolled_up(
    old_month: Stats, worker_db: Database, admin: asyncpg.Connection
) -> None:
    assert await drop(worker_db) == "hours are dirty"
    async with worker_db.tenant_tx(old_month.org.org_id) as tx:
        await count_hours(tx, old_month.org.org_id)
    # One organisation is enough to keep the month.
    assert await drop(worker_db) == "hours are dirty"
    async with worker_db.tenant_tx(UUID(int=5)) as tx:
        await count_hours(tx, UUID(int=5))
    assert await drop(worker_db) == "days are dirty"
    for org_id in (old_month.org.org_id, UUID(int=5)):
        await count_everything(worker_db, org_id)
    # An event that never was counted, however it got there.
    await admin.execute("UPDATE stats_hours SET events = events - 1 WHERE org_id = $1",
                        old_month.org.org_id)  # fmt: skip
    assert await drop(worker_db) == "events are not counted"
    await admin.execute("UPDATE stats_hours SET events = events + 1 WHERE org_id = $1",
                        old_month.org.org_id)  # fmt: skip
    assert await drop(worker_db, kept_days=10_000) == "it is kept"
    start = datetime(2024, 3, 1, tzinfo=UTC)
    asked = {"start": start, "end": datetime(2024, 4, 1, tzinfo=UTC)}
    assert await old_month.value("count", **asked) == 3
    assert await drop(worker_db) == ""
    assert await admin.fetchval("SELECT count(*) FROM events") == 0
    assert await old_month.value("count", **asked) == 3
    assert await drop(worker_db) == "there is none"


async def test_the_schedule_drops_what_it_may(
    old_month: Stats, worker_db: Database, database_url: str, admin: asyncpg.Connection
) -> None:
    for org_id in (old_month.org.org_id, UUID(int=5)):
        await count_everything(worker_db, org_id)
    async with working(worker_db, database_url):
        async with asyncio.timeout(15):
            while await admin.fetchval("SELECT to_regclass('events_y2024m03')") is not None:
                await asyncio.sleep(0.1)


async def test_this_month_is_never_dropped(worker_db: Database, admin: asyncpg.Connection) -> None:
    month = datetime.now(UTC).date().replace(day=1)
    await admin.fetchval("SELECT ensure_month_partition('events', $1)", month)
    assert await drop(worker_db, month, kept_days=0) == "it is kept"
    assert await drop(worker_db, date(2020, 1, 1)) == "there is none"


async def test_partitions_are_there_before_events_are(
    database_url: str, admin: asyncpg.Connection
) -> None:
    await make_partitions(database_url)
    today = datetime.now(UTC).date()
    for day in (today - rules.EVENT_AGE_MAX, today, today + timedelta(days=60)):
        name = f"events_y{day:%Y}m{day:%m}"
        assert await admin.fetchval("SELECT to_regclass($1::text)", name) is not None, name


async def test_events_astray_are_an_alarm(
    stats: Stats, worker_db: Database, database_url: str
) -> None:
    await a_fact(worker_db, stats.org.org_id, datetime(2031, 1, 1, tzinfo=UTC))
    async with working(worker_db, database_url) as (roll_ups,):
        async with asyncio.timeout(15):
            while roll_ups.astray != 1:
                await asyncio.sleep(0.05)


async def test_an_hour_is_read_by_its_index(
    stats: Stats, worker_db: Database, admin: asyncpg.Connection
) -> None:
    """However many events the day has."""
    await admin.execute(
        "INSERT INTO events (org_id, occurred_on, event_id, kind, occurred_at)"
        " SELECT $1, (now() AT TIME ZONE 'UTC')::date - 1, gen_random_uuid(), 'CALL',"
        " ((now() AT TIME ZONE 'UTC')::date - 1)::timestamptz + n * interval '4 seconds'"
        " FROM generate_series(0, 20000) AS n",
        stats.org.org_id,
    )
    await admin.execute("ANALYZE events")
    hour = datetime.combine(
        datetime.now(UTC).date() - timedelta(days=1), datetime.min.time(), tzinfo=UTC
    ) + timedelta(hours=9)
    rows = await admin.fetch(
        f"EXPLAIN (ANALYZE, COSTS off, TIMING off, SUMMARY off) {_COUNT_HOURS}",
        *(stats.org.org_id, [hour], ["CALL"]),
    )
    plan = "\n".join(row[0] for row in rows)
    assert "kind_occurred_at" in plan or "events_hour" in plan, plan
    assert "Seq Scan on events" not in plan, plan
    # Nine hundred events of an hour were read, not the day's twenty thousand.
    assert not re.search(r"on events\S* .*actual rows=\d{4,}", plan), plan
