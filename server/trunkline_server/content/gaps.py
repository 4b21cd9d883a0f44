"""What is missing: searches that found nothing, reasons that no article helps with."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

from trunkline.api.content.v1 import content_service_pb2 as pb
from trunkline.api.members.v1.validation_reason_pb2 import ValidationReason
from trunkline_server.content import present
from trunkline_server.db import Database, Executor, Record
from trunkline_server.orgs import Orgs
from trunkline_server.paging import PageTokens, page_size
from trunkline_server.rpc.caller import caller

DAYS_DEFAULT = 30
_PREFIX = "VALIDATION_REASON_"

_MISSES = """
WITH missed AS (
    SELECT query, locale, sum(searches)::bigint AS searches, max(last_at) AS last_at
    FROM search_misses
    WHERE org_id = $1 AND day > $2::date - $3::integer AND ($4 = '' OR locale = $4)
    GROUP BY query, locale
)
SELECT query, locale, searches, last_at FROM missed
WHERE $5::bigint IS NULL OR (-searches, query, locale) > (-$5, $6, $7)
ORDER BY searches DESC, query, locale LIMIT $8
"""


async def misses(
    db: Executor,
    org_id: UUID,
    today: object,
    days: int,
    locale: str,
    after: tuple[int, str, str] | None,
    limit: int,
) -> list[Record]:
    count, query, of_locale = after or (None, None, None)
    return await db.fetch(_MISSES, org_id, today, days, locale, count, query, of_locale, limit)


# The ids are made of their time, so the key is the index that the days need.
_REASONS = """
SELECT reason, sum(l.validations)::bigint AS validations
FROM validation_log l, unnest(l.reasons) AS reason
WHERE l.org_id = $1 AND l.validation_id >= $2 AND l.at >= $3
GROUP BY reason
"""


async def reasons(db: Executor, org_id: UUID, since: datetime) -> dict[str, int]:
    earliest = UUID(int=int(since.timestamp() * 1000) << 80)
    rows = await db.fetch(_REASONS, org_id, earliest, since)
    return {row["reason"]: row["validations"] for row in rows}


_PUBLISHED = """
SELECT article_id FROM articles
WHERE org_id = $1 AND article_id = ANY ($2::uuid[]) AND published_revision > 0
"""
_THERE = "SELECT article_id FROM articles WHERE org_id = $1 AND article_id = ANY ($2::uuid[])"


class Gaps:
    def __init__(self, *, db: Database, orgs: Orgs, pages: PageTokens) -> None:
        self._db = db
        self._orgs = orgs
        self._pages = pages

    async def list_misses(self, request: pb.ListSearchMissesRequest) -> pb.ListSearchMissesResponse:
        who, size = caller(), page_size(request.page_size)
        position = self._pages.open(request.page_token, request)
        after = (position[0], position[1], position[2]) if position else None
        today = (await self._orgs.get(who.org_id)).today(datetime.now(UTC))
        async with self._db.tenant_tx(who.org_id) as tx:
            rows = await misses(
                tx, who.org_id, today, request.days or DAYS_DEFAULT, request.locale, after,
                size + 1,
            )  # fmt: skip
        more = len(rows) > size
        return pb.ListSearchMissesResponse(
            misses=[
                pb.SearchMiss(
                    query=row["query"],
                    count=row["searches"],
                    last_time=present.timestamp(row["last_at"]),
                    locale=row["locale"],
                )
                for row in rows[:size]
            ],
            next_page_token=(
                self._pages.seal(
                    [rows[size - 1][name] for name in ("searches", "query", "locale")], request
                )
                if more
                else ""
            ),
        )

    async def list_uncovered(
        self, request: pb.ListUncoveredReasonsRequest
    ) -> pb.ListUncoveredReasonsResponse:
        who = caller()
        settings = await self._orgs.get(who.org_id)
        attached = {
            entry.reason: [UUID(each) for each in entry.article_ids]
            for entry in settings.member_rules.reason_articles
        }
        since = datetime.now(UTC) - timedelta(days=request.days or DAYS_DEFAULT)
        wanted = [article_id for ids in attached.values() for article_id in ids]
        async with self._db.tenant_tx(who.org_id) as tx:
            published = {r["article_id"] for r in await tx.fetch(_PUBLISHED, who.org_id, wanted)}
            there = {r["article_id"] for r in await tx.fetch(_THERE, who.org_id, wanted)}
            counts = await reasons(tx, who.org_id, since)
        uncovered = [
            pb.UncoveredReason(
                reason=reason,
                validations=counts.get(name.removeprefix(_PREFIX), 0),
                unpublished_article_ids=[
                    str(each) for each in attached.get(reason, ()) if each in there
                ],
            )
            for name, reason in ValidationReason.items()
            if reason and not published & set(attached.get(reason, ()))
        ]
        uncovered.sort(key=lambda each: (-each.validations, each.reason))
        return pb.ListUncoveredReasonsResponse(reasons=uncovered)
