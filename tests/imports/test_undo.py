"""Undoing an import: what it made goes, what it changed is as it was, what was edited is kept."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from tests.imports import working as w
from tests.imports.test_worker import HEADER, line, run
from trunkline.api.imports.v1 import imports_service_pb2 as pb
from trunkline_server.ids import uuid7
from trunkline_server.imports import queries
from trunkline_server.members import queries as members


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


@pytest.fixture
def urls(database_url: str, redis_url: str) -> tuple[str, str]:
    return database_url, redis_url


async def edit(connection: asyncpg.Connection, org: UUID, number: str) -> None:
    """As somebody who opens the member and saves another name."""
    row = await connection.fetchrow("SELECT * FROM members WHERE member_number = $1", number)
    assert row is not None
    values = {**{field: row[field] for field in members.FIELDS}, "given_name": "Edited"}
    change = members.Change(uuid7(), "UPDATED", "USER", uuid7(), "Ed")
    async with connection.transaction():
        await connection.execute("SELECT set_config('trunkline.org_id', $1, true)", str(org))
        await members.update(connection, org, row["member_id"], change, values)


async def image(connection: asyncpg.Connection) -> dict[str, tuple[Any, ...]]:
    rows = await connection.fetch(
        "SELECT member_number, member_id, given_name, family_name, status, attributes, created_at"
        " FROM members"
    )
    return {row["member_number"]: tuple(row) for row in rows}


async def undone(
    connection: asyncpg.Connection, urls: tuple[str, str], org: UUID, import_id: UUID
) -> tuple[dict[str, Any], dict[str, list[str]]]:
    async with w.working(*urls):
        await w.queue_again(connection, org, import_id, w.JOB_UNDO)
        row = await w.ended(connection, import_id)
    rows = await queries.undo_results(connection, org, import_id, (-1, UUID(int=0)), None, 1_000)
    lists: dict[str, list[str]] = {}
    for found in sorted(rows, key=lambda found: found["member_number"]):
        lists.setdefault(found["outcome"], []).append(found["member_number"])
    return row, lists


@pytest.mark.parametrize("commit", [pb.COMMIT_MODE_PER_BATCH, pb.COMMIT_MODE_ATOMIC])
async def test_three_lists(
    connection: asyncpg.Connection, urls: tuple[str, str], commit: pb.CommitMode.ValueType
) -> None:
    org = await w.make_org(connection)
    old = [line(name, "Old") for name in "ABCDE"]
    await run(connection, urls, org, HEADER + b"".join(old))
    before = await image(connection)
    # A, B, C change (A twice), D does not, E is not named; N, O, P are new.
    new = [line("A", "1"), *(line(f"M{n:03}") for n in range(30)), line("A", "2"), line("B", "1"),
           line("C", "1"), line("D", "Old"), line("N"), line("O"), line("P")]  # fmt: skip
    imported = await run(
        connection, urls, org, HEADER + b"".join(new), pb.ImportSpec(commit=commit)
    )
    assert imported["state"] == "SUCCEEDED"
    await edit(connection, org, "C")
    await edit(connection, org, "P")
    await connection.execute(
        "DELETE FROM member_history WHERE member_number = 'B'"  # as retention would
    )
    row, lists = await undone(connection, urls, org, imported["import_id"])
    assert row["state"] == "UNDONE"
    reversed_ = ["A", *(f"M{n:03}" for n in range(30)), "N", "O"]
    assert lists == {"REVERSED": reversed_, "KEPT_BECAUSE_EDITED": ["C", "P"], "FAILED": ["B"]}
    assert (row["undo_reversed"], row["undo_kept"], row["undo_failed"]) == (33, 2, 1)
    after = await image(connection)
    assert set(after) == set("ABCDEP")
    for number in "ADE":
        assert after[number] == before[number]
    assert (after["B"][2], after["C"][2], after["P"][2]) == ("1", "Edited", "Edited")
    cause = await connection.fetchrow(
        "SELECT c.cause, c.actor_name FROM members m JOIN member_changes c USING (change_id)"
        " WHERE m.member_number = 'A'"
    )
    assert cause is not None
    assert tuple(cause) == ("IMPORT_UNDONE", "Ada Admin")


async def test_members_that_go_leave_the_search_and_a_word_for_watchers(
    connection: asyncpg.Connection, urls: tuple[str, str]
) -> None:
    org = await w.make_org(connection)
    imported = await run(connection, urls, org, HEADER + line("A") + line("B"))
    change = await connection.fetchval("SELECT change_id FROM members LIMIT 1")
    async with connection.transaction():
        await connection.execute("SELECT set_config('trunkline.org_id', $1, true)", str(org))
        await connection.execute("SELECT index_members($1, $2)", org, change)
    assert await connection.fetchval("SELECT count(*) FROM member_search") == 2
    await undone(connection, urls, org, imported["import_id"])
    assert await connection.fetchval("SELECT count(*) FROM members") == 0
    buried = await connection.fetch("SELECT member_number FROM member_removals ORDER BY 1")
    assert [b["member_number"] for b in buried] == ["A", "B"]
    changes = await connection.fetch("SELECT change_id FROM import_undo_batches")
    for row in changes:
        await connection.execute("SELECT unindex_members($1, $2)", org, row["change_id"])
    assert await connection.fetchval("SELECT count(*) FROM member_search") == 0


async def test_results_come_by_pages(connection: asyncpg.Connection, urls: tuple[str, str]) -> None:
    org = await w.make_org(connection)
    content = HEADER + b"".join(line(f"M{n:03}") for n in range(95))
    imported = await run(connection, urls, org, content)
    await edit(connection, org, "M050")
    await undone(connection, urls, org, imported["import_id"])
    after, seen = (-1, UUID(int=0)), []
    while page := await queries.undo_results(
        connection, org, imported["import_id"], after, None, 7
    ):
        seen += [(row["row_no"], row["outcome"]) for row in page]
        after = page[-1]["row_no"], page[-1]["member_id"]
    kept = {51: "KEPT_BECAUSE_EDITED"}
    assert seen == [(n, kept.get(n, "REVERSED")) for n in range(1, 96)]


async def test_terminations_are_undone(
    connection: asyncpg.Connection, urls: tuple[str, str]
) -> None:
    org = await w.make_org(connection)
    everyone = [f"M{n:03}" for n in range(40)]
    await run(connection, urls, org, HEADER + b"".join(line(n) for n in everyone))
    before = await image(connection)
    spec = pb.ImportSpec(mode=pb.IMPORT_MODE_SYNC)
    imported = await run(
        connection, urls, org, HEADER + b"".join(line(n) for n in everyone[2:]), spec
    )
    assert imported["terminated"] == 2
    _, lists = await undone(connection, urls, org, imported["import_id"])
    assert lists == {"REVERSED": ["M000", "M001"]}
    assert await image(connection) == before
