"""A worker's and an application's view of one migrated database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import UUID

import asyncpg
import pytest

from trunkline_server.db import Database
from trunkline_server.ids import uuid7
from trunkline_server.jobs import Lease, Timings
from trunkline_server.jobs.lease import claim

KINDS = ["test"]
FAST = Timings(
    heartbeat_s=0.4, poll_s=0.1, grace_s=0.5, turn_s=0.2, backoff_s=0.05, backoff_s_max=0.2
)


@pytest.fixture
async def worker(database_url: str) -> AsyncIterator[Database]:
    db = await Database.open(database_url, role="trunkline_worker", pool_size=8, readers=0)
    yield db
    await db.close()


@pytest.fixture
async def app(database_url: str) -> AsyncIterator[Database]:
    db = await Database.open(database_url, role="trunkline_app", pool_size=4, readers=0)
    yield db
    await db.close()


@pytest.fixture
async def admin(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    """The superuser's eyes: no policy hides anything."""
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


@pytest.fixture
def org() -> UUID:
    return uuid7()


async def claimed(db: Database, *, owner: str = "w", timings: Timings = FAST) -> Lease | None:
    async with db.system_tx() as tx:
        return await claim(tx, KINDS, owner, timings)
