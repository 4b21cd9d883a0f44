"""The search: websearch syntax in each language's own words, near words where nothing matches.

Nothing a caller types is a syntax error. docs/adr/0025 has what it costs and why it is built so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from trunkline.api.content.v1 import content_service_pb2 as pb
from trunkline_server.content import present, queries, render, rules
from trunkline_server.content.queries import Filter
from trunkline_server.content.reading import filter_of, is_live_view
from trunkline_server.content.tallies import Tallies
from trunkline_server.db import Connection, Database, Executor, Record
from trunkline_server.paging import PageTokens, page_size
from trunkline_server.rpc.caller import Role, caller

PAGE_DEFAULT = 20
# So many that match in title or tags are looked at, and where they are fewer, as many that match
# in their text. Who finds more should ask more.
CANDIDATES_MAX = 400
# The best ones by title, age and votes are ranked by the whole of their text.
REFINED_MAX = 40
# Passages cost more than the search itself; what comes after these is seldom looked at.
HIGHLIGHTED_MAX = 10
FACET_VALUES_MAX = 50
NEAR_WORDS_MAX = 20
CORRECTED_WORDS_MAX = 6
CORRECTED_CHARS_MIN = 4
SUGGESTIONS_DEFAULT = 10
SUGGESTIONS_MAX = 20

_FACETS = (
    ("KIND", pb.FACET_FIELD_KIND),
    ("CATEGORY", pb.FACET_FIELD_CATEGORY),
    ("TAG", pb.FACET_FIELD_TAG),
    ("LOCALE", pb.FACET_FIELD_LOCALE),
)

_CONFIGS = "SELECT c.config FROM article_configs($1, $2) AS c (config)"


async def configs(db: Executor, org_id: UUID, *, live: bool) -> list[str]:
    return [row["config"] for row in await db.fetch(_CONFIGS, org_id, live)]


_CALL = "($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)"
_PAGE = """
SELECT f.article_id, f.tier, f.score, f.total, f.capped
FROM search_{scope}_articles{call} AS f
WHERE $14::integer IS NULL OR (f.tier, -f.score, f.article_id) > ($14, -$15::float8, $16::uuid)
ORDER BY f.tier, f.score DESC, f.article_id LIMIT $17
"""
_COUNTS = """
WITH found AS MATERIALIZED (
    SELECT f.kind, f.category_id, f.tags, f.locale FROM search_{scope}_articles{call} AS f
), counted AS (
    SELECT 'KIND' AS field, kind AS value, count(*) AS articles FROM found GROUP BY kind
    UNION ALL
    SELECT 'CATEGORY', category_id::text, count(*) FROM found
    WHERE category_id IS NOT NULL GROUP BY category_id
    UNION ALL
    SELECT 'TAG', t.tag, count(*) FROM found, unnest(found.tags) AS t (tag) GROUP BY t.tag
    UNION ALL
    SELECT 'LOCALE', locale, count(*) FROM found GROUP BY locale
), ranked AS (
    SELECT field, value, articles,
           row_number() OVER (PARTITION BY field ORDER BY articles DESC, value) AS place
    FROM counted
)
SELECT field, value, articles FROM ranked WHERE place <= $14 ORDER BY field, place
"""
PAGE_LIVE = _PAGE.format(scope="live", call=_CALL)
PAGE_DRAFT = _PAGE.format(scope="draft", call=_CALL)
COUNTS_LIVE = _COUNTS.format(scope="live", call=_CALL)
COUNTS_DRAFT = _COUNTS.format(scope="draft", call=_CALL)


@dataclass(frozen=True, slots=True)
class Asked:
    """A search as the database is asked."""

    query: str
    configs: list[str]
    now: datetime  # what age is counted from: the same for all pages
    filter: Filter

    def arguments(self, org_id: UUID) -> tuple[object, ...]:
        asked = self.filter
        return (
            org_id, self.query, self.configs, self.now, asked.kinds, asked.states,
            asked.category_ids, asked.tags, asked.locales, asked.author_id, asked.deleted,
            CANDIDATES_MAX, REFINED_MAX,
        )  # fmt: skip


async def find(
    db: Executor, org_id: UUID, asked: Asked, after: Sequence[Any] | None, limit: int
) -> list[Record]:
    tier, score, article_id = after or (None, None, None)
    page = PAGE_LIVE if asked.filter.live else PAGE_DRAFT
    return await db.fetch(page, *asked.arguments(org_id), tier, score, article_id, limit)


async def count(db: Executor, org_id: UUID, asked: Asked) -> list[Record]:
    counts = COUNTS_LIVE if asked.filter.live else COUNTS_DRAFT
    return await db.fetch(counts, *asked.arguments(org_id), FACET_VALUES_MAX)


_HIGHLIGHTS = """
SELECT x.article_id,
       ts_headline(x.config::regconfig, x.title, q.query, $5) AS title,
       ts_headline(x.config::regconfig, x.plain, q.query, $6) AS passages
