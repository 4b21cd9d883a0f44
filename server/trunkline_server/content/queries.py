"""The SQL of articles: the row that is locked, revisions, the two texts, lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg

from trunkline_server.content import render
from trunkline_server.content.errors import (
    ArticleNotFound,
    ArticleSlugTaken,
    CategoryNotFound,
    RevisionNotFound,
)
from trunkline_server.content.rules import Standing, State
from trunkline_server.db import Executor, Reader, Record

SLUG_NUMBERS_MAX = 1_000


@dataclass(frozen=True, slots=True)
class Text:
    """What a revision holds."""

    slug: str
    title: str
    summary: str
    body: str
    category_id: UUID | None
    tags: list[str]
    translation_of_id: UUID | None


# -- the organisation's row

_TOUCH_STATE = """
INSERT INTO content_states (org_id, version, articles) VALUES ($1, 1, greatest($3, 0))
ON CONFLICT (org_id) DO UPDATE
SET version = content_states.version + $2, articles = content_states.articles + $3
RETURNING version, articles
"""


async def count_article(db: Executor, org_id: UUID, by: int) -> int:
    """One more or fewer; how many there are now. Holds the organisation's row until the commit."""
    return int((await _touch(db, org_id, 0, by))["articles"])


async def bump_version(db: Executor, org_id: UUID) -> int:
    """Readers see something else from the commit on."""
    return int((await _touch(db, org_id, 1, 0))["version"])


async def _touch(db: Executor, org_id: UUID, version: int, articles: int) -> Record:
    row = await db.fetchrow(_TOUCH_STATE, org_id, version, articles)
    assert row is not None
    return row


_VERSION = "SELECT version FROM content_states WHERE org_id = $1"


async def version(db: Executor, org_id: UUID) -> int:
    return int(await db.fetchval(_VERSION, org_id) or 0)


# -- articles

_LOCK = """
SELECT article_id, kind, locale, state, draft_revision, published_revision, reviewed_revision,
       publish_at, version, deleted_at
FROM articles WHERE org_id = $1 AND article_id = $2 FOR NO KEY UPDATE
"""


async def lock(db: Executor, org_id: UUID, article_id: UUID) -> Record:
    row = await db.fetchrow(_LOCK, org_id, article_id)
    if row is None:
        raise ArticleNotFound
    return row


_EXISTS = "SELECT locale FROM articles WHERE org_id = $1 AND article_id = $2"


async def locale_of(db: Executor, org_id: UUID, article_id: UUID) -> str:
    found: str | None = await db.fetchval(_EXISTS, org_id, article_id)
    if found is None:
        raise ArticleNotFound
    return found


def standing(row: Record) -> Standing:
    """A locked row as the workflow sees it."""
    state = State.DELETED if row["deleted_at"] is not None else State(row["state"])
    return Standing(
        state, row["draft_revision"], row["published_revision"], row["reviewed_revision"]
    )


_CREATE = """
INSERT INTO articles (org_id, article_id, kind, locale, state, draft_revision)
VALUES ($1, $2, $3, $4, 'DRAFT', 1)
"""
_CREATE_COUNTS = "INSERT INTO article_counts (org_id, article_id) VALUES ($1, $2)"


async def create(db: Executor, org_id: UUID, article_id: UUID, kind: str, locale: str) -> None:
    await db.execute(_CREATE, org_id, article_id, kind, locale)
    await db.execute(_CREATE_COUNTS, org_id, article_id)


_MOVE = """
UPDATE articles SET
    state = $3, draft_revision = $4, published_revision = $5, reviewed_revision = $6,
    publish_at = $7,
    live_at = CASE WHEN $5::bigint = 0 THEN NULL WHEN $8 THEN now() ELSE live_at END,
    rejection_reason = CASE WHEN $3::text = 'DRAFT' THEN coalesce($9, rejection_reason) ELSE '' END,
    deleted_at = CASE WHEN $10::interval IS NULL THEN NULL ELSE now() END,
    purge_at = now() + $10::interval,
    version = version + 1, updated_at = now()
WHERE org_id = $1 AND article_id = $2
"""
_MOVE_TEXTS = """
UPDATE article_texts SET state = $3, deleted = $4 WHERE org_id = $1 AND article_id = $2
"""


