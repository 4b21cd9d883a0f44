"""What the worker does for content: publications that are due, purges, retention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from uuid import UUID

from trunkline_server import audit
from trunkline_server.content import queries, rules
from trunkline_server.content.errors import ArticleNotFound
from trunkline_server.content.rules import Action, Actor, State
from trunkline_server.content.writing import (
    GO_LIVE,
    Told,
    announce,
    live_changed,
    move_texts,
)
from trunkline_server.db import Connection, Database, Record
from trunkline_server.jobs import Done, Handler, Lease, Outcome, Schedule, Yield
from trunkline_server.link import Link
from trunkline_server.orgs import Orgs

RETAIN = "content.retain"
RETAIN_EVERY = timedelta(hours=1)
PURGED_AT_ONCE = 100
FORGOTTEN_AT_ONCE = 10_000
# The most-read list looks back a year at most.
VIEWS_KEPT = timedelta(days=400)

_DUE_ORGS = "SELECT DISTINCT org_id FROM articles WHERE purge_at <= now()"
_ORGS = "SELECT org_id FROM org_ids()"
_PURGE = """
DELETE FROM articles WHERE (org_id, article_id) IN (
    SELECT org_id, article_id FROM articles
    WHERE org_id = $1 AND purge_at <= now() LIMIT $2 FOR UPDATE SKIP LOCKED
) RETURNING article_id
"""
_FORGET_MISSES = """
DELETE FROM search_misses WHERE (org_id, day, locale, query) IN (
    SELECT org_id, day, locale, query FROM search_misses
    WHERE org_id = $1 AND day < (now() - $2::interval)::date LIMIT $3
)
"""
_FORGET_VIEWS = """
DELETE FROM article_views WHERE (org_id, day, article_id) IN (
    SELECT org_id, day, article_id FROM article_views
    WHERE org_id = $1 AND day < (now() - $2::interval)::date LIMIT $3
)
"""
# Words of titles that nobody has any more only cost room; tags would be suggested in vain.
_FORGET_TAGS = """
DELETE FROM article_tags g
WHERE g.org_id = $1 AND NOT EXISTS (
    SELECT FROM article_texts x
    WHERE x.org_id = $1 AND x.live AND x.locale = g.locale AND x.tags @> ARRAY[g.tag]
)
"""


class ContentWorker:
    def __init__(self, *, db: Database, orgs: Orgs, link: Link | None) -> None:
        self._db = db
        self._orgs = orgs
        self._link = link

    def handlers(self) -> Mapping[str, Handler]:
        return {GO_LIVE: self.go_live, RETAIN: self.retain}

    def schedules(self) -> Sequence[Schedule]:
        return (Schedule(RETAIN, RETAIN_EVERY),)

    async def go_live(self, lease: Lease) -> Outcome:
        """Publishes what is still scheduled as it was when the job was made; once, for the job
        ends in the same transaction."""
        told = Told()
        assert lease.subject_id is not None
        async with self._db.tenant_tx(lease.org_id) as tx:
            await lease.fence(tx)
            try:
                row = await queries.lock(tx, lease.org_id, lease.subject_id)
            except ArticleNotFound:
                return Done()  # deleted and purged
            if _still_meant(row, lease):
                await self._publish(tx, lease, row, told)
            await lease.complete(tx)
        await announce(self._link, lease.org_id, told)
        return Done()

    async def _publish(self, tx: Connection, lease: Lease, row: Record, told: Told) -> None:
        org_id, article_id, before = lease.org_id, row["article_id"], queries.standing(row)
        after = rules.take(before, Action.GO_LIVE, Actor(None), revision=before.reviewed)
        await live_changed(tx, org_id, article_id, told)
        await queries.move(tx, org_id, article_id, after, text_goes_live=True)
        await move_texts(tx, org_id, article_id, before, after)
        await audit.append(
            tx, org_id, "content.GoLive", resource_type="article", resource_id=article_id,
            details={
                "from": before.state.value,
                "to": after.state.value,
                "revision": str(after.published),
                "publish_time": row["publish_at"].isoformat(),
            },
        )  # fmt: skip

    async def retain(self, lease: Lease) -> Outcome:
        async with self._db.system_tx() as tx:
            due = [row["org_id"] for row in await tx.fetch(_DUE_ORGS)]
            everyone = [row["org_id"] for row in await tx.fetch(_ORGS)]
        for org_id in due:
            while await self._purge_some(org_id, lease):
                pass
        for org_id in everyone:
            await self._forget(org_id, lease)
            if lease.should_yield():
                return Yield()
        return Done()

    async def _purge_some(self, org_id: UUID, lease: Lease) -> int:
        """With their revisions, votes, views and slugs."""
        async with self._db.tenant_tx(org_id) as tx:
            await lease.fence(tx)
            purged = await tx.fetch(_PURGE, org_id, PURGED_AT_ONCE)
            if purged:
                await queries.count_article(tx, org_id, -len(purged))
            for row in purged:
                await audit.append(
                    tx, org_id, "content.PurgeArticle",
                    resource_type="article", resource_id=row["article_id"],
                )  # fmt: skip
        return len(purged)

    async def _forget(self, org_id: UUID, lease: Lease) -> None:
        kept = (await self._orgs.get(org_id)).retention.search_misses_days
        for statement, age in (
            (_FORGET_MISSES, timedelta(days=kept)), (_FORGET_VIEWS, VIEWS_KEPT)
        ):  # fmt: skip
            forgotten = FORGOTTEN_AT_ONCE
            while forgotten == FORGOTTEN_AT_ONCE:
                async with self._db.tenant_tx(org_id) as tx:
                    await lease.fence(tx)
                    ended = await tx.execute(statement, org_id, age, FORGOTTEN_AT_ONCE)
                forgotten = int(ended.rpartition(" ")[2])
        async with self._db.tenant_tx(org_id) as tx:
            await lease.fence(tx)
            await tx.execute(_FORGET_TAGS, org_id)


def _still_meant(row: Record, lease: Lease) -> bool:
    """Not called off, not moved to another time, not another revision, not deleted."""
    standing = queries.standing(row)
    return (
        standing.state is State.SCHEDULED
        and standing.reviewed == lease.payload["revision"]
        and row["publish_at"] == datetime.fromisoformat(lease.payload["at"])
    )
