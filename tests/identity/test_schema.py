"""The first migration on clusters of other people: roles race, owners are no superusers."""

import asyncio
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from trunkline_server.local import Postgres
from trunkline_server.migrate import migrate_up

ROLES = ("trunkline_app", "trunkline_definer", "trunkline_worker")


@pytest.fixture
def fresh_cluster() -> Iterator[Postgres]:
    directory = Path(tempfile.mkdtemp(prefix="trunkline-"))
    with Postgres(directory / "pg", durable=False) as server:
        yield server
    shutil.rmtree(directory)


async def test_databases_of_one_cluster_may_be_migrated_at_the_same_time(
    fresh_cluster: Postgres,
) -> None:
    urls = [fresh_cluster.create_database(f"house_{i}") for i in range(3)]
    await asyncio.gather(*(migrate_up(url) for url in urls))
    connection = await asyncpg.connect(urls[0])
    try:
        rows = await connection.fetch(
            """
            SELECT rolname FROM pg_roles
            WHERE rolname LIKE 'trunkline\\_%' AND NOT rolsuper AND NOT rolbypassrls
              AND NOT rolcanlogin
            ORDER BY rolname
            """
        )
        assert tuple(row["rolname"] for row in rows) == ROLES
        owned = await connection.fetchval(
            """
            SELECT count(*) FROM pg_class c JOIN pg_roles r ON r.oid = c.relowner
            WHERE r.rolname = ANY($1::text[])
            """,
            list(ROLES),
        )
        assert owned == 0
    finally:
        await connection.close()


async def test_an_owner_without_superuser_rights_migrates_and_makes_partitions(
    fresh_cluster: Postgres,
) -> None:
    url = fresh_cluster.create_database("house")
    superuser = await asyncpg.connect(url)
    await superuser.execute("CREATE ROLE keeper LOGIN CREATEROLE PASSWORD 'keeper'")
    await superuser.execute("ALTER DATABASE house OWNER TO keeper")
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    owner_url = urlunsplit(parts._replace(netloc=f"keeper:keeper@{host}"))
    await migrate_up(owner_url)
    await superuser.execute(
        """
        INSERT INTO audit_log (org_id, audit_id, at, actor_kind, action)
        VALUES (gen_random_uuid(), gen_random_uuid(), '2026-03-05', 'SERVICE', 'x'),
               (gen_random_uuid(), gen_random_uuid(), '2026-04-05', 'SERVICE', 'x')
        """
    )
    worker = await asyncpg.connect(owner_url, server_settings={"role": "trunkline_worker"})
    made = await worker.fetchval("SELECT ensure_month_partition('audit_log', '2026-03-20')")
    assert made is True
    counts = "SELECT count(*) FROM {}"
    assert await superuser.fetchval(counts.format("audit_log_y2026m03")) == 1
    assert await superuser.fetchval(counts.format("audit_log_default")) == 1
    # The look-ups see everything they need although the owner is bound by every policy.
    assert await worker.fetchval("SELECT count(*) FROM auth_login('nobody', 'x')") == 0
    forced = await superuser.fetchval(
        "SELECT relforcerowsecurity FROM pg_class WHERE relname = 'audit_log_default'"
    )
    assert forced
    await worker.close()
    await superuser.close()