async def move(
    db: Executor,
    org_id: UUID,
    article_id: UUID,
    after: Standing,
    *,
    publish_at: datetime | None = None,
    text_goes_live: bool = False,
    rejection_reason: str | None = None,
    kept: timedelta | None = None,
) -> None:
    """Writes the standing down; `kept` is how long a deleted article can be restored."""
    # A deleted article keeps the state it is restored to.
    is_deleted = after.state is State.DELETED
    state = "DRAFT" if is_deleted else after.state.value
    await db.execute(
        _MOVE, org_id, article_id, state, after.draft, after.published, after.reviewed, publish_at,
        text_goes_live, rejection_reason, kept,
    )  # fmt: skip
    await db.execute(_MOVE_TEXTS, org_id, article_id, state, is_deleted)


# -- revisions

_CREATE_REVISION = """
INSERT INTO article_revisions (
    org_id, article_id, revision, slug, title, summary, body, category_id, tags,
    translation_of_id, note, author_id, author_name, rollback_of
) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
"""
_INDEX = "SELECT index_article_text($1, $2, $3, $4, $5, $6, $7)"


async def write_revision(
    db: Executor,
    org_id: UUID,
    article_id: UUID,
    revision: int,
    text: Text,
    *,
    note: str,
    author_id: UUID,
    author_name: str,
    rollback_of: int = 0,
) -> None:
    """The article's row is locked and points to the revision already."""
    await db.execute(
        _CREATE_REVISION, org_id, article_id, revision, text.slug, text.title, text.summary,
        text.body, text.category_id, text.tags, text.translation_of_id, note, author_id,
        author_name, rollback_of,
    )  # fmt: skip
    await index_text(db, org_id, article_id, revision, text, live=False)


async def index_text(
    db: Executor, org_id: UUID, article_id: UUID, revision: int, text: Text, *, live: bool
) -> None:
    try:
        await db.execute(
            _INDEX, org_id, article_id, live, revision, text.translation_of_id or article_id,
            render.searchable_title(text.title), render.plain(text.summary, text.body),
        )  # fmt: skip
    except asyncpg.ForeignKeyViolationError:
        raise CategoryNotFound from None


_TEXT = """
SELECT r.slug, r.title, r.summary, r.body, r.category_id, r.tags, r.translation_of_id,
       r.author_id, r.approved_at IS NOT NULL AS approved
FROM article_revisions r WHERE r.org_id = $1 AND r.article_id = $2 AND r.revision = $3
"""


async def revision_row(db: Executor, org_id: UUID, article_id: UUID, revision: int) -> Record:
    row = await db.fetchrow(_TEXT, org_id, article_id, revision)
    if row is None:
        raise RevisionNotFound
    return row


def text(row: Record) -> Text:
    return Text(
        slug=row["slug"],
        title=row["title"],
        summary=row["summary"],
        body=row["body"],
        category_id=row["category_id"],
        tags=list(row["tags"]),
        translation_of_id=row["translation_of_id"],
    )


_APPROVED = """
UPDATE article_revisions SET approver_id = $4, approved_at = now()
WHERE org_id = $1 AND article_id = $2 AND revision = $3
"""


async def note_approval(
    db: Executor, org_id: UUID, article_id: UUID, revision: int, approver_id: UUID
) -> None:
    await db.execute(_APPROVED, org_id, article_id, revision, approver_id)


_REJECTED = """
UPDATE article_revisions SET rejection_reason = $4
WHERE org_id = $1 AND article_id = $2 AND revision = $3
"""


