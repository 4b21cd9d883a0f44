"""PostgreSQL: tenant transactions, kept connections for hot reads, the Executor type."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Literal, Protocol
from uuid import UUID

import asyncpg

from trunkline_server.breaker import Attempt, Breaker, BreakerOpen
from trunkline_server.errors import Aborted, DeadlineExceeded, Unavailable
from trunkline_server.rpc.caller import CURRENT

Record = asyncpg.Record
# `repeatable_read`: all statements of the transaction see the same moment.
Isolation = Literal["repeatable_read"]
if TYPE_CHECKING:
    Kept = asyncpg.Connection[Record]
    Connection = asyncpg.pool.PoolConnectionProxy[Record]
    Pool = asyncpg.Pool[Record]
else:  # generic for the type checker only
    Kept, Connection, Pool = asyncpg.Connection, asyncpg.pool.PoolConnectionProxy, asyncpg.Pool

CONNECT_TIMEOUT_S = 3.0
ACQUIRE_TIMEOUT_S = 3.0
IDLE_IN_TRANSACTION_TIMEOUT_MS = 10_000
LOCK_TIMEOUT_MS = 1_000
CLIENT_CONNECTION_CHECK_MS = 5_000
# A server that has been frozen longer than this is as good as gone for a hot read.
READ_TIMEOUT_S = 5.0
RECONNECT_DELAY_S = 0.2
RETRY_AFTER_S = 0.5
BREAKER_REST_S = 0.25
BREAKER_REST_MAX_S = 1.0
# Shorter waits than this say nothing about the database's health.
PATIENCE_S = 0.5

_SET_ORG = "SELECT set_config('trunkline.org_id', $1, true)"
_SET_ORG_AND_TIMEOUT = (
    "SELECT set_config('trunkline.org_id', $1, true), set_config('statement_timeout', $2, true)"
)
_PING = "SELECT 1"

# Answers of the database that a client may retry: the server is away, starting, or read-only.
GONE: tuple[type[BaseException], ...] = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TooManyConnectionsError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.InvalidAuthorizationSpecificationError,
    ConnectionError,
    OSError,
)
# A server that starts, or a role that is not there yet: both pass.
RECONNECT: tuple[type[BaseException], ...] = (asyncpg.PostgresError, *GONE)
CONFLICTS = (
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    asyncpg.LockNotAvailableError,
)
# Asked to stop a little before the client stops waiting, so that the answer still reaches it.
DEADLINE_SHARE = 0.85


class Reader(Protocol):
    """What a read that sets its tenant itself needs: the kept connections, or a transaction."""

    async def fetch(self, query: str, *args: Any) -> list[Record]: ...
    async def fetchrow(self, query: str, *args: Any) -> Record | None: ...


class Executor(Reader, Protocol):
    """What a query needs: a pool's connection or a transaction."""

    async def fetchval(self, query: str, *args: Any) -> Any: ...
    async def execute(self, query: str, *args: Any) -> str: ...
    async def executemany(self, command: str, args: Sequence[Sequence[Any]]) -> None: ...


class DatabaseUnavailable(Unavailable):
    text = "The database is not available; retry."


class DatabaseConflict(Aborted):
    text = "A concurrent change got in the way; repeat the call."


class DatabaseTooSlow(DeadlineExceeded):
    text = "The database did not answer in time."


def translated(error: BaseException) -> Exception | None:
    """A driver error as one of ours. Its text is dropped: it may hold another tenant's row."""
    # Neither is the database's doing, though both are of a class that is.
    if isinstance(error, TimeoutError | asyncpg.DataError):
        return None
    if isinstance(error, asyncpg.QueryCanceledError):
        return DatabaseTooSlow()
    if isinstance(error, CONFLICTS) or _moved_partition(error):
        return DatabaseConflict(retry_after_s=0.05)
    if isinstance(error, GONE):
        return DatabaseUnavailable(retry_after_s=RETRY_AFTER_S)
    return None


def late(waited_s: float) -> Exception:
    """Nothing came in time. A caller in a hurry is no proof that the database is gone."""
    if waited_s < PATIENCE_S:
        return DatabaseTooSlow()
    return DatabaseUnavailable(retry_after_s=RETRY_AFTER_S)


