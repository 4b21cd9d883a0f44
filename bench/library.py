"""Published articles by the ten thousand, straight into the tables, with words as uneven as real
ones: a few occur everywhere, most almost nowhere."""

from __future__ import annotations

import asyncio
import hashlib
import random
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

import asyncpg

BATCH_ROWS = 5_000
WORDS = 30_000
PARAGRAPHS = 20_000
WORDS_A_PARAGRAPH = 75
PARAGRAPHS_A_BODY = 6
SYLLABLES = ("ka", "lo", "mi", "ren", "sta", "ber", "now", "ski", "dor", "fel", "hau", "gri",
             "an", "eli", "tor", "vas", "wil", "mar", "jo", "sen")  # fmt: skip

_SET_ORG = "SELECT set_config('trunkline.org_id', $1, false)"
_ARTICLES = """
INSERT INTO articles (
    org_id, article_id, kind, locale, state, draft_revision, published_revision,
    reviewed_revision, live_at, created_at, updated_at
)
SELECT $1, bench_article_id(i), (ARRAY['ARTICLE', 'FAQ', 'TRAINING'])[1 + i % 3], 'en',
       'PUBLISHED', 1, 1, 1, now() - i * interval '5 minutes', now(), now()
FROM generate_series($2::int, $3::int) AS i
"""
_COUNTS = """
INSERT INTO article_counts (org_id, article_id, helpful, not_helpful, views)
SELECT $1, bench_article_id(i), i % 7, i % 3, i % 100 FROM generate_series($2::int, $3::int) AS i
"""
_INDEX = """
INSERT INTO article_texts (
    org_id, article_id, live, kind, locale, config, group_id, tags, title, title_key, plain,
    title_terms, terms, author_id, state, votes_factor, fresh_at
)
SELECT a.org_id, a.article_id, true, a.kind, 'en', 'english', a.article_id, r.tags, r.title,
       lower(r.title), r.body, t.terms, t.terms || setweight(to_tsvector('english', r.body), 'D'),
       r.author_id, 'PUBLISHED', votes_factor(c.helpful, c.not_helpful), a.live_at
FROM articles a
JOIN article_revisions r USING (org_id, article_id)
JOIN article_counts c USING (org_id, article_id)
CROSS JOIN LATERAL (
    SELECT setweight(to_tsvector('english', r.title), 'A')
        || setweight(to_tsvector('english', array_to_string(r.tags, ' ')), 'B') AS terms
) AS t
WHERE a.org_id = $1
  AND a.article_id = ANY (
      SELECT bench_article_id(i) FROM generate_series($2::int, $3::int) AS i
  )
"""
_VOCABULARY = """
INSERT INTO article_words (org_id, word)
SELECT DISTINCT $1::uuid, word FROM article_texts, unnest(content_words(title)) AS word
WHERE org_id = $1
"""
_LARGE_INDEXES = """
SELECT indexname, indexdef FROM pg_indexes
WHERE tablename = 'article_texts' AND indexdef LIKE '%USING gin%'
"""
_ID = """
CREATE OR REPLACE FUNCTION bench_article_id(i int) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
    SELECT (lpad(to_hex(i), 12, '0') || '7' || substr(md5(i::text), 1, 3) || 'a'
            || substr(md5(i::text), 5, 15))::uuid
$$
"""
_STATE = "INSERT INTO content_states (org_id, articles) VALUES ($1, $2)"
_SAMPLE = """
SELECT article_id, title, split_part(body, ' ', 40) || ' ' || split_part(body, ' ', 41) AS phrase
FROM article_revisions WHERE org_id = $1 ORDER BY md5(article_id::text) LIMIT $2
"""


_COLUMNS = (
    "org_id", "article_id", "revision", "slug", "title", "summary", "body", "tags", "author_id",
    "author_name", "approver_id", "approved_at", "published_at",
)  # fmt: skip


def article_id(number: int) -> UUID:
    digest = hashlib.md5(str(number).encode(), usedforsecurity=False).hexdigest()
    return UUID(f"{number:012x}7{digest[:3]}a{digest[4:19]}")


class Writer:
    """Makes the same articles every time."""

    def __init__(self) -> None:
        self._dice = random.Random(4)
        self.words = [_word(number) for number in range(WORDS)]
        self._paragraphs = [
            " ".join(self._word(3) for _ in range(WORDS_A_PARAGRAPH)).capitalize() + "."
            for _ in range(PARAGRAPHS)
        ]

    def _word(self, unevenness: int) -> str:
        # To a power: the first words of the list are common and the last ones rare.
        return self.words[int(self._dice.random() ** unevenness * WORDS)]

    def text(self, number: int) -> tuple[str, str, list[str]]:
        """Title, body, tags."""
        title = f"{self._word(2)} {self._word(2)} {self._word(1)}".capitalize()
        body = "\n\n".join(self._dice.choices(self._paragraphs, k=PARAGRAPHS_A_BODY))
        return title, body, [self.words[number % 200], self.words[200 + number % 50]]

    def revision(self, org_id: UUID, number: int) -> tuple[object, ...]:
        title, body, tags = self.text(number)
        now = datetime.now(UTC)
        return (
            org_id, article_id(number), 1, f"article-{number}", title, "A summary.", body, tags,
            org_id, "Bench", org_id, now, now,
        )  # fmt: skip


def _word(number: int) -> str:
    first = "".join(SYLLABLES[number // 20**power % 20] for power in range(3))
    return first + (SYLLABLES[number // 8000 % 20] if number >= 8000 else "")


@dataclass(frozen=True, slots=True)
class Sample:
    article_id: str
    title: str
    phrase: str


def fill(database_url: str, org_id: UUID, articles: int, samples: int = 500) -> list[Sample]:
    """Each with a body of about 3 KiB, published; some of them are told of."""
    return asyncio.run(filled(database_url, org_id, articles, samples))


async def filled(database_url: str, org_id: UUID, articles: int, samples: int) -> list[Sample]:
    database = await asyncpg.connect(database_url)
    try:
        await database.execute(_ID)
        await database.execute(_SET_ORG, str(org_id))
        await database.execute("SET synchronous_commit = off")
        await database.execute("SET maintenance_work_mem = '512MB'")
        writer = Writer()
        # As after years of trickling in, but in a minute: the large indexes are made at the end.
        large = await database.fetch(_LARGE_INDEXES)
        for index in large:
            await database.execute(f"DROP INDEX {index['indexname']}")
        for first in range(1, articles + 1, BATCH_ROWS):
            span = (org_id, first, min(first + BATCH_ROWS - 1, articles))
            await database.execute(_ARTICLES, *span)
            await database.execute(_COUNTS, *span)
            await database.copy_records_to_table(
                "article_revisions",
                columns=_COLUMNS,
                records=[writer.revision(org_id, number) for number in range(first, span[2] + 1)],
            )
            await database.execute(_INDEX, *span)
        for index in large:
            await database.execute(index["indexdef"])
        await database.execute(_VOCABULARY, org_id)
        await database.execute(_STATE, org_id, articles)
        await database.execute(
            "VACUUM (ANALYZE) articles, article_counts, article_texts, article_revisions"
        )
        rows = await database.fetch(_SAMPLE, org_id, samples)
        return [Sample(str(r["article_id"]), r["title"], r["phrase"]) for r in rows]
    finally:
        await database.close()