FROM article_texts x
CROSS JOIN LATERAL (SELECT websearch_to_tsquery(x.config::regconfig, $4) AS query) AS q
WHERE x.org_id = $1 AND x.live = $2 AND x.article_id = ANY ($3::uuid[])
"""
_MARKED = f"StartSel={render.MARK_START}, StopSel={render.MARK_END}"
_WHOLE_TITLE = f"{_MARKED}, HighlightAll=true"
_DELIMITER = " … "
_PASSAGES = f'{_MARKED}, MaxFragments=2, MaxWords=24, MinWords=8, FragmentDelimiter="{_DELIMITER}"'


async def highlights(
    db: Executor, org_id: UUID, article_ids: Sequence[UUID], query: str, *, live: bool
) -> dict[UUID, Record]:
    rows = await db.fetch(
        _HIGHLIGHTS, org_id, live, list(article_ids), query, _WHOLE_TITLE, _PASSAGES
    )
    return {row["article_id"]: row for row in rows}


_NEAR = "SELECT n.asked, n.word FROM near_article_words($1, $2, $3) AS n"


async def near_words(db: Executor, org_id: UUID, words: list[str]) -> dict[str, list[str]]:
    near: dict[str, list[str]] = {}
    for row in await db.fetch(_NEAR, org_id, words, NEAR_WORDS_MAX):
        near.setdefault(row["asked"], []).append(row["word"])
    return near


_SUGGEST_LIVE = """
SELECT s.title, s.article_id, s.place FROM suggest_live_articles($1, $2, $3, $4) AS s
ORDER BY s.place, length(s.title), s.title, s.article_id
"""
_SUGGEST_DRAFT = """
SELECT s.title, s.article_id, s.place FROM suggest_draft_articles($1, $2, $3, $4) AS s
ORDER BY s.place, length(s.title), s.title, s.article_id
"""
_SUGGEST_TAGS = """
SELECT DISTINCT g.tag FROM article_tags g
WHERE g.org_id = $1 AND g.tag >= lower($2) COLLATE "C"
  AND g.tag < (lower($2) || U&'\\+10FFFF') COLLATE "C" AND ($3 = '' OR g.locale = $3)
