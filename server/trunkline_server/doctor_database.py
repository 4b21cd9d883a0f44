"""The doctor's questions to PostgreSQL."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import asyncpg

from trunkline_server import migrate
from trunkline_server.findings import Check, Role, Subject, fail, kind, ok, warn

VERSION_MIN = 170_000
EXTENSIONS = ("pg_trgm",)
SKEW_GOOD_S = 1.0
SKEW_MAX_S = 60.0  # what tokens tolerate
CONNECTIONS_SHARE_MAX = 0.80
CONNECT_TIMEOUT_S = 3.0

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]  # generic in its stubs only

_SERVER = """
SELECT current_setting('server_version_num')::int AS version,
       current_setting('server_version') AS version_text,
       current_setting('max_connections')::int AS connections,
       current_setting('superuser_reserved_connections')::int
         + current_setting('reserved_connections', true)::int AS reserved,
       current_setting('fsync') AS fsync,
       current_setting('synchronous_commit') AS synchronous_commit,
       current_setting('autovacuum') AS autovacuum,
       current_setting('log_parameter_max_length_on_error') AS parameters_logged,
       current_setting('transaction_read_only') AS read_only,
       pg_is_in_recovery() AS standby
"""
_EXTENSIONS = """
SELECT e.name AS name, x.extname IS NOT NULL AS installed
FROM pg_available_extensions AS e LEFT JOIN pg_extension AS x ON x.extname = e.name
WHERE e.name = ANY($1)
"""
_ROLE = """
SELECT r.rolsuper AS super, r.rolbypassrls AS bypasses,
       pg_has_role(session_user, r.oid, 'MEMBER') AS may_be_taken,
       (SELECT count(*) FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE c.relowner = r.oid AND c.relkind IN ('r', 'p')
          AND n.nspname NOT IN ('pg_catalog', 'information_schema')) AS owned
FROM pg_roles AS r WHERE r.rolname = $1
"""
_LOGIN = "SELECT rolsuper FROM pg_roles WHERE rolname = session_user"
_UNGUARDED = """
SELECT c.relname AS name
FROM pg_class AS c
JOIN pg_namespace AS n ON n.oid = c.relnamespace
JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attname = 'org_id' AND NOT a.attisdropped
WHERE c.relkind IN ('r', 'p') AND n.nspname = 'public' AND c.relpersistence = 'p'
  AND NOT (c.relrowsecurity AND c.relforcerowsecurity)
