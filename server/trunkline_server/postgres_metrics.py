"""PostgreSQL's own figures: connections by state, room left, slow statements.

Read once a minute by one process of a deployment's many, over a connection that lives for one
reading, so it costs the hot path nothing and keeps no slot.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Iterator

import asyncpg

from trunkline_server.metrics import LABEL_VALUE_CHARS_MAX, Labels
from trunkline_server.telemetry import Telemetry

INTERVAL_S = 60.0
CONNECT_TIMEOUT_S = 3.0
STATEMENT_TIMEOUT_MS = 2_000
STATEMENTS_MAX = 20

_SETTINGS = {
    "application_name": "trunkline-metrics",
    "statement_timeout": str(STATEMENT_TIMEOUT_MS),
    "lock_timeout": "500",
}
# A role without pg_read_all_stats sees that other roles' sessions exist, not what they do.
_CONNECTIONS = """
SELECT coalesce(state, 'hidden') AS state, count(*) AS sessions
FROM pg_stat_activity WHERE backend_type = 'client backend' GROUP BY 1
"""
_ROOM = """
SELECT current_setting('max_connections')::int AS max_connections,
       coalesce(extract(epoch FROM max(now() - xact_start)), 0)::float8 AS oldest_transaction_s
FROM pg_stat_activity WHERE backend_type = 'client backend'
"""
_HAS_STATEMENTS = "SELECT to_regclass('pg_stat_statements') IS NOT NULL"
# Utility statements are left out: their text is stored as written, passwords included.
_STATEMENTS = """
SELECT queryid::text AS id, min(query) AS text, sum(calls)::float8 AS calls,
       sum(total_exec_time)::float8 / 1000 AS seconds
FROM pg_stat_statements
WHERE queryid IS NOT NULL AND query ~* '^\\s*(select|insert|update|delete|merge|with)\\s'
  AND dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
GROUP BY queryid ORDER BY sum(total_exec_time) DESC LIMIT $1
"""

# Whatever normalisation has left: quoted text, dollar quotes and numbers outside of names.
_LITERAL = re.compile(r"'(?:[^']|'')*(?:'|\Z)|\$(\w*)\$.*?(?:\$\1\$|\Z)|(?<![\w$])\d[\d.]*", re.S)
_COMMENT = re.compile(r"/\*.*?(?:\*/|\Z)|--[^\n]*", re.S)

_log = logging.getLogger(__name__)


def statement_label(text: str) -> str:
    """A statement as a label: no comments, no literals, one line, bounded."""
    bare = _LITERAL.sub("?", _COMMENT.sub(" ", text))
    return " ".join(bare.split())[:LABEL_VALUE_CHARS_MAX]


class PostgresMetrics:
    """Reads at an interval; the gauges show the last reading, and nothing when it is too old."""

    def __init__(self, url: str, telemetry: Telemetry, *, interval_s: float = INTERVAL_S) -> None:
        self._url = url
        self._interval_s = interval_s
        self._task: asyncio.Task[None] | None = None
        self._connections: dict[str, int] = {}
        self._room: dict[str, float] = {}
        self._statements: list[tuple[Labels, float, float]] = []
        self._register(telemetry)

    def start(self) -> None:
        self._task = asyncio.create_task(self._read_for_ever(), name="postgres-metrics")

    async def stop(self) -> None:
        if self._task:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def read(self) -> None:
        """One reading; raises what the driver raises."""
        connection = await asyncpg.connect(
            self._url, timeout=CONNECT_TIMEOUT_S, server_settings=_SETTINGS
        )
        try:
            rows = await connection.fetch(_CONNECTIONS)
            self._connections = {row["state"]: row["sessions"] for row in rows}
            room = await connection.fetchrow(_ROOM)
            self._room = {key: float(value) for key, value in room.items()} if room else {}
            self._statements = await self._read_statements(connection)
        finally:
            connection.terminate()

    async def _read_statements(
        self, connection: asyncpg.Connection[asyncpg.Record]
    ) -> list[tuple[Labels, float, float]]:
        if not await connection.fetchval(_HAS_STATEMENTS):
            return []
        try:
            rows = await connection.fetch(_STATEMENTS, STATEMENTS_MAX)
        except asyncpg.PostgresError:
            return []  # the extension is there, but not preloaded
        return [
            (
                {"db.query.id": row["id"], "db.query.text": statement_label(row["text"])},
                row["calls"],
                row["seconds"],
            )
            for row in rows
        ]

    async def _read_for_ever(self) -> None:
        while True:
            try:
                await self.read()
            except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                self._connections, self._room, self._statements = {}, {}, []
                _log.warning("PostgreSQL's own metrics cannot be read", exc_info=True)
            await asyncio.sleep(self._interval_s)

    def _register(self, telemetry: Telemetry) -> None:
        telemetry.gauge(
            "postgresql.connections",
            lambda: [(count, {"state": state}) for state, count in self._connections.items()],
            "{connection}",
            "Sessions by state; hidden: another role's, seen without pg_read_all_stats.",
        )
        telemetry.gauge(
            "postgresql.connections.limit",
            lambda: self._one("max_connections"),
            "{connection}",
            "max_connections.",
        )
        telemetry.gauge(
            "postgresql.transaction.oldest",
            lambda: self._one("oldest_transaction_s"),
            "s",
            "Age of the oldest open transaction.",
        )
        # Gauges: the reset of pg_stat_statements, or a statement that leaves the top, lowers them.
        telemetry.gauge(
            "postgresql.statement.calls",
            lambda: [(calls, labels) for labels, calls, _ in self._statements],
            "{call}",
            "Calls of the statements that took most time.",
        )
        telemetry.gauge(
            "postgresql.statement.time",
            lambda: [(seconds, labels) for labels, _, seconds in self._statements],
            "s",
            "Time spent in the statements that took most of it.",
        )

    def _one(self, key: str) -> Iterator[tuple[float, Labels]]:
        if key in self._room:
            yield self._room[key], {}
