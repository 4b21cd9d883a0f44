"""What the migrations make is what migrations/schema.sql says."""

from __future__ import annotations

import asyncpg
import pytest

from tools.schema import GOLDEN, MAJOR_VERSION, dump
from trunkline_server import migrate


async def test_the_migrations_make_the_golden_schema(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    major = connection.get_server_version().major
    await connection.close()
    if major != MAJOR_VERSION:
        pytest.skip(f"PostgreSQL {major} words the schema differently from {MAJOR_VERSION}")
    assert dump(database_url) == GOLDEN.read_text(), "run `python -m tools.schema`"


async def test_every_file_is_applied_as_it_stands(database_url: str) -> None:
    assert await migrate.verify(database_url) == []
    assert await migrate.migrate_up(database_url) == []
    assert {s.state for s in await migrate.status(database_url)} == {migrate.State.APPLIED}