ORDER BY c.relname
"""
_CLOCK = "SELECT extract(epoch FROM clock_timestamp())::float8"
_BACKEND = "SELECT pg_backend_pid()"
_WHOAMI = "SELECT current_user::text"


async def examine(subject: Subject) -> list[Check]:
    try:
        connection = await _connect(subject.database_url)
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, ValueError) as error:
        return [_cannot_connect(error)]
    try:
        checks = [check async for check in _questions(connection, subject)]
    finally:
        connection.terminate()
    return checks


async def _questions(connection: Connection, subject: Subject) -> AsyncIterator[Check]:
    server = await connection.fetchrow(_SERVER)
    assert server is not None
    for check in _server(server):
        yield check
    yield _budget(server, subject.roles)
    yield await _clock(connection)
    async for check in _extensions(connection):
        yield check
    yield await _pooler(subject.database_url)
    yield await _login(connection)
    for role in subject.roles:
        yield await _role(connection, subject.database_url, role)
    yield await _row_security(connection)
    yield await _migrations(subject)


async def _connect(url: str, **settings: str) -> Connection:
    return await asyncpg.connect(url, timeout=CONNECT_TIMEOUT_S, server_settings=settings)


@asynccontextmanager
async def _session(url: str, **settings: str) -> AsyncIterator[Connection]:
    connection = await _connect(url, **settings)
    try:
        yield connection
    finally:
        connection.terminate()


def _server(server: asyncpg.Record) -> Iterator[Check]:
    if server["version"] < VERSION_MIN:
        remedy = f"Upgrade to PostgreSQL {VERSION_MIN // 10_000} or newer."
        yield fail("postgresql", server["version_text"], remedy)
    else:
        yield ok("postgresql", server["version_text"])
    if server["standby"] or server["read_only"] == "on":
        yield fail("writable", "this server takes no writes", "Point the URL to the primary.")
    if server["fsync"] != "on" or server["synchronous_commit"] == "off":
        remedy = "Set fsync and synchronous_commit to on, or an answered write can be lost."
        yield warn("durability", "a crash can lose answered writes", remedy)
    if server["autovacuum"] != "on":
        yield fail("autovacuum", "off", "Set autovacuum to on; tables grow without end.")
    if server["parameters_logged"] != "0":
        remedy = "Set log_parameter_max_length_on_error to 0: parameters are personal data."
        yield warn("server log", "errors are logged with their parameters", remedy)


def _budget(server: asyncpg.Record, roles: Sequence[Role]) -> Check:
    name = "connections"
    wanted = sum(role.connections for role in roles)
    room = server["connections"] - server["reserved"]
    share = wanted / room if room > 0 else 1.0
    finding = f"{wanted} of {room} when all pools are full ({share:.0%})"
    if share > CONNECTIONS_SHARE_MAX:
        remedy = (
            f"Keep it below {CONNECTIONS_SHARE_MAX:.0%}: lower processes or pool sizes,"
            " raise max_connections, or put PgBouncer 1.21 or newer in between."
        )
        return fail(name, finding, remedy)
    return ok(name, finding)


async def _clock(connection: Connection) -> Check:
    """The database's time against ours, taken at the middle of the question."""
    best: tuple[float, float] | None = None
    for _ in range(3):
        before = time.time()
        theirs = await connection.fetchval(_CLOCK)
        took_s = time.time() - before
        reading = (took_s, theirs - (before + took_s / 2))
        best = min(best, reading) if best else reading
    assert best is not None
    skew_s = abs(best[1])
    finding = f"{skew_s:.3f} s apart from the database"
    remedy = "Run a time service (chrony, systemd-timesyncd) on both machines."
    if skew_s > SKEW_MAX_S:
        return fail("clock", finding, remedy)
    return warn("clock", finding, remedy) if skew_s > SKEW_GOOD_S else ok("clock", finding)


async def _extensions(connection: Connection) -> AsyncIterator[Check]:
    rows = await connection.fetch(_EXTENSIONS, [*EXTENSIONS, "pg_stat_statements"])
    installed = {row["name"]: row["installed"] for row in rows}
    for name in EXTENSIONS:
        if name not in installed:
            remedy = "Install PostgreSQL's contrib package on the database's machine."
            yield fail(name, "not available", remedy)
        else:
            state = "installed" if installed[name] else "available; the migrations install it"
            yield ok(name, state)
    if not installed.get("pg_stat_statements"):
        remedy = "Add it to shared_preload_libraries and run CREATE EXTENSION, to see slow queries."
        yield warn("pg_stat_statements", "not installed", remedy)


async def _pooler(url: str) -> Check:
    """A pooler invents the process number that a client is told; PostgreSQL tells its own."""
    async with _session(url) as first:
        told, real = first.get_server_pid(), await first.fetchval(_BACKEND)
        if told == real:
            return ok("pooler", "none: a connection is a PostgreSQL session")
        async with _session(url) as second, second.transaction():
            # It takes the server connection that the first one has just given back, if that
            # was for one transaction only.
            await second.fetchval(_BACKEND)
            moved = await first.fetchval(_BACKEND) != real
    if not moved:
        return ok("pooler", "PgBouncer or alike, pooling sessions")
    return warn(
        "pooler",
        "PgBouncer or alike, pooling transactions",
        "Use PgBouncer 1.21 or newer with max_prepared_statements above 0 and"
        " track_extra_parameters = role; let workers connect directly.",
    )


