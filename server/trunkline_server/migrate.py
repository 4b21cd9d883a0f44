"""Applies the SQL files of migrations/ in order, once each, one runner at a time."""

from __future__ import annotations

import asyncio
import enum
import hashlib
import random
import re
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg

LOCK_TIMEOUT_S = 1.0
# Statements outside a transaction take weak locks and wait for old transactions by design.
NO_TRANSACTION_LOCK_TIMEOUT_S = 60.0
LOCK_ATTEMPTS = 30
RETRY_BACKOFF_S = 0.2
RETRY_BACKOFF_S_MAX = 2.0
RUNNER_WAIT_S = 600.0
LOCK_POLL_S = 0.1
CONNECT_TIMEOUT_S = 10.0

NO_TRANSACTION_MARKER = "-- trunkline: no-transaction"

_FILE_NAME = re.compile(r"(?P<number>\d{4})_(?P<name>[a-z0-9_]+)\.sql")
_TRANSACTION_CONTROL = re.compile(r"^\s*(BEGIN|START|COMMIT|ROLLBACK)\b[^;\n]*;", re.I | re.M)
_STATEMENT_END = re.compile(r";[ \t]*(?:--[^\n]*)?(?:\n|\Z)")
_COMMENT_LINE = re.compile(r"^\s*--[^\n]*$", re.M)

# A wheel carries the files beside this module; a source checkout has them at its root.
_PACKAGED = Path(__file__).with_name("_migrations")
_CHECKOUT = Path(__file__).parents[2] / "migrations"


class MigrationError(Exception):
    """The files and the database disagree, or a file cannot be applied."""


class State(enum.StrEnum):
    APPLIED = "APPLIED"
    PENDING = "PENDING"
    CHANGED = "CHANGED"  # the file differs from what was applied
    AHEAD = "AHEAD"  # a newer release applied it; this one has no such file


@dataclass(frozen=True, slots=True)
class Migration:
    number: int
    name: str
    sql: str
    sha256: str
    in_transaction: bool

    @property
    def label(self) -> str:
        return f"{self.number:04d}_{self.name}"


@dataclass(frozen=True, slots=True)
class Applied:
    number: int
    name: str
    sha256: str
    elapsed_s: float  # 0.0 in a dry run
    attempts: int  # 0 in a dry run; above 1 when a lock was not to be had at first


@dataclass(frozen=True, slots=True)
class Status:
    number: int
    name: str
    state: State


@dataclass(frozen=True, slots=True)
class _Record:
    number: int
    name: str
    sha256: str


def directory() -> Path:
    return _PACKAGED if _PACKAGED.is_dir() else _CHECKOUT


def load(folder: Path | None = None) -> list[Migration]:
    folder = folder or directory()
    found = [_parse(path) for path in sorted(folder.glob("[0-9]*.sql"))]
    for expected, migration in enumerate(found, start=1):
        if migration.number != expected:
            raise MigrationError(
                f"migration {expected:04d} is missing or doubled: found {migration.label}"
            )
    return found


def _parse(path: Path) -> Migration:
    match = _FILE_NAME.fullmatch(path.name)
    if match is None:
        raise MigrationError(f"{path.name}: the name must be NNNN_lower_case.sql")
    raw = path.read_bytes()
    sql = raw.decode("utf-8")
    migration = Migration(
        number=int(match["number"]),
        name=match["name"],
        sql=sql,
        sha256=hashlib.sha256(raw).hexdigest(),
        in_transaction=NO_TRANSACTION_MARKER not in sql.splitlines(),
    )
    _check_statements(migration)
    return migration


def _check_statements(migration: Migration) -> None:
    if _TRANSACTION_CONTROL.search(migration.sql):
        raise MigrationError(f"{migration.label}: the runner begins and commits, the file must not")
    # Bodies hold semicolons, which the splitter of such files does not understand.
    if not migration.in_transaction and "$$" in migration.sql:
        raise MigrationError(f"{migration.label}: a no-transaction file cannot hold $$ bodies")