async def note_rejection(
    db: Executor, org_id: UUID, article_id: UUID, revision: int, reason: str
) -> None:
    await db.execute(_REJECTED, org_id, article_id, revision, reason)


# A word to the reviewer or the author; the text of the revision stays as it is.
_ADD_NOTE = """
UPDATE article_revisions SET note = concat_ws(E'\\n', nullif(note, ''), $4::text)
WHERE org_id = $1 AND article_id = $2 AND revision = $3
"""


async def add_note(db: Executor, org_id: UUID, article_id: UUID, revision: int, note: str) -> None:
    await db.execute(_ADD_NOTE, org_id, article_id, revision, note)


# Also proves what the workflow promises: a revision without an approval has no publication.
_FIRST_PUBLISHED = """
UPDATE article_revisions SET published_at = coalesce(published_at, now())
WHERE org_id = $1 AND article_id = $2 AND revision = $3
"""


async def put_live(db: Executor, org_id: UUID, article_id: UUID, revision: int) -> None:
    await db.execute(_FIRST_PUBLISHED, org_id, article_id, revision)
    row = await revision_row(db, org_id, article_id, revision)
    await index_text(db, org_id, article_id, revision, text(row), live=True)


_TAKE_LIVE_AWAY = "DELETE FROM article_texts WHERE org_id = $1 AND article_id = $2 AND live"


async def take_live_away(db: Executor, org_id: UUID, article_id: UUID) -> None:
    await db.execute(_TAKE_LIVE_AWAY, org_id, article_id)


_REVISIONS = """
SELECT revision, title, note, author_id, author_name, created_at, approver_id, approved_at,
       published_at, rejection_reason, rollback_of
FROM article_revisions
WHERE org_id = $1 AND article_id = $2 AND ($3::bigint IS NULL OR revision < $3)
ORDER BY revision DESC LIMIT $4
"""


async def revisions(
    db: Executor, org_id: UUID, article_id: UUID, before: int | None, limit: int
) -> list[Record]:
    return await db.fetch(_REVISIONS, org_id, article_id, before, limit)


# -- slugs

_TAKE_SLUG = """
INSERT INTO article_slugs (org_id, locale, slug, article_id) VALUES ($1, $2, $3, $4)
ON CONFLICT DO NOTHING
"""
_SLUG_OWNER = """
SELECT article_id FROM article_slugs WHERE org_id = $1 AND locale = $2 AND slug = $3
"""


async def take_slug(db: Executor, org_id: UUID, locale: str, slug: str, article_id: UUID) -> None:
    await db.execute(_TAKE_SLUG, org_id, locale, slug, article_id)
    if await db.fetchval(_SLUG_OWNER, org_id, locale, slug) != article_id:
        raise ArticleSlugTaken


_SLUGS_LIKE = """
SELECT slug FROM article_slugs
WHERE org_id = $1 AND locale = $2 AND (slug = $3 OR slug ~ ('^' || $3 || '-[0-9]+$'))
LIMIT $4
"""


async def slugs_like(db: Executor, org_id: UUID, locale: str, slug: str) -> set[str]:
    """The slug and its numbered ones that are taken. A slug holds no sign of an expression."""
    rows = await db.fetch(_SLUGS_LIKE, org_id, locale, slug, SLUG_NUMBERS_MAX)
    return {row["slug"] for row in rows}


# -- reading

