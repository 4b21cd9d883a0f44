"""Row-level security on every tenant table: read from the catalogue, and tried out.

The tables are found, not listed: a new one without a policy fails here.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass

import asyncpg
import pytest

ROLES = ("trunkline_app", "trunkline_worker", "trunkline_definer")
OURS, THEIRS = uuid.UUID(int=1 << 64), uuid.UUID(int=2 << 64)

_TENANT_TABLES = """
SELECT c.oid, c.relname, c.relrowsecurity, c.relforcerowsecurity, c.relispartition,
       ARRAY(SELECT p.polname::text FROM pg_policy p WHERE p.polrelid = c.oid) AS policies
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = 'public'
WHERE c.relkind IN ('r', 'p') AND (
    EXISTS (
        SELECT FROM pg_attribute a
        WHERE a.attrelid = c.oid AND a.attname = 'org_id' AND NOT a.attisdropped
    ) OR c.relispartition
)
ORDER BY c.relname
"""
# Of a table or of its organisation's own key, but first in line.
_KEYS_WITHOUT_ORG = """
SELECT i.relname FROM pg_index x
JOIN pg_class i ON i.oid = x.indexrelid
JOIN pg_attribute org ON org.attrelid = x.indrelid AND org.attname = 'org_id'
JOIN pg_namespace n ON n.oid = i.relnamespace AND n.nspname = 'public'
WHERE x.indisprimary AND x.indkey[0] <> org.attnum
"""


@dataclass(frozen=True, slots=True)
class Hole:
    table: str
    what: str


@pytest.fixture
async def admin(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


async def holes_in_the_catalogue(admin: asyncpg.Connection) -> list[Hole]:
    found = []
    for table in await admin.fetch(_TENANT_TABLES):
        if not table["relrowsecurity"]:
            found.append(Hole(table["relname"], "not enabled"))
        if not table["relforcerowsecurity"]:
            found.append(Hole(table["relname"], "not forced"))
        if "tenant" not in table["policies"]:
            found.append(Hole(table["relname"], "no tenant policy"))
    return found


async def test_every_tenant_table_and_child_is_under_its_policy(admin: asyncpg.Connection) -> None:
    tables = {t["relname"] for t in await admin.fetch(_TENANT_TABLES)}
    assert {"orgs", "users", "audit_log", "audit_log_default", "jobs", "schedules"} <= tables
    assert await holes_in_the_catalogue(admin) == []


@pytest.mark.parametrize(
    ("sabotage", "what"),
    [
        ("DROP POLICY tenant ON jobs", "no tenant policy"),
        ("ALTER TABLE jobs NO FORCE ROW LEVEL SECURITY", "not forced"),
        ("ALTER TABLE jobs DISABLE ROW LEVEL SECURITY", "not enabled"),
    ],
)
async def test_the_catalogue_test_can_fail(
    admin: asyncpg.Connection, sabotage: str, what: str
) -> None:
    await admin.execute(sabotage)
    assert await holes_in_the_catalogue(admin) == [Hole("jobs", what)]


async def test_a_child_without_its_policy_is_found(admin: asyncpg.Connection) -> None:
    await admin.execute("DROP POLICY tenant ON audit_log_default")
    assert [h.table for h in await holes_in_the_catalogue(admin)] == ["audit_log_default"]


async def test_primary_keys_begin_with_the_organisation(admin: asyncpg.Connection) -> None:
    assert [r["relname"] for r in await admin.fetch(_KEYS_WITHOUT_ORG)] == []


@pytest.mark.parametrize("role", ROLES)
async def test_roles_can_bypass_nothing(admin: asyncpg.Connection, role: str) -> None:
    row = await admin.fetchrow(
        """
        SELECT rolsuper, rolbypassrls, rolcreaterole, rolcreatedb, rolreplication, rolcanlogin
        FROM pg_roles WHERE rolname = $1
        """,
        role,
    )
    assert row is not None
    assert not any(row.values())
    owned = await admin.fetch(
        "SELECT relname FROM pg_class WHERE relowner = $1::text::regrole", role
    )
    assert owned == []
    memberships = await admin.fetch(
        "SELECT roleid FROM pg_auth_members WHERE member = $1::text::regrole", role
    )
    assert memberships == []


@pytest.mark.parametrize("role", ["trunkline_app", "trunkline_worker"])
async def test_append_only_tables_stay_so(admin: asyncpg.Connection, role: str) -> None:
    for table in ("audit_log", "audit_log_default"):
        for right in ("UPDATE", "DELETE", "TRUNCATE"):
            sql = "SELECT has_table_privilege($1, $2, $3)"
            assert not await admin.fetchval(sql, role, table, right), (table, right)


async def seed(admin: asyncpg.Connection) -> list[str]:
    """One row of each organisation in every tenant table, whatever its columns are.

    Rows are for the policies to judge, so nothing but the tenant column has to make sense: checks
    and foreign keys are lifted in this test's own database.
    """
    tables = [t["relname"] for t in await admin.fetch(_TENANT_TABLES) if not t["relispartition"]]
    await admin.execute("SET session_replication_role = replica")
    for table in tables:
        await _lift_checks(admin, table)
        for org in (OURS, THEIRS):
            await _insert_row(admin, table, org)
    await admin.execute("SET session_replication_role = DEFAULT")
    return tables


async def _lift_checks(admin: asyncpg.Connection, table: str) -> None:
    checks = await admin.fetch(
        "SELECT conname FROM pg_constraint WHERE conrelid = $1::text::regclass AND contype = 'c'",
        table,
    )
    for check in checks:
        await admin.execute(f'ALTER TABLE {table} DROP CONSTRAINT "{check["conname"]}"')


_ZERO = {
    "uuid": "gen_random_uuid()",
    "text": "gen_random_uuid()::text",
    "bytea": "''",
    "jsonb": "'{}'",
    "tsvector": "''",
    "boolean": "false",
    "date": "current_date",
    "timestamp with time zone": "now()",
    "interval": "'1 s'",
    "inet": "'127.0.0.1'",
}


async def _insert_row(admin: asyncpg.Connection, table: str, org: uuid.UUID) -> None:
    columns = await admin.fetch(
        """
        SELECT attname, format_type(atttypid, NULL) AS type FROM pg_attribute
        WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped AND attnotnull
          AND NOT atthasdef AND attidentity = '' AND attname <> 'org_id'
        """,
        table,
    )
    values = {
        c["attname"]: _ZERO.get(c["type"], "'{}'" if c["type"].endswith("[]") else "1")
        for c in columns
    }
    names = ", ".join(["org_id", *values])
    given = ", ".join(["$1", *values.values()])
    await admin.execute(f"INSERT INTO {table} ({names}) VALUES ({given})", org)


async def leaks(admin: asyncpg.Connection, table: str, role: str) -> list[str]:
    """What `role`, acting for OURS, can see or do to THEIRS in this table."""
    found = []
    transaction = admin.transaction()
    await transaction.start()
    try:
        # Rights are another test's matter: the policies alone have to hold here.
        await admin.execute(f"GRANT ALL ON {table} TO {role}")
        await admin.execute(f"SET LOCAL ROLE {role}")
        await admin.execute("SELECT set_config('trunkline.org_id', $1, true)", str(OURS))
        if await admin.fetchval(f"SELECT count(*) FROM {table} WHERE org_id = $1", THEIRS):
            found.append("visible")
        if not await admin.fetchval(f"SELECT count(*) FROM {table} WHERE org_id = $1", OURS):
            found.append("own rows hidden")
        theirs = f"UPDATE {table} SET org_id = org_id WHERE org_id = $1"
        if await _accepted(admin, theirs, THEIRS):
            found.append("updatable")
        if await _accepted(admin, f"DELETE FROM {table} WHERE org_id = $1", THEIRS):
            found.append("deletable")
        away = f"UPDATE {table} SET org_id = $1 WHERE org_id = $2"
        if await _accepted(admin, away, THEIRS, OURS):
            found.append("rows can be given away")
    finally:
        await transaction.rollback()
    return found


async def _accepted(admin: asyncpg.Connection, sql: str, *args: object) -> bool:
    try:
        async with admin.transaction():
            return not (await admin.execute(sql, *args)).endswith(" 0")
    except asyncpg.InsufficientPrivilegeError:
        return False
    except asyncpg.IntegrityConstraintViolationError:
        return True  # a key stood in the way, after the policy had let it through


async def test_each_policy_holds_and_is_missed_when_it_is_gone(
    admin: asyncpg.Connection,
) -> None:
    for table in await seed(admin):
        assert (table, await leaks(admin, table, "trunkline_app")) == (table, [])
        transaction = admin.transaction()
        await transaction.start()
        await admin.execute(f"DROP POLICY tenant ON {table}")
        # Without any policy nothing is visible at all, which the look at our own rows tells.
        assert "own rows hidden" in await leaks(admin, table, "trunkline_app"), table
        await admin.execute(f"CREATE POLICY tenant ON {table} USING (true) WITH CHECK (true)")
        assert "visible" in await leaks(admin, table, "trunkline_app"), table
        await admin.execute(f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY")
        assert "visible" in await leaks(admin, table, "trunkline_app"), table
        await transaction.rollback()


async def test_no_organisation_set_is_nothing_seen(admin: asyncpg.Connection) -> None:
    tables = await seed(admin)
    for setting in (None, ""):
        async with admin.transaction():
            for table in tables:
                await admin.execute(f"GRANT SELECT ON {table} TO trunkline_app")
            await admin.execute("SET LOCAL ROLE trunkline_app")
            if setting is not None:
                await admin.execute("SELECT set_config('trunkline.org_id', $1, true)", setting)
            for table in tables:
                assert await admin.fetchval(f"SELECT count(*) FROM {table}") == 0, table


async def test_a_child_asked_directly_hides_the_same(admin: asyncpg.Connection) -> None:
    await seed(admin)
    children = [t["relname"] for t in await admin.fetch(_TENANT_TABLES) if t["relispartition"]]
    seen = 0
    for child in children:
        async with admin.transaction():
            await admin.execute(f"GRANT SELECT ON {child} TO trunkline_app")
            await admin.execute("SET LOCAL ROLE trunkline_app")
            await admin.execute("SELECT set_config('trunkline.org_id', $1, true)", str(OURS))
            orgs = {r["org_id"] for r in await admin.fetch(f"SELECT org_id FROM {child}")}
        assert orgs <= {OURS}, child
        seen += len(orgs)
    assert seen > 0


# Where the worker sees more than one organisation: what queues are made of, and nothing else.
_WORKER_SEES = {"jobs", "job_queues", "schedules", "audit_unsealed", "stats_dirty"}


async def test_the_worker_sees_across_organisations_only_its_queues(
    admin: asyncpg.Connection,
) -> None:
    policies = await admin.fetch(
        """
        SELECT tablename FROM pg_policies
        WHERE 'trunkline_worker' = ANY (roles) AND qual = 'true' AND tablename <> ALL ($1)
        """,
        sorted(_WORKER_SEES),
    )
    assert [p["tablename"] for p in policies] == []
    for table in sorted(_WORKER_SEES & set(await seed(admin))):
        assert "visible" in await leaks(admin, table, "trunkline_worker"), table
        async with admin.transaction():
            await admin.execute(f"DROP POLICY IF EXISTS queue ON {table}")
            assert "visible" not in await leaks(admin, table, "trunkline_worker"), table