def _statements(sql: str) -> list[str]:
    parts = _STATEMENT_END.split(_COMMENT_LINE.sub("", sql))
    return [part.strip() for part in parts if part.strip()]


async def migrate_up(
    dsn: str,
    *,
    dry_run: bool = False,
    folder: Path | None = None,
    wait_s: float = RUNNER_WAIT_S,
    lock_attempts: int = LOCK_ATTEMPTS,
) -> list[Applied]:
    """Applies what is pending and returns it; a dry run only returns it."""
    migrations = load(folder)
    async with _connection(dsn) as conn:
        if dry_run:
            return [_planned(m) for m in _pending(migrations, await _records(conn))]
        await _prepare(conn)
        # The lock lives in a transaction of its own connection: a crash lets go of it at once.
        async with _connection(dsn) as keeper, _turn(keeper, wait_s):
            pending = _pending(migrations, await _records(conn))
            return [await _apply(conn, m, lock_attempts) for m in pending]


async def status(dsn: str, *, folder: Path | None = None) -> list[Status]:
    migrations = load(folder)
    async with _connection(dsn) as conn:
        records = {r.number: r for r in await _records(conn)}
    known = [Status(m.number, m.name, _state(m, records.pop(m.number, None))) for m in migrations]
    return known + [Status(r.number, r.name, State.AHEAD) for r in records.values()]


async def verify(dsn: str, *, folder: Path | None = None) -> list[str]:
    """What is wrong, in sentences; empty when each file is applied as it stands."""
    complaint = {
        State.PENDING: "is not applied: run `trunklined migrate up`",
        State.CHANGED: "was changed after it was applied: restore the file, write a new one",
        State.AHEAD: "was applied by a newer release",
    }
    found = await status(dsn, folder=folder)
    return [f"{s.number:04d}_{s.name} {complaint[s.state]}" for s in found if s.state in complaint]


def _state(migration: Migration, record: _Record | None) -> State:
    if record is None:
        return State.PENDING
    return State.APPLIED if record.sha256 == migration.sha256 else State.CHANGED


def _pending(migrations: Sequence[Migration], records: Sequence[_Record]) -> list[Migration]:
    applied = {r.number: r for r in records}
    if sorted(applied) != list(range(1, len(applied) + 1)):
        raise MigrationError("the database has applied migrations with a gap between them")
    for migration in migrations:
        if _state(migration, applied.get(migration.number)) is State.CHANGED:
            raise MigrationError(
                f"{migration.label} was changed after it was applied;"
                " restore the file and write a new migration"
            )
    # Records past the last file are a newer release's: this one has nothing left to do.
    return [m for m in migrations if m.number not in applied]


def _planned(migration: Migration) -> Applied:
    return Applied(migration.number, migration.name, migration.sha256, elapsed_s=0.0, attempts=0)


