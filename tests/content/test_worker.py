"""What the worker does by the clock: publications, once and on time; purges; what is forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest

from tests.content.desk import Desk, refused
from tests.content.test_workflow import at
from trunkline.api.content.v1 import content_service_pb2 as pb
from trunkline_server.content.worker import ContentWorker
from trunkline_server.db import Database
from trunkline_server.jobs import Done, Lease, LeaseLost, Runner, Timings
from trunkline_server.link import Link
from trunkline_server.orgs import Orgs
from trunkline_server.rpc.caller import Role

Code = grpc.StatusCode
LIVE = "SELECT count(*) FROM audit_log WHERE action = 'content.GoLive'"


@pytest.fixture
async def worker(database_url: str, redis_url: str) -> AsyncIterator[ContentWorker]:
    db = await Database.open(database_url, role="trunkline_worker", pool_size=3, readers=1)
    link = Link(redis_url, name="content-worker")
    await link.start()
    yield ContentWorker(db=db, orgs=Orgs(db, link), link=link)
    await link.close()
    await db.close()


@asynccontextmanager
async def working(worker: ContentWorker, database_url: str) -> AsyncIterator[Runner]:
    runner = Runner(
        worker._db, database_url, worker.handlers(), timings=Timings(heartbeat_s=1, poll_s=0.1)
    )
    run = asyncio.create_task(runner.run())
    try:
        yield runner
    finally:
        runner.stop()
        await run


async def scheduled(desk: Desk, title: str, moment: datetime, **fields: Any) -> pb.Article:
    article = await desk.create(title, **fields)
    await desk.approved(article)
    return await desk.step("Publish", article, publish_time=at(moment))


async def until_live(desk: Desk, article: pb.Article) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                await desk.get(article)
                return
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.05)


async def test_what_is_due_goes_live_and_not_before(
    desk: Desk, worker: ContentWorker, database: Any
) -> None:
    moment = datetime.now(UTC) + timedelta(seconds=1.5)
    article = await scheduled(desk, "Soon", moment, body="at last")
    async with working(worker, desk.database_url):
        with refused(Code.NOT_FOUND):
            await desk.get(article)
        await until_live(desk, article)
    assert datetime.now(UTC) >= moment
    row = await database.fetchrow("SELECT live_at, state, publish_at FROM articles")
    assert timedelta() <= row["live_at"] - moment < timedelta(seconds=2)
    assert (row["state"], row["publish_at"]) == ("PUBLISHED", None)
    assert await desk.search("last") == ["Soon"]
    assert await database.fetchval(LIVE) == 1


async def test_a_restart_after_the_time_publishes_at_once_and_once(
    desk: Desk, worker: ContentWorker, database: Any
) -> None:
    article = await scheduled(desk, "Late", datetime.now(UTC) + timedelta(hours=1))
    await database.execute("UPDATE articles SET publish_at = now() - interval '1 hour'")
    await database.execute(
        """
        UPDATE jobs j SET run_after = a.publish_at,
            payload = j.payload || jsonb_build_object('at', a.publish_at)
        FROM articles a WHERE a.article_id = j.subject_id
        """
    )
    async with working(worker, desk.database_url), working(worker, desk.database_url):
        await until_live(desk, article)
    async with working(worker, desk.database_url):
        await asyncio.sleep(0.5)
    assert await database.fetchval(LIVE) == 1
    states = await database.fetch("SELECT state FROM jobs WHERE kind = 'content.go_live'")
    assert [row["state"] for row in states] == ["SUCCEEDED"]


async def test_what_was_called_off_or_moved_stays_where_it_is(
    desk: Desk, worker: ContentWorker, database: Any
) -> None:
    later = datetime.now(UTC) + timedelta(hours=1)
    called_off = await scheduled(desk, "Called off", later)
    await desk.step("Unpublish", called_off)
    moved = await scheduled(desk, "Moved", later)
    await desk.step("Publish", moved, publish_time=at(later + timedelta(hours=1)))
    deleted = await scheduled(desk, "Deleted", later)
    await desk.step("Delete", deleted)
    # The first job of each comes due; those of the new times do not.
    await database.execute("UPDATE jobs SET run_after = now() WHERE run_after <= $1", later)
    async with working(worker, desk.database_url):
        async with asyncio.timeout(5):
            while await database.fetchval(
                "SELECT count(*) FROM jobs WHERE state <> 'SUCCEEDED' AND run_after <= now()"
            ):
                await asyncio.sleep(0.05)
    assert await desk.listed() == []
    assert await database.fetchval(LIVE) == 0
    assert (await desk.get(moved, Role.ADMIN)).state == pb.ARTICLE_STATE_SCHEDULED


async def a_lease(database: Any, kind: str) -> Lease:
    row = await database.fetchrow(
        """
        UPDATE jobs SET state = 'RUNNING', lease_epoch = lease_epoch + 1, lease_owner = 'test',
            lease_until = now() + interval '1 minute', attempts = 1
        WHERE kind = $1 RETURNING org_id, job_id, lease_epoch, kind, subject_id, payload,
            checkpoint, attempts, max_attempts
        """,
        kind,
    )
    return Lease(row, asyncio.get_running_loop().time(), Timings())


async def test_a_lost_lease_publishes_nothing(
    desk: Desk, worker: ContentWorker, database: Any
) -> None:
    await scheduled(desk, "Soon", datetime.now(UTC) + timedelta(hours=1))
    lease = await a_lease(database, "content.go_live")
    await database.execute("UPDATE jobs SET lease_epoch = lease_epoch + 1")
    with pytest.raises(LeaseLost):
        await worker.go_live(lease)
    assert await desk.listed() == []


async def test_retention_purges_and_forgets(
    desk: Desk, worker: ContentWorker, database: Any
) -> None:
    gone, stays = await desk.published("Gone", tags=["old"]), await desk.published("Stays")
    await desk.step("Delete", gone)
    await desk.step("Delete", stays)
    await database.execute(
        "UPDATE articles SET purge_at = now() WHERE article_id = $1", gone.article_id
    )
    for age in (10, 100):
        await database.execute(
            """
            INSERT INTO search_misses (org_id, day, locale, query, searches, last_at)
            VALUES ($1, (now() - make_interval(days => $2))::date, '', $3, 1, now())
            """,
            desk.org.org_id, age, f"{age} days old",
        )  # fmt: skip
    await database.execute(
        """
        INSERT INTO article_views (org_id, day, article_id, views)
        SELECT $1, (now() - make_interval(days => d))::date, $2, 1
        FROM unnest(ARRAY[1, 500]) AS d
        """,
        desk.org.org_id, stays.article_id,
    )  # fmt: skip
    await database.execute(
        "INSERT INTO jobs (org_id, job_id, kind) VALUES ($1, gen_random_uuid(), 'content.retain')",
        desk.org.org_id,
    )
    assert isinstance(await worker.retain(await a_lease(database, "content.retain")), Done)
    for table in ("articles", "article_revisions", "article_texts", "article_counts"):
        rows = await database.fetch(f"SELECT DISTINCT article_id FROM {table}")
        assert [str(row["article_id"]) for row in rows] == [stays.article_id], table
    assert await database.fetchval("SELECT articles FROM content_states") == 1
    assert (
        await database.fetchval("SELECT string_agg(query, ',') FROM search_misses") == "10 days old"
    )
    assert await database.fetchval("SELECT count(*) FROM article_views") == 1
    assert await database.fetchval("SELECT count(*) FROM article_tags") == 0
    with refused(Code.NOT_FOUND):
        await desk.step("Undelete", gone)
    await desk.step("Undelete", stays)
