"""What is counted off the way of the answer: views, searches, and those that found nothing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from uuid import UUID

import asyncpg

from trunkline_server import facts
from trunkline_server.content import rules
from trunkline_server.db import Database, Executor
from trunkline_server.errors import AppError
from trunkline_server.facts import Fact
from trunkline_server.orgs import Orgs
from trunkline_server.rpc.caller import Caller

FLUSH_INTERVAL_S = 1.0
# Different things that are counted in between; more than that are not told apart any more.
ENTRIES_MAX = 50_000

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Counts:
    """Of one organisation since the last flush."""

    views: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    readers: dict[UUID, int] = field(default_factory=lambda: defaultdict(int))
    searches: dict[tuple[UUID, str], int] = field(default_factory=lambda: defaultdict(int))
    misses: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))

    def __len__(self) -> int:
        return len(self.views) + len(self.readers) + len(self.searches) + len(self.misses)


class Tallies:
    """What a killed process had not flushed is lost: at most FLUSH_INTERVAL_S of it."""

    def __init__(self, db: Database, orgs: Orgs, *, interval_s: float = FLUSH_INTERVAL_S) -> None:
        self._db = db
        self._orgs = orgs
        self._interval_s = interval_s
        self._by_org: dict[UUID, _Counts] = defaultdict(_Counts)
        self._task: asyncio.Task[None] | None = None
        self.dropped = 0

    def viewed(self, who: Caller, article_id: str) -> None:
        counts = self._by_org[who.org_id]
        if article_id in counts.views or len(counts) < ENTRIES_MAX:
            counts.views[article_id] += 1
            counts.readers[who.actor_id] += 1
        else:
            self.dropped += 1

    def searched(self, who: Caller, query: str, locale: str, *, found: bool) -> None:
        counts = self._by_org[who.org_id]
        if len(counts) >= ENTRIES_MAX:
            self.dropped += 1
            return
        outcome = facts.SEARCH_HIT if found else facts.SEARCH_MISS
        counts.searches[who.actor_id, outcome] += 1
        if not found and rules.worth_noting(query):
            counts.misses[query.lower(), locale] += 1

    def start(self) -> None:
        self._task = asyncio.create_task(self._flush_for_ever(), name="content-tallies")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self.flush()

    async def flush(self) -> None:
        by_org, self._by_org = self._by_org, defaultdict(_Counts)
        for org_id, counts in by_org.items():
            try:
                await self._write(org_id, counts)
            except (AppError, asyncpg.PostgresError, OSError) as error:
                self.dropped += len(counts)
                _log.warning("content counts are lost", extra={"reason": type(error).__name__})

    async def _write(self, org_id: UUID, counts: _Counts) -> None:
        now = datetime.now(UTC)
        today = (await self._orgs.get(org_id)).today(now)
        happened = [
            Fact("ARTICLE_VIEW", now, reader, quantity=views)
            for reader, views in counts.readers.items()
        ] + [
            Fact("ARTICLE_SEARCH", now, searcher, outcome, searches)
            for (searcher, outcome), searches in counts.searches.items()
        ]
        async with self._db.tenant_tx(org_id) as tx:
            await _count_views(tx, org_id, today, counts.views)
            await _count_misses(tx, org_id, today, counts.misses)
            await facts.append(tx, org_id, happened)

    async def _flush_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            await self.flush()


# In the order of their ids: two processes that count the same articles wait for each other in a
# row and not in a ring. An article that was purged meanwhile is not counted any more.
_VIEWS = """
WITH given AS (
    SELECT g.article_id, g.views
    FROM unnest($3::uuid[], $4::bigint[]) AS g (article_id, views)
    JOIN article_counts c ON c.org_id = $1 AND c.article_id = g.article_id
    ORDER BY g.article_id
    FOR NO KEY UPDATE OF c
), counted AS (
    UPDATE article_counts c SET views = c.views + g.views
    FROM given g WHERE c.org_id = $1 AND c.article_id = g.article_id
)
INSERT INTO article_views (org_id, day, article_id, views)
SELECT $1, $2, article_id, views FROM given
ON CONFLICT (org_id, day, article_id) DO UPDATE SET views = article_views.views + excluded.views
"""


async def _count_views(tx: Executor, org_id: UUID, day: date, views: dict[str, int]) -> None:
    if views:
        ids = sorted(views)
        await tx.execute(_VIEWS, org_id, day, ids, [views[each] for each in ids])


_MISSES = """
INSERT INTO search_misses (org_id, day, locale, query, searches, last_at)
SELECT $1, $2, locale, query, searches, now()
FROM unnest($3::text[], $4::text[], $5::bigint[]) AS g (query, locale, searches)
ORDER BY query, locale
ON CONFLICT (org_id, day, locale, query) DO UPDATE
SET searches = search_misses.searches + excluded.searches, last_at = now()
"""


async def _count_misses(
    tx: Executor, org_id: UUID, day: date, misses: dict[tuple[str, str], int]
) -> None:
    if misses:
        keys = sorted(misses)
        await tx.execute(
            _MISSES, org_id, day, [query for query, _ in keys], [locale for _, locale in keys],
            [misses[key] for key in keys],
        )  # fmt: skip