_COLUMNS = """
a.article_id, a.kind, a.locale, a.state, a.draft_revision, a.published_revision,
       a.reviewed_revision, a.publish_at, a.live_at, a.rejection_reason, a.version, a.created_at,
       a.updated_at, a.deleted_at, a.purge_at, r.revision, r.slug, r.title, r.summary,
       r.category_id, r.tags, r.translation_of_id, r.author_id, r.author_name,
       l.approver_id, c.helpful, c.not_helpful, c.views
"""
_JOINS = """
JOIN article_counts c ON c.org_id = a.org_id AND c.article_id = a.article_id
LEFT JOIN article_revisions l
    ON l.org_id = a.org_id AND l.article_id = a.article_id AND l.revision = a.published_revision
"""
_GET_DRAFT = f"""
SELECT {_COLUMNS}, r.body
FROM articles a
JOIN article_revisions r
    ON r.org_id = a.org_id AND r.article_id = a.article_id AND r.revision = a.draft_revision
{_JOINS}
WHERE a.org_id = $1 AND a.article_id = $2
"""  # noqa: S608 - made of constants
_GET_LIVE = f"""
SELECT {_COLUMNS}, r.body
FROM articles a
JOIN article_revisions r
    ON r.org_id = a.org_id AND r.article_id = a.article_id AND r.revision = a.published_revision
{_JOINS}
WHERE a.org_id = $1 AND a.article_id = $2
"""  # noqa: S608 - made of constants


async def get(db: Reader, org_id: UUID, article_id: UUID, *, live: bool) -> Record:
    row = await db.fetchrow(_GET_LIVE if live else _GET_DRAFT, org_id, article_id)
    if row is None:
        raise ArticleNotFound
    return row


# The live texts that translate the same original, by locale; the last published one counts.
_TRANSLATIONS = """
SELECT DISTINCT ON (o.locale) o.locale, o.article_id
FROM article_texts x
JOIN article_texts o ON o.org_id = $1 AND o.group_id = x.group_id AND o.live = x.live
WHERE x.org_id = $1 AND x.article_id = $2 AND x.live = $3
ORDER BY o.locale, o.article_id <> $2, o.fresh_at DESC
"""
_TRANSLATIONS_OF_ORIGINAL = """
SELECT DISTINCT ON (o.locale) o.locale, o.article_id
FROM article_texts o WHERE o.org_id = $1 AND o.group_id = $2 AND o.live = $3
ORDER BY o.locale, o.fresh_at DESC
"""


async def translations(
    db: Reader, org_id: UUID, article_id: UUID, *, live: bool
) -> dict[str, UUID]:
    """Of the article, which may itself have no such text."""
    rows = await db.fetch(_TRANSLATIONS, org_id, article_id, live)
    rows = rows or await db.fetch(_TRANSLATIONS_OF_ORIGINAL, org_id, article_id, live)
    return {row["locale"]: row["article_id"] for row in rows}


_ORIGINAL = """
SELECT coalesce(x.group_id, a.article_id) AS original_id
FROM articles a
LEFT JOIN article_texts x
    ON x.org_id = a.org_id AND x.article_id = a.article_id AND NOT x.live
WHERE a.org_id = $1 AND a.article_id = $2
"""


async def original_of(db: Reader, org_id: UUID, article_id: UUID) -> UUID:
    row = await db.fetchrow(_ORIGINAL, org_id, article_id)
    if row is None:
        raise ArticleNotFound
    original: UUID = row["original_id"]
    return original


_HAS_TRANSLATIONS = """
SELECT EXISTS (
    SELECT FROM article_texts
    WHERE org_id = $1 AND group_id = $2 AND article_id <> $2
)
"""


async def has_translations(db: Executor, org_id: UUID, article_id: UUID) -> bool:
    return bool(await db.fetchval(_HAS_TRANSLATIONS, org_id, article_id))


_CATEGORY_EXISTS = """
SELECT EXISTS (SELECT FROM categories WHERE org_id = $1 AND category_id = $2)
"""


async def category_exists(db: Executor, org_id: UUID, category_id: UUID | None) -> bool:
    return bool(await db.fetchval(_CATEGORY_EXISTS, org_id, category_id))


# -- lists

