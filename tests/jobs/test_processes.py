"""Real worker processes: killed, frozen, blocked and stopped. Each effect exactly once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from uuid import UUID

import asyncpg
import pytest

from tests.jobs.conftest import FAST
from trunkline_server.db import Database
from trunkline_server.ids import uuid7
from trunkline_server.jobs import enqueue, queue

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60.0

Start = Callable[..., Awaitable[asyncio.subprocess.Process]]


@pytest.fixture
async def start(database_url: str, admin: asyncpg.Connection) -> AsyncIterator[Start]:
    """Starts a worker; what is left at the end is killed."""
    await admin.execute("CREATE TABLE effects (job_id uuid, step int, pid int)")
    await admin.execute("GRANT ALL ON effects TO trunkline_worker")
    started: list[asyncio.subprocess.Process] = []

    async def _start(slots: int = 2) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.jobs.worker_program", database_url, str(slots)),
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{ROOT}/server:{ROOT}/clients/python/src:{ROOT}"},
            stdout=asyncio.subprocess.PIPE,
        )
        started.append(process)
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
        return process

    yield _start
    for process in started:
        if process.returncode is None:
            process.kill()
            await process.wait()
        # The pipe's transport closes with the process; wait until the loop has seen it.
        process._transport.close()  # type: ignore[attr-defined]
    await asyncio.sleep(0)


async def put(db: Database, org: UUID, payload: dict[str, object], max_attempts: int = 8) -> UUID:
    async with db.tenant_tx(org) as tx:
        return await enqueue(tx, org, "test", payload=payload, max_attempts=max_attempts)


async def until(admin: asyncpg.Connection, sql: str, *args: object) -> float:
    """Ask until it is true; returns how long that took."""
    started = time.monotonic()
    async with asyncio.timeout(PATIENCE_S):
        while not await admin.fetchval(sql, *args):
            await asyncio.sleep(0.02)
    return time.monotonic() - started


async def wait_for(process: asyncio.subprocess.Process) -> int:
    async with asyncio.timeout(PATIENCE_S):
        return await process.wait()


_STEPS = "SELECT count(*) >= $1 FROM effects"
_DONE = "SELECT NOT EXISTS (SELECT FROM jobs WHERE state <> 'SUCCEEDED')"
_TWICE = "SELECT count(*) - count(DISTINCT (job_id, step)) FROM effects"


async def test_a_killed_worker_s_job_goes_on_within_two_heartbeats(
    start: Start, app: Database, org: UUID, admin: asyncpg.Connection
) -> None:
    first = await start()
    await put(app, org, {"steps": 40, "step_s": 0.05})
    await until(admin, _STEPS, 3)
    await start()
    first.kill()
    await first.wait()
    heir = "SELECT count(*) > 0 FROM effects WHERE pid <> $1"
    taken_over_s = await until(admin, heir, first.pid)
    # The lease, a poll to notice, a poll to claim, a step; and what two busy cores add.
    assert taken_over_s < FAST.lease_s + 2 * FAST.poll_s + 2.0
    await until(admin, _DONE)
    assert await admin.fetchval(_TWICE) == 0
    assert await admin.fetchval("SELECT count(*) FROM effects") == 40


async def test_a_frozen_worker_that_wakes_cannot_write(
    start: Start, app: Database, org: UUID, admin: asyncpg.Connection
) -> None:
    frozen = await start()
    await put(app, org, {"steps": 30, "step_s": 0.05})
    await until(admin, _STEPS, 3)
    frozen.send_signal(signal.SIGSTOP)
    await start()
    heir = "SELECT count(*) > 2 FROM effects WHERE pid <> $1"
    await until(admin, heir, frozen.pid)
    last = "SELECT max(step) FROM effects WHERE pid = $1"
    written = await admin.fetchval(last, frozen.pid)
    frozen.send_signal(signal.SIGCONT)
    await until(admin, _DONE)
    assert await admin.fetchval(last, frozen.pid) == written
    assert await admin.fetchval(_TWICE) == 0
    assert await admin.fetchval("SELECT count(*) FROM effects") == 30


async def test_the_heart_beats_while_the_loop_is_blocked(
    start: Start, app: Database, org: UUID, admin: asyncpg.Connection
) -> None:
    blocked, _ = await start(), await start()
    await put(app, org, {"block_loop_s": 3 * FAST.lease_s})
    await until(admin, _DONE)
    assert await admin.fetchval("SELECT lease_epoch FROM jobs") == 1
    assert await admin.fetchval("SELECT count(*) FROM effects") == 1
    assert blocked.returncode is None


async def test_a_job_that_kills_its_worker_ends_dead_and_the_queue_moves_on(
    start: Start, app: Database, org: UUID, admin: asyncpg.Connection
) -> None:
    poison = await put(app, org, {"exit": True}, max_attempts=2)
    good = await put(app, uuid7(), {"steps": 2})
    is_dead = "SELECT state = 'DEAD' FROM jobs WHERE job_id = $1"
    async with asyncio.timeout(PATIENCE_S):
        while not await admin.fetchval(is_dead, poison):
            process = await start(slots=1)
            ended = asyncio.create_task(process.wait())
            dead = asyncio.create_task(until(admin, is_dead, poison))
            await asyncio.wait({ended, dead}, return_when=asyncio.FIRST_COMPLETED)
            for task in (ended, dead):
                task.cancel()
            await asyncio.gather(ended, dead, return_exceptions=True)
    done = "SELECT state = 'SUCCEEDED' FROM jobs WHERE job_id = $1"
    await until(admin, done, good)
    assert await admin.fetchval("SELECT attempts FROM jobs WHERE job_id = $1", poison) == 2


async def test_a_stopping_worker_hands_its_leases_back_at_once(
    start: Start, app: Database, org: UUID, admin: asyncpg.Connection
) -> None:
    process = await start()
    await put(app, org, {"steps": 1000, "step_s": 0.05})
    await put(app, org, {"steps": 1, "step_s": 1000})  # deaf to should_yield
    await until(admin, _STEPS, 2)
    await until(admin, "SELECT count(*) = 2 FROM jobs WHERE state = 'RUNNING'")
    process.terminate()
    assert await wait_for(process) == 0
    rows = await admin.fetch(
        "SELECT state, attempts, run_after <= now() AS due FROM jobs ORDER BY job_id"
    )
    assert [tuple(row) for row in rows] == [("QUEUED", 0, True), ("QUEUED", 0, True)]


@pytest.mark.parametrize("seed", [1])
async def test_every_effect_exactly_once_whatever_is_killed(
    start: Start, app: Database, admin: asyncpg.Connection, seed: int
) -> None:
    chance = random.Random(seed)
    orgs = [uuid7() for _ in range(4)]
    jobs = {await put(app, orgs[i % 4], {"steps": 5, "step_s": 0.03}): 5 for i in range(24)}
    workers = [await start() for _ in range(3)]
    for _ in range(4):
        await asyncio.sleep(chance.uniform(0.1, 0.6))
        victim = workers.pop(chance.randrange(len(workers)))
        how = chance.choice([signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM])
        with contextlib.suppress(ProcessLookupError):
            victim.send_signal(how)
        workers.append(await start())
        if how is signal.SIGSTOP:
            victim.send_signal(signal.SIGCONT)
    await until(admin, _DONE)
    rows = await admin.fetch("SELECT job_id, count(*) AS n FROM effects GROUP BY job_id")
    assert {row["job_id"]: row["n"] for row in rows} == jobs
    assert await admin.fetchval(_TWICE) == 0
    async with app.tenant_tx(orgs[0]) as tx:
        assert len(await queue.list_jobs(tx, orgs[0], states=["SUCCEEDED"])) == 6