ORDER BY g.tag LIMIT $4
"""


async def suggest(
    db: Executor, org_id: UUID, prefix: str, locale: str, limit: int, *, live: bool
) -> list[tuple[str, str]]:
    """Titles that begin so, tags that do, titles with a word that does; article id or ''."""
    titles = await db.fetch(
        _SUGGEST_LIVE if live else _SUGGEST_DRAFT, org_id, prefix, locale, limit
    )
    tags = await db.fetch(_SUGGEST_TAGS, org_id, prefix, locale, limit)
    begun = [(row["title"], str(row["article_id"])) for row in titles if row["place"] == 0]
    within = [(row["title"], str(row["article_id"])) for row in titles if row["place"] == 1]
    found = dict.fromkeys([*begun, *((row["tag"], "") for row in tags), *within])
    return list(found)[:limit]


class Searching:
    def __init__(self, *, db: Database, pages: PageTokens, tallies: Tallies) -> None:
        self._db = db
        self._pages = pages
        self._tallies = tallies

    async def search(self, request: pb.SearchArticlesRequest) -> pb.SearchArticlesResponse:
        who, live = caller(), is_live_view(request.view, caller().role)
        size = page_size(request.page_size or PAGE_DEFAULT)
        position = self._pages.open(request.page_token, request)
        query = rules.normalised_query(request.query)
        now = datetime.fromisoformat(position[3]) if position else datetime.now(UTC)
        async with self._db.tenant_tx(who.org_id) as tx:
            asked = Asked(
                query=position[4] if position else query,
                configs=await configs(tx, who.org_id, live=live),
                now=now,
                filter=await filter_of(tx, who, request.filter, live=live),
            )
            rows = await find(tx, who.org_id, asked, position[:3] if position else None, size + 1)
            if not rows and not position:
                asked, rows = await self._near(tx, who.org_id, asked, size + 1)
            reply = await self._reply(tx, who.org_id, who.role, asked, rows, size)
            if request.with_facets and not position:
                reply.facets.extend(_facets(await count(tx, who.org_id, asked)))
        if len(rows) > size:
            last = rows[size - 1]
            reply.next_page_token = self._pages.seal(
                [last["tier"], last["score"], str(last["article_id"]), now.isoformat(),
                 asked.query],
                request,
            )  # fmt: skip
        if not position:
            locale = request.filter.locales[0] if len(request.filter.locales) == 1 else ""
            self._tallies.searched(who, query, locale, found=bool(rows))
        return reply

    async def _near(
        self, tx: Connection, org_id: UUID, asked: Asked, limit: int
    ) -> tuple[Asked, list[Record]]:
        """Nothing matches as it was typed: typing errors are undone, and it is asked again."""
        words = [word for word in rules.words(asked.query) if len(word) >= CORRECTED_CHARS_MIN][
            :CORRECTED_WORDS_MAX
        ]
        near = await near_words(tx, org_id, words) if words else {}
        better = rules.corrected(asked.query, near)
        if not better:
            return asked, []
        again = replace(asked, query=better)
        return again, await find(tx, org_id, again, None, limit)

    async def _reply(
        self,
        tx: Connection,
        org_id: UUID,
        role: Role,
        asked: Asked,
        rows: list[Record],
        size: int,
    ) -> pb.SearchArticlesResponse:
        live, shown = asked.filter.live, rows[:size]
        ids = [row["article_id"] for row in shown]
        articles = await queries.many(tx, org_id, ids, live=live) if ids else {}
        marked = {}
        if ids:
            marked = await highlights(tx, org_id, ids[:HIGHLIGHTED_MAX], asked.query, live=live)
        reply = pb.SearchArticlesResponse()
        if rows:
            reply.total = rows[0]["total"]
            reply.total_is_lower_bound = rows[0]["capped"]
        for row in shown:
            if (article := articles.get(row["article_id"])) is not None:
                match = reply.matches.add(
                    article=present.article(article, role, live=live), score=row["score"]
                )
                _mark(match, marked.get(row["article_id"]), article["title"])
        return reply

    async def suggest(self, request: pb.SuggestSearchesRequest) -> pb.SuggestSearchesResponse:
        who = caller()
        limit = min(request.limit or SUGGESTIONS_DEFAULT, SUGGESTIONS_MAX)
        live = who.role not in rules.WRITERS
        prefix = rules.normalised_query(request.prefix)
        async with self._db.tenant_tx(who.org_id) as tx:
            found = await suggest(tx, who.org_id, prefix, request.locale, limit, live=live)
        return pb.SuggestSearchesResponse(
            suggestions=[
                pb.SearchSuggestion(text=text, article_id=article_id) for text, article_id in found
            ]
        )


def _mark(match: pb.ArticleMatch, marked: Record | None, title: str) -> None:
    if marked is None:
        match.title_highlight = render.highlighted(render.searchable_title(title))
        return
    match.title_highlight = render.highlighted(marked["title"])
    # Without a word of the search in it a passage is just the beginning: no highlight.
    match.highlights.extend(
        render.highlighted(passage)
        for passage in marked["passages"].split(_DELIMITER)
        if render.MARK_START in passage
    )


def _facets(rows: list[Record]) -> list[pb.Facet]:
    return [
        pb.Facet(
            field=field,
            counts=[
                pb.FacetCount(value=row["value"], count=row["articles"])
                for row in rows
                if row["field"] == name
            ],
        )
        for name, field in _FACETS
    ]