def attempted(breaker: Breaker) -> Attempt:
    """For hot reads: `guarded` without a generator, to be settled by the caller."""
    try:
        return breaker.attempt()
    except BreakerOpen as open_now:
        raise DatabaseUnavailable(retry_after_s=max(0.05, open_now.retry_after_s)) from None


@contextmanager
def guarded(breaker: Breaker) -> Iterator[None]:
    with attempted(breaker):
        yield


def _moved_partition(error: BaseException) -> bool:
    """The month's partition was attached while the row was on its way to the default one."""
    return isinstance(error, asyncpg.CheckViolationError) and error.constraint_name is None


class Readers:
    """Kept connections for single-statement reads: no acquire, no reset, no transaction.

    The tenant is set inside the statement, by the function it calls, so nothing stays behind.
    """

    def __init__(self, url: str, settings: Mapping[str, str], count: int, breaker: Breaker) -> None:
        self._url = url
        self._breaker = breaker
        self._settings = dict(settings)
        self._count = count
        self._idle: deque[Kept] = deque()
        self._waiting: deque[asyncio.Future[Kept]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    async def open(self) -> None:
        self._idle.extend([await self._connect() for _ in range(self._count)])

    async def close(self) -> None:
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for connection in self._idle:
            connection.terminate()
        self._idle.clear()

    @property
    def idle(self) -> int:
        return len(self._idle)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    async def fetchrow(self, query: str, *args: Any) -> Record | None:
        timeout_s = _read_timeout_s()
        attempt = attempted(self._breaker)
        try:
            connection = self._idle.popleft() if self._idle else await self._wait(timeout_s)
            try:
                row = await connection.fetchrow(query, *args, timeout=timeout_s)
            except BaseException as error:
                raise self._failed(connection, error, timeout_s) from None
        except BaseException as error:
            attempt.settle(type(error))
            raise
        attempt.settle(None)
        self._give_back(connection)
        return row

    async def fetch(self, query: str, *args: Any) -> list[Record]:
        timeout_s = _read_timeout_s()
        attempt = attempted(self._breaker)
        try:
            connection = self._idle.popleft() if self._idle else await self._wait(timeout_s)
            try:
                rows = await connection.fetch(query, *args, timeout=timeout_s)
            except BaseException as error:
                raise self._failed(connection, error, timeout_s) from None
        except BaseException as error:
            attempt.settle(type(error))
            raise
        attempt.settle(None)
        self._give_back(connection)
        return rows

    def _failed(self, connection: Kept, error: BaseException, timeout_s: float) -> BaseException:
        """A connection outlives impatient callers; one that did not answer in time is replaced."""
        late_error = late(timeout_s) if isinstance(error, TimeoutError) else None
        if isinstance(late_error, DatabaseUnavailable) or isinstance(error, GONE):
            connection.terminate()
        self._give_back(connection)
        return late_error or error

    async def _wait(self, timeout_s: float) -> Kept:
        future: asyncio.Future[Kept] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        try:
            async with asyncio.timeout(timeout_s):
                return await future
        except BaseException as error:
            if future.done() and not future.cancelled():
                self._give_back(future.result())
            if isinstance(error, TimeoutError):
                raise late(timeout_s) from None
            raise

    def _give_back(self, connection: Kept) -> None:
        if connection.is_closed() or self._closed:
            connection.terminate()
            if not self._closed:
                task = asyncio.get_running_loop().create_task(self._replace())
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            return
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(connection)
                return
        self._idle.append(connection)

    async def _replace(self) -> None:
        while not self._closed:
            try:
                self._give_back(await self._connect())
                return
            except RECONNECT:
                await asyncio.sleep(RECONNECT_DELAY_S)

    async def _connect(self) -> Kept:
        return await asyncpg.connect(
            self._url, timeout=CONNECT_TIMEOUT_S, server_settings=self._settings
        )


def deadline_left_s() -> float | None:
    """What is left for the database of the request's deadline; None outside of a request."""
    request = CURRENT.get(None)
    if request is None or request.deadline is None:
        return None
    return max(0.001, (request.deadline - time.monotonic()) * DEADLINE_SHARE)


def _read_timeout_s() -> float:
    left_s = deadline_left_s()
    return READ_TIMEOUT_S if left_s is None else min(READ_TIMEOUT_S, left_s)


class Database:
    """One PostgreSQL as one role sees it."""

    def __init__(
        self,
        pool: Pool,
        readers: Readers,
        statement_timeout_s: float,
        breaker: Breaker,
    ) -> None:
        self.breaker = breaker
        self.pool = pool
        self.readers = readers
        self._statement_timeout_s = statement_timeout_s

    @classmethod
    async def open(
        cls,
        url: str,
        *,
        role: str = "trunkline_app",
        pool_size: int = 10,
        readers: int = 2,
        statement_timeout_s: float = 5.0,
        application: str = "trunkline",
    ) -> "Database":
        # Rests briefly: serving goes on within two seconds of PostgreSQL's return.
        breaker = Breaker(
            "postgresql",
            failures=(DatabaseUnavailable, *GONE),
            rest_s=BREAKER_REST_S,
            rest_max_s=BREAKER_REST_MAX_S,
        )
        settings = session_settings(role, statement_timeout_s, application)
        pool = await asyncpg.create_pool(
            url,
            min_size=1,
            max_size=pool_size,
            timeout=CONNECT_TIMEOUT_S,
            # PostgreSQL ends a statement first, and says so; ours is for when it cannot.
            command_timeout=statement_timeout_s + 1,
            server_settings=settings,
        )
        kept = Readers(url, settings, readers, breaker)
        await kept.open()
        return cls(pool, kept, statement_timeout_s, breaker)

    async def close(self) -> None:
        await self.readers.close()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await self.pool.close()
        except TimeoutError:
            self.pool.terminate()

    @asynccontextmanager
    async def tenant_tx(
        self, org_id: UUID, *, isolation: Isolation | None = None
    ) -> AsyncIterator[Connection]:
        """A transaction that sees one organisation's rows, for no longer than the deadline."""
        async with self._transaction(isolation) as (connection, left_s):
            if left_s is not None and left_s < self._statement_timeout_s:
                milliseconds = str(max(1, int(left_s * 1000)))
                await connection.execute(_SET_ORG_AND_TIMEOUT, str(org_id), milliseconds)
            else:
                await connection.execute(_SET_ORG, str(org_id))
            yield connection

    @asynccontextmanager
    async def system_tx(self) -> AsyncIterator[Connection]:
        """A transaction of no organisation: it sees what the role's own policies grant."""
        async with self._transaction() as (connection, _):
            yield connection

    @asynccontextmanager
    async def _transaction(
        self, isolation: Isolation | None = None
    ) -> AsyncIterator[tuple[Connection, float | None]]:
        left_s = deadline_left_s()
        acquire_s = min(ACQUIRE_TIMEOUT_S, left_s or ACQUIRE_TIMEOUT_S)
        try:
            with guarded(self.breaker):
                async with asyncio.timeout(left_s), self.pool.acquire(timeout=acquire_s) as held:
                    async with held.transaction(isolation=isolation):
                        yield held, left_s
        except TimeoutError:
            raise late(left_s or ACQUIRE_TIMEOUT_S) from None
        except asyncpg.ReadOnlySQLTransactionError:
            # The primary has become a standby: no kept connection may go on talking to it.
            await self.pool.expire_connections()
            raise

    async def ping(self, timeout_s: float) -> None:
        async with asyncio.timeout(timeout_s):
            await self.pool.fetchval(_PING)


def session_settings(role: str, statement_timeout_s: float, application: str) -> dict[str, str]:
    """What a connection starts with; RESET ALL returns to it, so a pool cannot lose it."""
    settings = {
        "application_name": application,
        "statement_timeout": str(int(statement_timeout_s * 1000)),
        "lock_timeout": str(LOCK_TIMEOUT_MS),
        "idle_in_transaction_session_timeout": str(IDLE_IN_TRANSACTION_TIMEOUT_MS),
        "client_connection_check_interval": str(CLIENT_CONNECTION_CHECK_MS),
        "jit": "off",
    }
    if role:
        settings["role"] = role
    return settings
