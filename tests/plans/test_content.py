"""The searches use their indexes under row-level security: each index node by name, and how many
blocks a search touches as the application asks it."""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest

from bench import library
from bench.library import Sample
from tests.conftest import Databases
from trunkline_server.content import queries, search
from trunkline_server.content.queries import Filter

ORG = uuid.UUID(int=7 << 64)
NOW = datetime.now(UTC)
# Blocks of 8 KiB. A walk through 2,000 articles is 700 of them, through 100,000 some 40,000.
BLOCKS_MAX = {2_000: 3_000, 100_000: 9_000}
FUNCTION = "SELECT prosrc FROM pg_proc WHERE proname = $1"
PARAMETERS = (
    ("p_org", "uuid"), ("p_query", "text"), ("p_configs", "text[]"), ("p_now", "timestamptz"),
    ("p_kinds", "text[]"), ("p_states", "text[]"), ("p_categories", "uuid[]"), ("p_tags", "text[]"),
    ("p_locales", "text[]"), ("p_author", "uuid"), ("p_deleted", "boolean"),
    ("p_candidates", "integer"), ("p_refined", "integer"),
)  # fmt: skip


# As many drafts as live texts.
_COLUMNS = """org_id, article_id, kind, locale, config, group_id, tags, title, title_key, plain,
    title_terms, terms, author_id, state, fresh_at"""
DRAFTS = f"""
INSERT INTO article_texts (live, {_COLUMNS}) SELECT false, {_COLUMNS} FROM article_texts
"""


class Library:
    def __init__(self, url: str, articles: int, samples: list[Sample]) -> None:
        self.url = url
        self.articles = articles
        self.samples = samples


@pytest.fixture(scope="module", params=[2_000, pytest.param(100_000, marks=pytest.mark.long)])
def filled(request: pytest.FixtureRequest, migrated_databases: Databases) -> Iterator[Library]:
    url = migrated_databases.create()

    async def fill() -> list[Sample]:
        connection = await asyncpg.connect(url)
        await connection.execute(
            "INSERT INTO orgs (org_id, slug, display_name) VALUES ($1, 'big', 'Big')", ORG
        )
        await connection.close()
        samples = await library.filled(url, ORG, request.param, 20)
        connection = await asyncpg.connect(url)
        await connection.execute(DRAFTS)
        await connection.execute("ANALYZE article_texts")
        await connection.close()
        return samples

    with ThreadPoolExecutor(max_workers=1) as thread:
        samples = thread.submit(asyncio.run, fill()).result()
    yield Library(url, request.param, samples)
    migrated_databases.drop(url)


@pytest.fixture
async def app(filled: Library) -> AsyncIterator[asyncpg.Connection]:
    """A connection of the application's role within the organisation."""
    connection = await asyncpg.connect(filled.url, server_settings={"role": "trunkline_app"})
    async with connection.transaction():
        await connection.execute("SELECT set_config('trunkline.org_id', $1, true)", str(ORG))
        yield connection
    await connection.close()


@pytest.fixture
async def definer(filled: Library) -> AsyncIterator[asyncpg.Connection]:
    """As the look-ups run: their owner, their settings."""
    connection = await asyncpg.connect(
        filled.url, server_settings={"role": "trunkline_definer", "enable_seqscan": "off"}
    )
    yield connection
    await connection.close()


def nodes(plan: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield plan["Node Type"], plan.get("Index Name", plan.get("Relation Name", ""))
    for child in plan.get("Plans", ()):
        yield from nodes(child)


async def inner_plan(definer: asyncpg.Connection, name: str) -> set[tuple[str, str]]:
    """Of the query inside the function, with its parameters unknown as in a kept plan."""
    body = await definer.fetchval(FUNCTION, name)
    query = body[body.index("RETURN QUERY") + len("RETURN QUERY") : body.rindex(";\nEND")]
    for number, (parameter, _) in enumerate(PARAMETERS, start=1):
        query = re.sub(rf"\b{parameter}\b", f"${number}", query)
    types = ", ".join(kind for _, kind in PARAMETERS)
    await definer.execute("SET plan_cache_mode = force_generic_plan")
    await definer.execute(f"PREPARE inner_query ({types}) AS {query}")
    nulls = ", ".join(["NULL"] * len(PARAMETERS))
    text = await definer.fetchval(f"EXPLAIN (FORMAT JSON) EXECUTE inner_query ({nulls})")
    await definer.execute("DEALLOCATE inner_query")
    return set(nodes(json.loads(text)[0]["Plan"]))


async def test_words_are_looked_up_in_the_index_of_their_texts(
    definer: asyncpg.Connection,
) -> None:
    for scope in ("live", "draft"):
        plan = await inner_plan(definer, f"search_{scope}_articles")
        assert ("Bitmap Index Scan", f"article_texts_{scope}_terms") in plan
        assert ("Bitmap Index Scan", f"article_texts_{scope}_titles") in plan
        assert not [node for node in plan if node[0] == "Seq Scan"]


async def blocks(app: asyncpg.Connection, statement: str, *arguments: Any) -> int:
    text = await app.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", *arguments)
    plan = json.loads(text)[0]["Plan"]
    return int(plan["Shared Hit Blocks"]) + int(plan["Shared Read Blocks"])


@pytest.mark.parametrize("kind", ["title", "word", "phrase", "without", "either"])
async def test_a_search_touches_few_blocks(
    app: asyncpg.Connection, filled: Library, kind: str
) -> None:
    for sample in filled.samples[:5]:
        words = sample.title.lower().split()
        query = {
            "title": sample.title, "word": words[0], "phrase": f'"{sample.phrase}"',
            "without": f"{words[0]} -{words[1]}", "either": f"{words[0]} or {words[1]}",
        }[kind]  # fmt: skip
        asked = search.Asked(query, ["english"], NOW, Filter(live=True))
        arguments = (*asked.arguments(ORG), None, None, None, 21)
        touched = await blocks(app, search.PAGE_LIVE, *arguments)
        assert touched < BLOCKS_MAX[filled.articles], query


async def test_the_articles_are_found(app: asyncpg.Connection, filled: Library) -> None:
    """Or touching few blocks would be easy."""
    for sample in filled.samples:
        asked = search.Asked(sample.title, ["english"], NOW, Filter(live=True))
        rows = await search.find(app, ORG, asked, None, 21)
        assert sample.article_id in [str(row["article_id"]) for row in rows]


async def test_near_words_and_suggestions_touch_few_blocks(
    app: asyncpg.Connection, filled: Library
) -> None:
    word = filled.samples[0].title.lower().split()[0]
    near = search._NEAR
    assert await blocks(app, near, ORG, [word[:3] + word[4:]], 20) < 1_500
    assert await blocks(app, search._SUGGEST_LIVE, ORG, word[:4], "", 10) < 1_500


async def test_lists_follow_their_order(app: asyncpg.Connection, filled: Library) -> None:
    everything = Filter(live=True)
    for order in ("PUBLISH_TIME_DESC", "UPDATE_TIME_DESC", "TITLE"):
        arguments = (
            ORG, True, False, None, None, None, None, None, None, False, None, None, 101
        )  # fmt: skip
        assert await blocks(app, queries._ORDERS[order], *arguments) < 2_500, order
    rows = await queries.list_articles(
        app, ORG, everything, order="TITLE", with_body=False, after=None, limit=10
    )
    assert len(rows) == 10