_FILTER = """
  AND x.live = $2 AND (x.deleted = false OR $3)
  AND ($4::text[] IS NULL OR x.kind = ANY ($4))
  AND ($5::text[] IS NULL OR x.state = ANY ($5))
  AND ($6::uuid[] IS NULL OR x.category_id = ANY ($6))
  AND ($7::text[] IS NULL OR x.tags @> $7)
  AND ($8::text[] IS NULL OR x.locale = ANY ($8))
  AND ($9::uuid IS NULL OR x.author_id = $9)
"""
# The page is picked in the order of an index before anything is joined to it: whatever the
# planner believes of the rest, no more than the page is read.
_PICKED = (
    """
FROM articles a JOIN article_texts x ON x.org_id = a.org_id AND x.article_id = a.article_id
WHERE a.org_id = $1 AND x.org_id = $1
"""
    + _FILTER
)
_LISTED = f"""
SELECT {_COLUMNS}, CASE WHEN $10 THEN r.body ELSE '' END AS body, p.title_key
FROM p
JOIN articles a ON a.org_id = $1 AND a.article_id = p.article_id
JOIN article_revisions r
    ON r.org_id = a.org_id AND r.article_id = a.article_id
   AND r.revision = CASE WHEN $2 THEN a.published_revision ELSE a.draft_revision END
{_JOINS}
"""  # noqa: S608 - made of constants
_BY_UPDATE = f"""
WITH p AS MATERIALIZED (
    SELECT a.article_id, a.updated_at, x.title_key {_PICKED}
      AND ($11::timestamptz IS NULL OR (a.updated_at, a.article_id) < ($11, $12::uuid))
    ORDER BY a.updated_at DESC, a.article_id DESC LIMIT $13
)
{_LISTED} ORDER BY p.updated_at DESC, p.article_id DESC
"""
_BY_PUBLICATION = f"""
WITH p AS MATERIALIZED (
    SELECT a.article_id, a.live_at, x.title_key {_PICKED} AND a.live_at IS NOT NULL
      AND ($11::timestamptz IS NULL OR (a.live_at, a.article_id) < ($11, $12::uuid))
    ORDER BY a.live_at DESC, a.article_id DESC LIMIT $13
)
{_LISTED} ORDER BY p.live_at DESC, p.article_id DESC
"""
_BY_TITLE = f"""
WITH p AS MATERIALIZED (
    SELECT x.article_id, x.title_key {_PICKED}
      AND ($11::text IS NULL OR (x.title_key, x.article_id) > ($11 COLLATE "C", $12::uuid))
    ORDER BY x.title_key, x.article_id LIMIT $13
)
{_LISTED} ORDER BY p.title_key, p.article_id
"""


@dataclass(frozen=True, slots=True)
class Filter:
    """None: any."""

    live: bool
    deleted: bool = False
    kinds: list[str] | None = None
    states: list[str] | None = None
    category_ids: list[UUID] | None = None
    tags: list[str] | None = None
    locales: list[str] | None = None
    author_id: UUID | None = None


_ORDERS = {"UPDATE_TIME_DESC": _BY_UPDATE, "PUBLISH_TIME_DESC": _BY_PUBLICATION, "TITLE": _BY_TITLE}


async def list_articles(
    db: Executor,
    org_id: UUID,
    asked: Filter,
    *,
    order: str,
    with_body: bool,
    after: tuple[Any, UUID] | None,
    limit: int,
) -> list[Record]:
    key, article_id = after or (None, None)
    return await db.fetch(
        _ORDERS[order], org_id, asked.live, asked.deleted, asked.kinds, asked.states,
        asked.category_ids, asked.tags, asked.locales, asked.author_id, with_body, key,
        article_id, limit,
    )  # fmt: skip


_MANY = f"""
SELECT {_COLUMNS}, '' AS body
FROM articles a
JOIN article_revisions r
    ON r.org_id = a.org_id AND r.article_id = a.article_id
   AND r.revision = CASE WHEN $3 THEN a.published_revision ELSE a.draft_revision END
{_JOINS}
WHERE a.org_id = $1 AND a.article_id = ANY ($2::uuid[])
"""  # noqa: S608 - made of constants


