"""Enqueue, order, fairness, concurrency, de-duplication, re-drive, cancel, isolation."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg
import pytest

from tests.jobs.conftest import FAST, claimed
from trunkline_server.db import Database
from trunkline_server.ids import uuid7
from trunkline_server.jobs import SYSTEM_ORG, Lease, Timings, enqueue, queue
from trunkline_server.jobs.lease import finish, hand_back, reap, retry

LONG = Timings(heartbeat_s=30)


async def put(db: Database, org: UUID, **options: object) -> UUID:
    async with db.tenant_tx(org) as tx:
        return await enqueue(tx, org, "test", **options)  # type: ignore[arg-type]


async def state(db: Database, org: UUID, job_id: UUID) -> str:
    async with db.tenant_tx(org) as tx:
        return (await queue.get_job(tx, org, job_id)).state


async def end(db: Database, lease: Lease, how: str = "SUCCEEDED", reason: str = "") -> None:
    async with db.system_tx() as tx:
        await finish(tx, lease, how, reason)


async def test_a_job_is_claimed_with_what_was_put_in(
    app: Database, worker: Database, org: UUID
) -> None:
    subject = uuid7()
    job_id = await put(app, org, subject_id=subject, payload={"rows": 3})
    lease = await claimed(worker)
    assert lease is not None
    assert (lease.org_id, lease.job_id, lease.subject_id) == (org, job_id, subject)
    assert (lease.payload, lease.attempt, lease.epoch) == ({"rows": 3}, 1, 1)
    assert await claimed(worker) is None
    await end(worker, lease)
    assert await state(app, org, job_id) == "SUCCEEDED"


async def test_a_job_of_a_rolled_back_transaction_never_was(
    app: Database, worker: Database, org: UUID
) -> None:
    with pytest.raises(ZeroDivisionError):
        async with app.tenant_tx(org) as tx:
            await enqueue(tx, org, "test")
            raise ZeroDivisionError
    assert await claimed(worker) is None


async def test_higher_priority_first_then_the_older(
    app: Database, worker: Database, org: UUID
) -> None:
    low, old, new, high = [await put(app, org, priority=p) for p in (-1, 0, 0, 7)]
    order = []
    while lease := await claimed(worker):
        order.append(lease.job_id)
        await end(worker, lease)
    assert order == [high, old, new, low]


async def test_a_job_waits_for_its_time_by_the_database(
    app: Database, worker: Database, org: UUID
) -> None:
    await put(app, org, run_after=datetime.now(UTC) + timedelta(hours=1))
    assert await claimed(worker) is None


async def test_organisations_take_turns(app: Database, worker: Database) -> None:
    big, small = uuid7(), uuid7()
    for _ in range(6):
        await put(app, big, priority=100)
    for _ in range(2):
        await put(app, small)
    order = []
    while lease := await claimed(worker):
        order.append(lease.org_id)
        await end(worker, lease)
    assert order == [big, small, big, small, big, big, big, big]


async def test_concurrency_holds_under_a_race_of_claimers(
    app: Database, worker: Database, org: UUID, database_url: str
) -> None:
    for _ in range(12):
        await put(app, org)
    async with app.tenant_tx(org) as tx:
        await queue.set_concurrency(tx, org, 3)
    many = await Database.open(database_url, role="trunkline_worker", pool_size=12, readers=0)
    try:
        leases = await asyncio.gather(*[claimed(many, timings=LONG) for _ in range(12)])
    finally:
        await many.close()
    held = [lease for lease in leases if lease]
    assert len(held) == 3
    assert len({lease.job_id for lease in held}) == 3
    await end(worker, held[0])
    assert await claimed(worker) is not None
    assert await claimed(worker) is None


async def test_a_live_dedup_key_is_one_job(app: Database, worker: Database, org: UUID) -> None:
    ids = await asyncio.gather(*[put(app, org, dedup_key="k") for _ in range(4)])
    assert len(set(ids)) == 1
    assert await put(app, uuid7(), dedup_key="k") != ids[0]
    while lease := await claimed(worker):
        if lease.job_id == ids[0]:
            assert await put(app, org, dedup_key="k") == ids[0]
        await end(worker, lease)
    assert await put(app, org, dedup_key="k") != ids[0]


async def test_retries_back_off_and_end_dead_and_are_re_driven(
    app: Database, worker: Database, org: UUID, admin: asyncpg.Connection
) -> None:
    job_id = await put(app, org, max_attempts=2)
    lease = await claimed(worker)
    assert lease is not None
    async with worker.system_tx() as tx:
        assert await retry(tx, lease, "FIRST", None, Timings(backoff_s=100)) == "QUEUED"
    wait_s = await admin.fetchval("SELECT extract(epoch FROM run_after - now()) FROM jobs")
    assert 45 <= wait_s <= 100
    assert await claimed(worker) is None
    await admin.execute("UPDATE jobs SET run_after = now()")
    lease = await claimed(worker)
    assert lease is not None
    assert lease.attempt == 2
    async with worker.system_tx() as tx:
        assert await retry(tx, lease, "SECOND", None, FAST) == "DEAD"
    async with app.tenant_tx(org) as tx:
        [dead] = await queue.list_dead(tx, org)
        assert (dead.job_id, dead.last_error) == (job_id, "SECOND")
        again = await queue.retry_job(tx, org, job_id)
    assert (again.state, again.attempts) == ("QUEUED", 0)
    assert await claimed(worker) is not None


@pytest.mark.parametrize("how", ["DEAD", "FAILED"])
async def test_a_re_drive_gives_way_to_a_newer_job(
    app: Database, worker: Database, org: UUID, how: str
) -> None:
    first = await put(app, org, dedup_key="k")
    lease = await claimed(worker)
    assert lease is not None
    await end(worker, lease, how, "BAD")
    await put(app, org, dedup_key="k")
    with pytest.raises(queue.JobStateForbids):
        async with app.tenant_tx(org) as tx:
            await queue.retry_job(tx, org, first)


async def test_back_off_grows_to_its_ceiling(admin: asyncpg.Connection) -> None:
    sql = "SELECT extract(epoch FROM job_backoff($1, '1 second', '300 seconds'))::float8"
    for attempts in (1, 2, 5, 9, 60):
        ceiling = min(300, 2 ** (attempts - 1))
        waits = [await admin.fetchval(sql, attempts) for _ in range(30)]
        assert ceiling / 2 <= min(waits) < max(waits) <= ceiling


async def test_cancel(app: Database, worker: Database, org: UUID) -> None:
    waiting, running = await put(app, org), await put(app, org, priority=1)
    lease = await claimed(worker)
    assert lease is not None
    assert lease.job_id == running
    async with app.tenant_tx(org) as tx:
        assert (await queue.cancel_job(tx, org, waiting)).state == "CANCELLED"
        asked = await queue.cancel_job(tx, org, running)
    assert (asked.state, asked.cancel_requested) == ("RUNNING", True)
    async with worker.system_tx() as tx:
        assert await hand_back(tx, lease) == "CANCELLED"
    async with app.tenant_tx(org) as tx:
        with pytest.raises(queue.JobStateForbids):
            await queue.retry_job(tx, org, running)


async def test_place_tells_position_and_cause(app: Database, worker: Database, org: UUID) -> None:
    ids = [await put(app, org) for _ in range(3)]
    assert await claimed(worker) is not None
    async with app.tenant_tx(org) as tx:
        places = [await queue.place(tx, org, job_id) for job_id in ids]
    assert [p.position for p in places] == [0, 1, 2]
    assert {(p.running, p.concurrency) for p in places} == {(1, 2)}


async def test_another_organisation_s_job_is_not_there(app: Database, org: UUID) -> None:
    job_id = await put(app, org)
    other = uuid7()
    async with app.tenant_tx(other) as tx:
        assert await tx.fetch("SELECT job_id FROM jobs") == []
        # The organisation named, but not set: the policy refuses what the query allowed.
        for call in (queue.get_job, queue.retry_job, queue.cancel_job):
            with pytest.raises(queue.JobNotFound):
                await call(tx, org, job_id)
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        async with app.tenant_tx(other) as tx:
            await enqueue(tx, org, "test")


async def test_the_application_cannot_take_a_lease(app: Database, org: UUID) -> None:
    await put(app, org)
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        async with app.tenant_tx(org) as tx:
            await tx.execute("UPDATE jobs SET lease_owner = 'me', lease_until = now()")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        async with app.tenant_tx(org) as tx:
            await tx.execute("DELETE FROM jobs")


async def test_a_job_that_kills_its_workers_ends_dead(
    app: Database, worker: Database, org: UUID, admin: asyncpg.Connection
) -> None:
    job_id = await put(app, org, max_attempts=3)
    attempts = 0
    while await state(app, org, job_id) == "QUEUED":
        await admin.execute("UPDATE jobs SET run_after = now()")
        assert await claimed(worker) is not None
        attempts += 1
        await admin.execute("UPDATE jobs SET lease_until = now() - interval '1 second'")
        async with worker.system_tx() as tx:
            await reap(tx, FAST)
    assert (await state(app, org, job_id), attempts) == ("DEAD", 3)
    async with app.tenant_tx(org) as tx:
        assert "lease expired in attempt 3" in (await queue.get_job(tx, org, job_id)).last_error


async def test_purge_keeps_what_is_young_and_what_failed(
    app: Database, worker: Database, org: UUID, admin: asyncpg.Connection
) -> None:
    for how in ("SUCCEEDED", "DEAD", "SUCCEEDED"):
        await put(app, org)
        lease = await claimed(worker)
        assert lease is not None
        await end(worker, lease, how)
    newest = await admin.fetchval("SELECT job_id FROM jobs ORDER BY job_id DESC LIMIT 1")
    await admin.execute(
        "UPDATE jobs SET finished_at = now() - interval '8 days' WHERE job_id <> $1", newest
    )
    async with worker.system_tx() as tx:
        await queue.purge(tx)
    left = Counter(r["state"] for r in await admin.fetch("SELECT state FROM jobs"))
    assert left == {"SUCCEEDED": 1, "DEAD": 1}


async def test_depth_counts_all_organisations(app: Database, worker: Database) -> None:
    for _ in range(3):
        await put(app, uuid7())
    await claimed(worker)
    async with worker.system_tx() as tx:
        await enqueue(tx, SYSTEM_ORG, "test")
        found = await queue.depth(tx)
    assert {name: count for name, (count, _) in found.items()} == {"QUEUED": 3, "RUNNING": 1}
