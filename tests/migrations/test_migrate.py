"""The runner: order, checksums, one at a time, locks, resumption, no-transaction files."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from trunkline_server import migrate
from trunkline_server.migrate import MigrationError, State, migrate_up, status, verify

CONCURRENTLY = """-- trunkline: no-transaction
-- A failed attempt leaves an invalid index behind; hence the first statement.
DROP INDEX CONCURRENTLY IF EXISTS a_x;
CREATE INDEX CONCURRENTLY a_x ON a (x); -- the second
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "0001_a.sql").write_text("CREATE TABLE a (x int);")
    (tmp_path / "0002_b.sql").write_text("CREATE TABLE b (x int);")
    return tmp_path


@pytest.fixture
async def admin(empty_database_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(empty_database_url)
    yield connection
    await connection.close()


async def states(url: str, folder: Path) -> list[State]:
    return [s.state for s in await status(url, folder=folder)]


async def test_applies_what_is_pending_once(empty_database_url: str, folder: Path) -> None:
    assert await states(empty_database_url, folder) == [State.PENDING] * 2
    planned = await migrate_up(empty_database_url, folder=folder, dry_run=True)
    assert await states(empty_database_url, folder) == [State.PENDING] * 2
    applied = await migrate_up(empty_database_url, folder=folder)
    assert [a.name for a in planned] == [a.name for a in applied] == ["a", "b"]
    assert await migrate_up(empty_database_url, folder=folder) == []
    assert await verify(empty_database_url, folder=folder) == []


async def test_a_changed_file_is_refused(empty_database_url: str, folder: Path) -> None:
    await migrate_up(empty_database_url, folder=folder)
    (folder / "0001_a.sql").write_text("CREATE TABLE a (x bigint);")
    (folder / "0003_c.sql").write_text("CREATE TABLE c (x int);")
    with pytest.raises(MigrationError, match="0001_a was changed"):
        await migrate_up(empty_database_url, folder=folder)
    expected = [State.CHANGED, State.APPLIED, State.PENDING]
    assert await states(empty_database_url, folder) == expected
    assert len(await verify(empty_database_url, folder=folder)) == 2


@pytest.mark.parametrize(
    ("name", "sql", "complaint"),
    [
        ("0004_d.sql", "SELECT 1;", "0003 is missing or doubled"),
        ("0002_c.sql", "SELECT 1;", "0003 is missing or doubled"),
        ("0003-c.sql", "SELECT 1;", "the name must be"),
        ("0003_c.sql", "SELECT 1;\nCOMMIT;\n", "the runner begins and commits"),
        ("0003_c.sql", "-- trunkline: no-transaction\nDO $$ BEGIN END $$;", "bodies"),
    ],
)
def test_files_that_cannot_be_applied_are_refused(
    folder: Path, name: str, sql: str, complaint: str
) -> None:
    (folder / name).write_text(sql)
    with pytest.raises(MigrationError, match=complaint):
        migrate.load(folder)


async def test_a_gap_in_the_database_is_refused(
    empty_database_url: str, folder: Path, admin: asyncpg.Connection
) -> None:
    await migrate_up(empty_database_url, folder=folder)
    await admin.execute("DELETE FROM schema_migrations WHERE number = 1")
    with pytest.raises(MigrationError, match="gap"):
        await migrate_up(empty_database_url, folder=folder)


async def test_a_newer_release_s_schema_is_left_alone(
    empty_database_url: str, folder: Path
) -> None:
    await migrate_up(empty_database_url, folder=folder)
    (folder / "0002_b.sql").unlink()
    assert await migrate_up(empty_database_url, folder=folder) == []
    assert await states(empty_database_url, folder) == [State.APPLIED, State.AHEAD]


async def test_concurrent_runners_apply_each_file_once(
    empty_database_url: str, folder: Path
) -> None:
    # CREATE INDEX CONCURRENTLY waits for old snapshots: the waiting runners must not hold any.
    (folder / "0003_c.sql").write_text(CONCURRENTLY)
    async with asyncio.timeout(30):
        runs = [migrate_up(empty_database_url, folder=folder) for _ in range(4)]
        applied = await asyncio.gather(*runs)
    assert sorted(len(a) for a in applied) == [0, 0, 0, 3]


async def test_a_runner_waits_for_the_lock_row_as_long_as_told(
    empty_database_url: str, folder: Path, admin: asyncpg.Connection
) -> None:
    await migrate_up(empty_database_url, folder=folder)
    (folder / "0003_c.sql").write_text("CREATE TABLE c (x int);")
    async with admin.transaction():
        await admin.execute("SELECT 1 FROM schema_migrations_lock FOR UPDATE")
        with pytest.raises(MigrationError, match="another runner"):
            await migrate_up(empty_database_url, folder=folder, wait_s=0.3)
    assert len(await migrate_up(empty_database_url, folder=folder)) == 1


async def test_resumes_after_a_failure(empty_database_url: str, folder: Path) -> None:
    broken = folder / "0002_b.sql"
    broken.write_text("CREATE TABLE b (x int); SELECT 1 / 0;")
    with pytest.raises(asyncpg.DivisionByZeroError):
        await migrate_up(empty_database_url, folder=folder)
    assert await states(empty_database_url, folder) == [State.APPLIED, State.PENDING]
    broken.write_text("CREATE TABLE b (x int);")
    assert [a.name for a in await migrate_up(empty_database_url, folder=folder)] == ["b"]


async def test_statements_without_a_transaction_run_again_after_a_failure(
    empty_database_url: str, folder: Path, admin: asyncpg.Connection
) -> None:
    index = folder / "0003_c.sql"
    index.write_text(CONCURRENTLY + "SELECT 1 / 0;")
    with pytest.raises(asyncpg.DivisionByZeroError):
        await migrate_up(empty_database_url, folder=folder)
    assert await admin.fetchval("SELECT to_regclass('a_x')") is not None
    index.write_text(CONCURRENTLY)
    assert [a.name for a in await migrate_up(empty_database_url, folder=folder)] == ["c"]


async def test_gives_up_a_lock_queue_after_a_second_and_tries_again(
    empty_database_url: str, folder: Path, admin: asyncpg.Connection
) -> None:
    """Behind an open transaction; the calls that queue behind the migration get through."""
    await migrate_up(empty_database_url, folder=folder)
    (folder / "0003_c.sql").write_text("ALTER TABLE a ADD y int;")
    reader = await asyncpg.connect(empty_database_url)
    try:
        async with admin.transaction():
            await admin.execute("SELECT x FROM a")
            with pytest.raises(MigrationError, match="no lock within 1 s, 1 times"):
                await migrate_up(empty_database_url, folder=folder, lock_attempts=1)
            run = asyncio.create_task(migrate_up(empty_database_url, folder=folder))
            await _queued(reader, "ALTER TABLE")
            # Without the time-out this read would wait until the open transaction ends.
            async with asyncio.timeout(migrate.LOCK_TIMEOUT_S + 2):
                await reader.execute("SELECT x FROM a")
        [applied] = await run
    finally:
        await reader.close()
    assert applied.attempts >= 2


async def _queued(connection: asyncpg.Connection, statement: str) -> None:
    sql = """
        SELECT count(*) > 0 FROM pg_stat_activity
        WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE $1 || '%'
    """
    async with asyncio.timeout(10):
        while not await connection.fetchval(sql, statement):
            await asyncio.sleep(0.01)


async def test_a_runner_that_dies_lets_the_next_one_through(
    empty_database_url: str, folder: Path, admin: asyncpg.Connection
) -> None:
    await migrate_up(empty_database_url, folder=folder)
    (folder / "0003_c.sql").write_text("SELECT pg_sleep(60);")
    run = asyncio.create_task(migrate_up(empty_database_url, folder=folder))
    kill = """
        SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
        WHERE datname = current_database() AND application_name = 'trunkline-migrate'
          AND EXISTS (SELECT FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%')
    """
    async with asyncio.timeout(10):
        while not await admin.fetchval(kill):
            await asyncio.sleep(0.01)
    with pytest.raises(MigrationError, match="connection was lost"):
        await run
    (folder / "0003_c.sql").write_text("CREATE TABLE c (x int);")
    assert len(await migrate_up(empty_database_url, folder=folder)) == 1
