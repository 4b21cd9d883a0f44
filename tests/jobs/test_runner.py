"""The runner in this process: outcomes, hints, schedules, turns, stuck work."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from uuid import UUID

import asyncpg
import pytest

from tests.jobs.conftest import FAST
from trunkline_server.db import Database
from trunkline_server.ids import uuid7
from trunkline_server.jobs import (
    SYSTEM_ORG,
    Dead,
    Done,
    Failed,
    Handler,
    Lease,
    LeaseLost,
    Outcome,
    Retry,
    Runner,
    Schedule,
    Timings,
    Yield,
    enqueue,
    queue,
)
from trunkline_server.jobs.schedule import fire


@asynccontextmanager
async def running(
    db: Database,
    dsn: str,
    handlers: Mapping[str, Handler],
    *,
    timings: Timings = FAST,
    schedules: Sequence[Schedule] = (),
    slots: int = 4,
) -> AsyncIterator[Runner]:
    runner = Runner(db, dsn, handlers, timings=timings, schedules=schedules, slots=slots)
    task = asyncio.create_task(runner.run())
    try:
        yield runner
    finally:
        runner.stop()
        async with asyncio.timeout(20):
            await task


async def put(db: Database, org: UUID, **options: object) -> UUID:
    async with db.tenant_tx(org) as tx:
        return await enqueue(tx, org, "test", **options)  # type: ignore[arg-type]


async def settled(admin: asyncpg.Connection, sql: str) -> None:
    async with asyncio.timeout(20):
        while not await admin.fetchval(sql):
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("outcome", "state", "error"),
    [
        (Done(), "SUCCEEDED", ""),
        (Failed("BAD_FILE"), "FAILED", "BAD_FILE"),
        (Dead("CANNOT"), "DEAD", "CANNOT"),
        (Retry("AGAIN"), "DEAD", "AGAIN"),
        (Retry("AGAIN", after_s=0.0), "DEAD", "AGAIN"),
        (ValueError("Erika Mustermann"), "DEAD", "ValueError"),
    ],
)
async def test_outcomes(
    app: Database,
    worker: Database,
    org: UUID,
    database_url: str,
    outcome: Outcome | Exception,
    state: str,
    error: str,
) -> None:
    async def handler(lease: Lease) -> Outcome:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    job_id = await put(app, org, max_attempts=2)
    async with running(worker, database_url, {"test": handler}) as runner, asyncio.timeout(20):
        while not runner.ended["test", state]:
            await asyncio.sleep(0.01)
    async with app.tenant_tx(org) as tx:
        job = await queue.get_job(tx, org, job_id)
    assert (job.state, job.last_error) == (state, error)
    assert job.attempts == (2 if error in ("AGAIN", "ValueError") else 1)


async def test_a_hint_starts_a_job_before_the_next_poll(
    app: Database, worker: Database, org: UUID, database_url: str, admin: asyncpg.Connection
) -> None:
    started = asyncio.Event()

    async def handler(lease: Lease) -> Outcome:
        started.set()
        return Done()

    slow = replace(FAST, poll_s=60.0)
    listening = """
        SELECT count(*) > 0 FROM pg_stat_activity
        WHERE application_name = 'trunkline-heart' AND datname = current_database()
          AND (query LIKE 'LISTEN%' OR query = 'SELECT 1')
    """
    async with running(worker, database_url, {"test": handler}, timings=slow):
        await settled(admin, listening)
        await put(app, org)
        async with asyncio.timeout(5):
            await started.wait()


async def test_without_hints_polling_goes_on(
    worker: Database, org: UUID, database_url: str, admin: asyncpg.Connection
) -> None:
    async def handler(lease: Lease) -> Outcome:
        return Done()

    async with running(worker, database_url, {"test": handler}):
        await admin.execute("INSERT INTO job_queues (org_id) VALUES ($1)", org)
        await admin.execute(
            "INSERT INTO jobs (org_id, job_id, kind) VALUES ($1, $2, 'test')", org, uuid7()
        )
        await settled(admin, "SELECT state = 'SUCCEEDED' FROM jobs")


async def test_two_schedulers_one_job_a_tick(
    worker: Database, database_url: str, admin: asyncpg.Connection
) -> None:
    schedules = [Schedule("test", timedelta(days=3650)), Schedule("other", timedelta(days=3650))]

    async def one() -> list[UUID]:
        async with worker.system_tx() as tx:
            return await fire(tx, schedules)

    fired = await asyncio.gather(*[one() for _ in range(6)])
    assert sorted(len(ids) for ids in fired) == [0, 0, 0, 0, 0, 2]
    jobs = await admin.fetch("SELECT org_id, kind FROM jobs ORDER BY kind")
    assert [tuple(row) for row in jobs] == [(SYSTEM_ORG, "other"), (SYSTEM_ORG, "test")]


async def test_two_runners_fire_each_tick_once(
    worker: Database, database_url: str, admin: asyncpg.Connection
) -> None:
    ran: list[UUID] = []

    async def handler(lease: Lease) -> Outcome:
        ran.append(lease.job_id)
        return Done()

    often = [Schedule("test", timedelta(seconds=1))]
    quick = replace(FAST, poll_s=0.05)
    handlers = {"test": handler}
    async with (
        running(worker, database_url, handlers, timings=quick, schedules=often),
        running(worker, database_url, handlers, timings=quick, schedules=often),
    ):
        await settled(admin, "SELECT count(*) >= 3 FROM jobs WHERE state = 'SUCCEEDED'")
    ticks = await admin.fetchval("SELECT count(*) FROM schedules")
    assert len(set(ran)) == len(ran)
    assert len(ran) <= ticks <= len(ran) + 1


def test_a_schedule_needs_a_handler() -> None:
    with pytest.raises(ValueError, match="without a handler"):
        Runner(
            None,  # type: ignore[arg-type]
            "",
            {},
            schedules=[Schedule("lost", timedelta(hours=1))],
        )


async def test_a_long_job_yields_to_another_organisation(
    app: Database, worker: Database, database_url: str, admin: asyncpg.Connection
) -> None:
    greedy, other = uuid7(), uuid7()
    order: list[UUID] = []

    async def handler(lease: Lease) -> Outcome:
        order.append(lease.org_id)
        while lease.org_id == greedy and other not in order:
            if lease.should_yield():
                return Yield()
            await asyncio.sleep(0.01)
        return Done()

    await put(app, greedy)
    async with running(worker, database_url, {"test": handler}, slots=1):
        await settled(admin, "SELECT state = 'RUNNING' FROM jobs")
        await put(app, other)
        await settled(admin, "SELECT NOT EXISTS (SELECT FROM jobs WHERE state <> 'SUCCEEDED')")
    assert order == [greedy, other, greedy]


async def test_stuck_work_is_let_go_and_ends_dead(
    app: Database, worker: Database, org: UUID, database_url: str, admin: asyncpg.Connection
) -> None:
    interrupted = asyncio.Event()

    async def handler(lease: Lease) -> Outcome:
        try:
            await asyncio.Event().wait()
        finally:
            interrupted.set()
        return Done()

    await put(app, org, max_attempts=1)
    stall = replace(FAST, work_stall_s=0.3)
    async with running(worker, database_url, {"test": handler}, timings=stall):
        await settled(admin, "SELECT state = 'DEAD' FROM jobs")
        assert interrupted.is_set()


async def test_the_heart_stops_vouching_for_a_loop_that_stands_still(
    app: Database, worker: Database, org: UUID, database_url: str, admin: asyncpg.Connection
) -> None:
    refused = asyncio.Event()

    async def handler(lease: Lease) -> Outcome:
        if refused.is_set():
            return Done()
        time.sleep(4 * FAST.lease_s)
        try:
            async with worker.tenant_tx(org) as tx:
                await lease.fence(tx)
        except (LeaseLost, asyncio.CancelledError):  # refused, or told before it asked
            refused.set()
            raise
        return Done()

    await put(app, org)
    stall = replace(FAST, loop_stall_s=0.5)
    async with running(worker, database_url, {"test": handler}, timings=stall):
        await settled(admin, "SELECT state = 'SUCCEEDED' FROM jobs")
    assert refused.is_set()
    assert await admin.fetchval("SELECT lease_epoch FROM jobs") == 2


async def test_a_running_job_is_cancelled_at_a_batch_s_end_or_after_the_grace(
    app: Database, worker: Database, org: UUID, database_url: str, admin: asyncpg.Connection
) -> None:
    async def handler(lease: Lease) -> Outcome:
        while not (lease.payload["listens"] and lease.should_yield()):
            await asyncio.sleep(0.01)
        return Yield()

    ids = [await put(app, org, payload={"listens": listens}) for listens in (True, False)]
    async with running(worker, database_url, {"test": handler}):
        await settled(admin, "SELECT count(*) = 2 FROM jobs WHERE state = 'RUNNING'")
        async with app.tenant_tx(org) as tx:
            for job_id in ids:
                await queue.cancel_job(tx, org, job_id)
        await settled(admin, "SELECT count(*) = 2 FROM jobs WHERE state = 'CANCELLED'")


async def test_the_runner_outlives_its_connections(
    app: Database, worker: Database, org: UUID, database_url: str, admin: asyncpg.Connection
) -> None:
    async def handler(lease: Lease) -> Outcome:
        return Done()

    kill = """
        SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid()
    """
    async with running(worker, database_url, {"test": handler}):
        await put(app, org)
        await settled(admin, "SELECT bool_and(state = 'SUCCEEDED') FROM jobs")
        assert await admin.fetchval(kill) >= 2
        await admin.execute(
            "INSERT INTO jobs (org_id, job_id, kind) VALUES ($1, $2, 'test')", org, uuid7()
        )
        await settled(admin, "SELECT bool_and(state = 'SUCCEEDED') FROM jobs")
