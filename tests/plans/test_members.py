"""The hot statements of members use their indexes under row-level security, as trunkline_app."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

import asyncpg
import pytest

from bench import roster
from tests.conftest import Databases
from trunkline.api.members.v1 import members_service_pb2 as pb
from trunkline_server.members import export, filters, listing, queries, search

ORG = uuid.UUID(int=7 << 64)
EVERYONE = filters.read(pb.MemberFilter()).arguments()
# Blocks of 8 KiB: far below a walk through a table of this size (50,000 members: 1,500).
BLOCKS_MAX = 900


@pytest.fixture(scope="module", params=[50_000, pytest.param(1_000_000, marks=pytest.mark.long)])
def filled(request: pytest.FixtureRequest, migrated_databases: Databases) -> Iterator[str]:
    url = migrated_databases.create()
    _run(url, "INSERT INTO orgs (org_id, slug, display_name) VALUES ($1, 'big', 'Big')", ORG)
    roster.fill(url, ORG, request.param)
    yield url
    migrated_databases.drop(url)


def _run(url: str, statement: str, *arguments: Any) -> None:
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    async def run() -> None:
        connection = await asyncpg.connect(url)
        await connection.execute(statement, *arguments)
        await connection.close()

    with ThreadPoolExecutor(max_workers=1) as thread:
        thread.submit(asyncio.run, run()).result()


@pytest.fixture
async def app(filled: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection of the application's role within the organisation."""
    connection = await asyncpg.connect(filled, server_settings={"role": "trunkline_app"})
    async with connection.transaction():
        await connection.execute("SELECT set_config('trunkline.org_id', $1, true)", str(ORG))
        yield connection
    await connection.close()


async def explained(
    app: asyncpg.Connection, statement: str, *arguments: Any
) -> tuple[set[str], int]:
    """The nodes of the plan and the blocks that were touched."""
    text = await app.fetchval(
        f"EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) {statement}", *arguments
    )
    plan = json.loads(text)[0]["Plan"]
    nodes: set[str] = set()
    todo = [plan]
    while todo:
        node = todo.pop()
        relation = node.get("Relation Name", node.get("Index Name", ""))
        nodes.add(f"{node['Node Type']} {relation}".strip())
        todo.extend(node.get("Plans", ()))
    return nodes, plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]


@pytest.mark.parametrize(
    ("statement", "arguments"),
    [
        (queries._GET, (ORG, uuid.UUID(int=5))),
        (queries._ID_OF_NUMBER, (ORG, "M-00000777")),
        (listing._PAGE_BY_NUMBER, (ORG, "M-00040000", 101)),
        (export._PART_END, (ORG, "M-00040000", 500)),
    ],
)
async def test_no_walk_through_the_members(
    app: asyncpg.Connection, statement: str, arguments: tuple[Any, ...]
) -> None:
    nodes, blocks = await explained(app, statement, *arguments)
    assert "Seq Scan members" not in nodes
    assert blocks < BLOCKS_MAX


async def test_a_validation_reads_a_handful_of_blocks(app: asyncpg.Connection) -> None:
    _, blocks = await explained(app, queries._BY_NUMBER, ORG, "M-00000777")
    _, blocks = await explained(app, queries._BY_NUMBER, ORG, "M-00000778")  # planned by now
    assert blocks < 20
    _, blocks = await explained(
        app, queries._BY_NUMBERS, ORG, [f"M-{number:08d}" for number in range(500)]
    )
    assert blocks < 500 * 10


@pytest.mark.parametrize("after", ["", "M-00025000", "M-00049000"])
async def test_a_filtered_page_looks_at_a_bounded_part(app: asyncpg.Connection, after: str) -> None:
    arguments = (ORG, after, listing.SCAN_ROWS_MAX, 101, *EVERYONE)
    nodes, blocks = await explained(app, listing._BY_NUMBER, *arguments)
    assert "Seq Scan members" not in nodes
    assert blocks < 3 * listing.SCAN_ROWS_MAX


async def test_each_way_of_searching_takes_its_index(app: asyncpg.Connection) -> None:
    """The functions hide their plans; what they touch tells."""
    name = await app.fetchrow(
        "SELECT given_name, family_name, email, phone FROM members"
        " WHERE org_id = $1 AND member_number = 'M-00000777'", ORG,
    )  # fmt: skip
    assert name is not None
    wrong = name["family_name"][:2] + name["family_name"][3:]
    terms = [search.term(ORG, name["family_name"].lower())]
    reversed_phone = name["phone"].lstrip("+")[::-1][:8]
    for statement, arguments in (
        (search._WORDS_LIKE, (ORG, f"{name['given_name']} {wrong}")),
        (search._BY_EXACT_WORDS, (ORG, terms, search.CANDIDATES_MAX)),
        (search._BY_WORDS, (ORG, terms, [0], [1.0], search.SCORED_MAX)),
        (search._BY_CODES, (ORG, "M-0000077", [], "", [], "", [], 100)),
        (search._BY_CODES, (ORG, "", [], name["email"], [], "", [], 100)),
        (search._BY_CODES, (ORG, "", [], "", [], reversed_phone, [], 100)),
    ):
        await explained(app, statement, *arguments)  # plans what the functions keep
        _, blocks = await explained(app, statement, *arguments)
        assert blocks < BLOCKS_MAX, statement


async def test_the_guard_of_plans_can_fail(app: asyncpg.Connection) -> None:
    """Under a policy an operator that may leak is no index condition: what the functions avoid."""
    nodes, blocks = await explained(
        app, "SELECT member_id FROM member_search WHERE org_id = $1 AND terms @> $2", ORG,
        [search.term(ORG, "kakaka")],
    )  # fmt: skip
    assert not any("member_search_terms" in node for node in nodes)
    assert blocks > BLOCKS_MAX