async def many(
    db: Executor, org_id: UUID, article_ids: Sequence[UUID], *, live: bool
) -> dict[UUID, Record]:
    """Without their bodies."""
    rows = await db.fetch(_MANY, org_id, list(article_ids), live)
    return {row["article_id"]: row for row in rows}


_TOP = (
    """
SELECT v.article_id, sum(v.views)::bigint AS views
FROM article_views v
JOIN article_texts x ON x.org_id = v.org_id AND x.article_id = v.article_id
WHERE v.org_id = $1 AND v.day > $10::date - $11::integer AND v.day <= $10::date
"""
    + _FILTER
    + """
GROUP BY v.article_id
HAVING $12::bigint IS NULL OR (sum(v.views)::bigint, v.article_id) < ($12, $13::uuid)
ORDER BY views DESC, v.article_id DESC LIMIT $14
"""
)


async def top(
    db: Executor,
    org_id: UUID,
    asked: Filter,
    *,
    today: Any,
    days: int,
    before: tuple[int, UUID] | None,
    limit: int,
) -> list[Record]:
    views, article_id = before or (None, None)
    return await db.fetch(
        _TOP, org_id, asked.live, asked.deleted, asked.kinds, asked.states, asked.category_ids,
        asked.tags, asked.locales, asked.author_id, today, days, views, article_id, limit,
    )  # fmt: skip


# -- votes

_LIVE = "SELECT published_revision > 0 AS live FROM articles WHERE org_id = $1 AND article_id = $2"


async def is_live(db: Executor, org_id: UUID, article_id: UUID) -> bool | None:
    """None: there is no such article."""
    found: bool | None = await db.fetchval(_LIVE, org_id, article_id)
    return found


# The counts' row first: two votes on one article take turns, whoever casts them.
_LOCK_COUNTS = """
SELECT helpful, not_helpful FROM article_counts
WHERE org_id = $1 AND article_id = $2 FOR NO KEY UPDATE
"""
_VOTE_BEFORE = """
SELECT vote FROM article_votes WHERE org_id = $1 AND article_id = $2 AND actor_id = $3
"""
_VOTE = """
INSERT INTO article_votes (org_id, article_id, actor_id, vote, comment)
VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (org_id, article_id, actor_id) DO UPDATE
SET vote = excluded.vote, comment = excluded.comment, updated_at = now()
"""
_TAKE_BACK = """
DELETE FROM article_votes WHERE org_id = $1 AND article_id = $2 AND actor_id = $3
"""
_COUNT_VOTES = """
UPDATE article_counts SET helpful = helpful + $3, not_helpful = not_helpful + $4
WHERE org_id = $1 AND article_id = $2 RETURNING helpful, not_helpful
"""
_WEIGH_VOTES = """
UPDATE article_texts SET votes_factor = votes_factor($3, $4)
WHERE org_id = $1 AND article_id = $2
"""


async def vote(
    db: Executor, org_id: UUID, article_id: UUID, actor_id: UUID, vote: str, comment: str
) -> Record:
    """`vote` is empty where an earlier one is taken back. The counts as they are now."""
    counts = await db.fetchrow(_LOCK_COUNTS, org_id, article_id)
    assert counts is not None
    before: str | None = await db.fetchval(_VOTE_BEFORE, org_id, article_id, actor_id)
    if vote:
        await db.execute(_VOTE, org_id, article_id, actor_id, vote, comment)
    else:
        await db.execute(_TAKE_BACK, org_id, article_id, actor_id)
    if vote == (before or ""):
        return counts
    helpful = (vote == "HELPFUL") - (before == "HELPFUL")
    not_helpful = (vote == "NOT_HELPFUL") - (before == "NOT_HELPFUL")
    counts = await db.fetchrow(_COUNT_VOTES, org_id, article_id, helpful, not_helpful)
    assert counts is not None
    await db.execute(_WEIGH_VOTES, org_id, article_id, counts["helpful"], counts["not_helpful"])
    return counts
