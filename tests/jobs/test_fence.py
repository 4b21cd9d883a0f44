"""Who may write: the holder of the newest, unexpired lease, and nobody else."""

from __future__ import annotations

import asyncio
from uuid import UUID

import asyncpg
import pytest

from tests.jobs.conftest import FAST, claimed
from trunkline_server.db import Database
from trunkline_server.jobs import Lease, LeaseLost, Timings, enqueue
from trunkline_server.jobs.lease import finish, hand_back, reap, renew, retry

LONG = Timings(heartbeat_s=30)
_EXPIRE = "UPDATE jobs SET lease_until = now() - interval '1 second'"


@pytest.fixture
async def lease(app: Database, worker: Database, org: UUID) -> Lease:
    async with app.tenant_tx(org) as tx:
        await enqueue(tx, org, "test")
    found = await claimed(worker, timings=LONG)
    assert found is not None
    return found


async def _every_write(db: Database, lease: Lease) -> None:
    """Each is refused."""
    for write in (
        lambda tx: lease.fence(tx),
        lambda tx: lease.checkpoint(tx, {"step": 1}),
        lambda tx: lease.complete(tx),
        lambda tx: finish(tx, lease, "SUCCEEDED", ""),
        lambda tx: hand_back(tx, lease),
        lambda tx: retry(tx, lease, "WHY", None, FAST),
    ):
        with pytest.raises(LeaseLost):
            async with db.system_tx() as tx:
                await write(tx)


async def test_an_expired_lease_is_refused_even_when_nobody_took_over(
    worker: Database, lease: Lease, admin: asyncpg.Connection
) -> None:
    await admin.execute(_EXPIRE)
    await _every_write(worker, lease)
    assert not (await renew(admin, [lease], 30, 5))[lease.job_id].held


async def test_a_lease_taken_over_is_refused(
    worker: Database, lease: Lease, admin: asyncpg.Connection
) -> None:
    await admin.execute(_EXPIRE)
    async with worker.system_tx() as tx:
        await reap(tx, FAST)
    heir = await claimed(worker, timings=LONG)
    assert heir is not None
    assert (heir.job_id, heir.epoch) == (lease.job_id, lease.epoch + 1)
    await _every_write(worker, lease)
    assert not (await renew(admin, [lease], 30, 5))[lease.job_id].held
    async with worker.system_tx() as tx:
        await heir.complete(tx)


async def test_a_fenced_transaction_keeps_the_job_until_it_commits(
    worker: Database, lease: Lease, admin: asyncpg.Connection
) -> None:
    async with worker.system_tx() as tx:
        await lease.fence(tx)
        await admin.execute(_EXPIRE)
        async with worker.system_tx() as other:
            assert await reap(other, FAST) == []
    async with worker.system_tx() as tx:
        assert len(await reap(tx, FAST)) == 1


async def test_heartbeats_pass_a_fenced_transaction(
    worker: Database, lease: Lease, admin: asyncpg.Connection
) -> None:
    async with worker.system_tx() as tx:
        await lease.fence(tx)
        assert (await renew(admin, [lease], 30, 5))[lease.job_id].renewed


async def test_heartbeats_do_not_wait_for_a_finishing_transaction(
    worker: Database, lease: Lease, admin: asyncpg.Connection
) -> None:
    async with worker.system_tx() as tx:
        await lease.complete(tx)
        async with asyncio.timeout(5):
            beat = (await renew(admin, [lease], 30, 5))[lease.job_id]
        assert (beat.renewed, beat.held) == (False, True)
    assert not (await renew(admin, [lease], 30, 5))[lease.job_id].held


async def test_the_effect_and_the_fence_are_one_transaction(
    worker: Database, lease: Lease, admin: asyncpg.Connection
) -> None:
    await admin.execute("CREATE TABLE effects (step int)")
    await admin.execute("GRANT ALL ON effects TO trunkline_worker")
    await admin.execute(_EXPIRE)
    with pytest.raises(LeaseLost):
        async with worker.system_tx() as tx:
            await tx.execute("INSERT INTO effects VALUES (1)")
            await lease.complete(tx)
    assert await admin.fetchval("SELECT count(*) FROM effects") == 0


async def test_progress_starts_the_attempts_over(
    worker: Database, lease: Lease, admin: asyncpg.Connection
) -> None:
    await admin.execute("UPDATE jobs SET attempts = 5")
    async with worker.system_tx() as tx:
        await lease.checkpoint(tx, {"step": 1})
    assert await admin.fetchval("SELECT attempts FROM jobs") == 1
