"""The worker's rounds: what imports wrote is found, what is due is gone, without a trace."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from bench import roster
from tests.members.desk import Desk
from tests.members.test_export_watch import Watcher
from tests.members.test_validate import ANNA
from trunkline_server.db import Database
from trunkline_server.jobs import Done, Lease, Timings
from trunkline_server.jobs.lease import claim
from trunkline_server.jobs.queue import SYSTEM_ORG, enqueue
from trunkline_server.link import Link
from trunkline_server.members import upkeep


@pytest.fixture
async def worker(database_url: str) -> AsyncIterator[Database]:
    db = await Database.open(database_url, role="trunkline_worker", pool_size=4, readers=0)
    yield db
    await db.close()


async def leased(worker: Database, kind: str) -> Lease:
    async with worker.system_tx() as tx:
        await enqueue(tx, SYSTEM_ORG, kind)
        lease = await claim(tx, [kind], "test", Timings())
    assert lease is not None
    return lease


async def test_an_import_is_found_after_the_round(desk: Desk, worker: Database) -> None:
    await asyncio.to_thread(roster.fill, desk.database_url, desk.org.org_id, 300, indexed=False)
    member = await desk.get(member_number="M-00000123")
    name = f"{member.given_name} {member.family_name}"
    assert await desk.search(name) == []
    assert await desk.search("M-00000123") == ["M-00000123"]  # numbers are found at once
    assert await upkeep.index(worker, await leased(worker, upkeep.INDEX_MEMBERS)) == Done()
    assert "M-00000123" in await desk.search(name)
    async with worker.system_tx() as tx:
        assert await tx.fetch("SELECT org_id FROM orgs_to_index()") == []


async def test_a_purge_leaves_an_id_and_a_number(
    desk: Desk, worker: Database, redis_url: str
) -> None:
    watcher = Watcher(desk)
    await watcher.next()
    kept = await desk.create("M-1", given_name="Anna")
    gone = await desk.create("M-2", **ANNA)
    await desk.delete(await desk.update(gone, plan="x"))
    async with desk.database() as database:
        await database.execute(
            "UPDATE members SET purge_at = now() WHERE member_id = $1", gone.member_id
        )
    link = Link(redis_url)
    lease = await leased(worker, upkeep.PURGE_MEMBERS)
    assert await upkeep.purge(worker, link, lease) == Done()
    await link.close()
    told: list[tuple[str, str]] = []
    while ("M-2", "PURGED") not in told:
        told += await watcher.changes(1)
    assert told[0] == ("M-1", "CREATED")
    watcher.cancel()
    assert await desk.decision("M-2") == "NOT_FOUND"
    assert await desk.search("nowak") == []
    assert await desk.search("anna") == ["M-1"]
    async with desk.database() as database:
        for table in ("members", "member_history", "member_search"):
            left = await database.fetch(f"SELECT member_id FROM {table}")
            assert {str(row["member_id"]) for row in left} <= {kept.member_id}
        words = await database.fetch("SELECT word FROM member_words")
        assert [row["word"] for row in words] == ["anna"]
    await desk.create("M-2")  # the number is free again