async def _login(connection: Connection) -> Check:
    if await connection.fetchval(_LOGIN):
        return warn(
            "login role",
            "the role of the URL is a superuser",
            "Log in as an ordinary role that is a member of the server's roles.",
        )
    return ok("login role", "an ordinary role")


async def _role(connection: Connection, url: str, role: Role) -> Check:
    name = f"role {role.name}"
    row = await connection.fetchrow(_ROLE, role.name)
    if row is None:
        return fail(name, "does not exist", "Run `trunklined migrate up`.")
    if row["super"] or row["bypasses"]:
        remedy = f"ALTER ROLE {role.name} NOSUPERUSER NOBYPASSRLS; it must not pass row security."
        return fail(name, "passes row-level security", remedy)
    if row["owned"]:
        remedy = "Give the tables to the role that migrates: an owner can switch policies off."
        return fail(name, f"owns {row['owned']} tables", remedy)
    if not row["may_be_taken"]:
        return fail(name, "cannot be taken", f"GRANT {role.name} TO the role of the URL.")
    return await _taken(name, url, role)


async def _taken(name: str, url: str, role: Role) -> Check:
    """Whether a connection that starts as the server's do really is that role."""
    try:
        async with _session(url, **{**role.settings, "role": role.name}) as session:
            became = await session.fetchval(_WHOAMI)
    except (asyncpg.PostgresError, OSError) as error:
        remedy = "Let the pooler pass the start-up parameters on, or connect directly."
        return fail(name, f"cannot be taken at the start: {kind(error)}", remedy)
    if became != role.name:
        remedy = "The pooler drops the start-up parameter `role`: let it track it."
        return fail(name, "a connection that asks for it stays what it was", remedy)
    return ok(name, "ordinary, and taken at the start of a connection")


async def _row_security(connection: Connection) -> Check:
    names = [row["name"] for row in await connection.fetch(_UNGUARDED)]
    if names:
        remedy = "ENABLE and FORCE ROW LEVEL SECURITY on each, children too, with a policy."
        return fail("row security", f"missing on {', '.join(names)}", remedy)
    return ok("row security", "enabled and forced on every tenant table")


async def _migrations(subject: Subject) -> Check:
    try:
        found = await migrate.status(subject.database_url, folder=subject.migrations)
    except migrate.MigrationError as error:
        return fail("migrations", str(error), "Restore the migration files of this release.")
    by_state = {state: [s for s in found if s.state is state] for state in migrate.State}
    if changed := by_state[migrate.State.CHANGED]:
        finding = f"{len(changed)} changed after they were applied"
        return fail("migrations", finding, "Restore the files; `trunklined migrate verify` names.")
    if pending := by_state[migrate.State.PENDING]:
        return fail("migrations", f"{len(pending)} pending", "Run `trunklined migrate up`.")
    if ahead := by_state[migrate.State.AHEAD]:
        finding = f"the database is {len(ahead)} ahead of this release"
        return warn("migrations", finding, "Upgrade this process to the newer release.")
    return ok("migrations", f"all {len(found)} applied")


def _cannot_connect(error: BaseException) -> Check:
    match error:
        case asyncpg.InvalidPasswordError() | asyncpg.InvalidAuthorizationSpecificationError():
            remedy = "Correct the user or the password in TRUNKLINE_DATABASE_URL."
        case asyncpg.InvalidCatalogNameError():
            remedy = "Create the database, or correct its name in TRUNKLINE_DATABASE_URL."
        case asyncpg.TooManyConnectionsError():
            remedy = "Raise max_connections, or lower pool sizes and processes."
        case _:
            remedy = "Start PostgreSQL, or correct TRUNKLINE_DATABASE_URL."
    return fail("database", f"cannot connect: {kind(error)}", remedy)