@asynccontextmanager
async def _connection(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    conn = await asyncpg.connect(
        dsn,
        timeout=CONNECT_TIMEOUT_S,
        statement_cache_size=0,  # DDL between uses would make cached plans stale
        server_settings={
            "application_name": "trunkline-migrate",
            "statement_timeout": "0",
            "idle_in_transaction_session_timeout": "0",
        },
    )
    try:
        yield conn
    except BaseException:
        conn.terminate()  # it may be broken, and a second error would hide the first
        raise
    # In good order: whoever copies the database next must not find us still there.
    await conn.close(timeout=CONNECT_TIMEOUT_S)


# hashtext('trunkline.schema_migrations') would do; a constant is the same on every version.
_PREPARE_LOCK = "SELECT pg_advisory_xact_lock(7283113740512)"
_PREPARE = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    number integer PRIMARY KEY CHECK (number > 0),
    name text NOT NULL,
    sha256 text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE IF NOT EXISTS schema_migrations_lock (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row)
);
INSERT INTO schema_migrations_lock DEFAULT VALUES ON CONFLICT DO NOTHING;
"""

_PREPARED = "SELECT to_regclass('schema_migrations_lock') IS NOT NULL"


async def _prepare(conn: asyncpg.Connection) -> None:
    if await conn.fetchval(_PREPARED):
        return
    async with conn.transaction():
        # CREATE TABLE IF NOT EXISTS fails when two sessions race for the same name.
        await conn.execute(_PREPARE_LOCK)
        await conn.execute(_PREPARE)


_RECORDS = "SELECT number, name, sha256 FROM schema_migrations ORDER BY number"


async def _records(conn: asyncpg.Connection) -> list[_Record]:
    if not await conn.fetchval(_PREPARED):
        return []
    return [_Record(r["number"], r["name"], r["sha256"]) for r in await conn.fetch(_RECORDS)]


_TAKE_LOCK = "SELECT only_row FROM schema_migrations_lock FOR UPDATE NOWAIT"


@asynccontextmanager
async def _turn(keeper: asyncpg.Connection, wait_s: float) -> AsyncIterator[None]:
    deadline = time.monotonic() + wait_s
    # Asking again instead of waiting inside the statement: a waiting statement keeps its snapshot,
    # and the CREATE INDEX CONCURRENTLY of the runner ahead waits for all snapshots to go.
    while True:
        transaction = keeper.transaction()
        await transaction.start()
        try:
            # execute, not fetch: an open portal would keep its snapshot to the end as well.
            tag = await keeper.execute(_TAKE_LOCK)
        except asyncpg.LockNotAvailableError as e:
            await transaction.rollback()
            if time.monotonic() >= deadline:
                raise MigrationError(f"another runner held the lock for {wait_s:.0f} s") from e
            await asyncio.sleep(LOCK_POLL_S)
        else:
            break
    if tag != "SELECT 1":
        raise MigrationError("schema_migrations_lock has lost its row")
    yield  # the lock goes when the keeper closes


_LOCK_TIMEOUT = "SELECT set_config('lock_timeout', $1, $2)"
_RECORD = "INSERT INTO schema_migrations (number, name, sha256) VALUES ($1, $2, $3)"


async def _apply(conn: asyncpg.Connection, migration: Migration, lock_attempts: int) -> Applied:
    run = _run_in_transaction if migration.in_transaction else _run_without_transaction
    started = time.monotonic()
    for attempt in range(1, lock_attempts + 1):
        try:
            await run(conn, migration)
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError) as e:
            if attempt == lock_attempts:
                raise MigrationError(
                    f"{migration.label}: no lock within {LOCK_TIMEOUT_S:g} s, {attempt} times;"
                    " end the long transaction and run again"
                ) from e
            # Giving up lets the calls queued behind this lock through before the next try.
            await asyncio.sleep(_backoff_s(attempt))
        except asyncpg.InterfaceError as e:
            raise MigrationError(f"{migration.label}: the connection was lost; run again") from e
        else:
            elapsed_s = time.monotonic() - started
            return Applied(migration.number, migration.name, migration.sha256, elapsed_s, attempt)
    raise MigrationError(f"{migration.label}: lock_attempts must be at least 1")


def _backoff_s(attempt: int) -> float:
    ceiling_s: float = min(RETRY_BACKOFF_S * 2 ** (attempt - 1), RETRY_BACKOFF_S_MAX)
    return ceiling_s * random.uniform(0.5, 1.0)


async def _run_in_transaction(conn: asyncpg.Connection, migration: Migration) -> None:
    async with conn.transaction():
        await conn.execute(_LOCK_TIMEOUT, _milliseconds(LOCK_TIMEOUT_S), True)
        await conn.execute(migration.sql)
        await conn.execute(_RECORD, migration.number, migration.name, migration.sha256)


async def _run_without_transaction(conn: asyncpg.Connection, migration: Migration) -> None:
    # A crash before the record runs the file again, so each of its statements must bear that.
    await conn.execute(_LOCK_TIMEOUT, _milliseconds(NO_TRANSACTION_LOCK_TIMEOUT_S), False)
    for statement in _statements(migration.sql):
        await conn.execute(statement)
    await conn.execute(_RECORD, migration.number, migration.name, migration.sha256)


def _milliseconds(seconds: float) -> str:
    return f"{max(1, round(seconds * 1000))}ms"
