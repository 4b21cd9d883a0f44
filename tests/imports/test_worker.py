"""An import from its stored bytes to its members: modes, repeats, limits, ends."""

from __future__ import annotations

from collections.abc import AsyncIterator

import asyncpg
import pytest

from tests.imports import working as w
from trunkline.api.imports.v1 import imports_service_pb2 as pb

HEADER = b"member_number,given_name,family_name,status,effective_from,effective_to\n"


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


def line(number: str, given: str = "Ann", family: str = "Ex", rest: str = "ACTIVE,,") -> bytes:
    return f"{number},{given},{family},{rest}\n".encode()


def counts(row: dict[str, object]) -> dict[str, object]:
    names = ("created", "updated", "unchanged", "rejected", "superseded", "terminated")
    return {name: row[name] for name in names if row[name]}


async def names(connection: asyncpg.Connection) -> dict[str, str]:
    rows = await connection.fetch("SELECT member_number, given_name FROM members")
    return {row["member_number"]: row["given_name"] for row in rows}


async def test_rows_become_members(
    connection: asyncpg.Connection, database_url: str, redis_url: str
) -> None:
    org = await w.make_org(connection)
    content = HEADER + b"".join(line(f"M{n:04}", f"G{n}") for n in range(95))
    async with w.working(database_url, redis_url):
        import_id = await w.put(connection, org, content, pb.ImportSpec(file_name="a.csv"))
        row = await w.ended(connection, import_id)
    assert row["state"] == "SUCCEEDED", row
    assert counts(row) == {"created": 95}
    assert (row["rows_read"], row["bytes_processed"]) == (95, len(content))
    assert await names(connection) == {f"M{n:04}": f"G{n}" for n in range(95)}
    told = await connection.fetch("SELECT * FROM member_changes ORDER BY seq")
    assert {(t["cause"], t["import_id"], t["file_name"], t["actor_name"]) for t in told} == {
        ("IMPORTED", import_id, "a.csv", "Rita Registrar")
    }
    assert [t["seq"] for t in told] == list(range(1, 11))
    placed = await connection.fetch("SELECT member_number, row_no FROM members")
    assert all(int(p["member_number"][1:]) + 1 == p["row_no"] for p in placed)
