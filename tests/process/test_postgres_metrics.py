"""PostgreSQL's own figures, read from a real server with pg_stat_statements."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import asyncpg
import pytest
from opentelemetry.sdk.metrics.export import NumberDataPoint

from trunkline_server.local.postgres import Postgres
from trunkline_server.metrics import LABEL_VALUE_CHARS_MAX
from trunkline_server.postgres_metrics import PostgresMetrics, statement_label
from trunkline_server.telemetry import Telemetry, TelemetrySettings

CANARY = "Wilhelmina Canary"


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    with Postgres(tmp_path_factory.mktemp("metrics"), durable=False) as running:
        yield running


def points(telemetry: Telemetry, name: str) -> list[NumberDataPoint]:
    return [
        point
        for metric in telemetry.registry.collect()
        if metric.name == name
        for point in metric.data.data_points
        if isinstance(point, NumberDataPoint)
    ]


async def test_connections_and_slow_statements(postgres: Postgres) -> None:
    telemetry = Telemetry(TelemetrySettings("t", "0"))
    metrics = PostgresMetrics(postgres.url(), telemetry)
    connection = await asyncpg.connect(postgres.url())
    try:
        await connection.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
        await connection.execute(f"CREATE ROLE leaky PASSWORD '{CANARY}'")
        async with connection.transaction():
            await connection.fetchval(f"SELECT '{CANARY}'::text || pg_sleep(0.05)::text")
            await connection.execute("SELECT 1")  # a statement counts when its portal closes
            await metrics.read()
    finally:
        await connection.execute("DROP ROLE IF EXISTS leaky")
        await connection.close()
    states = {
        (point.attributes or {})["state"]: point.value
        for point in points(telemetry, "postgresql.connections")
    }
    assert states["idle in transaction"] == 1
    assert states["active"] == 1  # the reading itself
    [limit] = points(telemetry, "postgresql.connections.limit")
    assert limit.value >= 100
    [oldest] = points(telemetry, "postgresql.transaction.oldest")
    assert oldest.value >= 0.05
    slow = [
        point
        for point in points(telemetry, "postgresql.statement.time")
        if "pg_sleep" in str((point.attributes or {})["db.query.text"])
    ]
    assert slow
    assert slow[0].value >= 0.05
    assert CANARY not in repr(telemetry.registry.collect())
    assert telemetry.registry.callback_failures == 0


async def test_what_cannot_be_read_is_not_shown(postgres: Postgres) -> None:
    telemetry = Telemetry(TelemetrySettings("t", "0"))
    metrics = PostgresMetrics(postgres.url(), telemetry)
    await metrics.read()
    assert points(telemetry, "postgresql.connections")
    postgres.stop()
    try:
        metrics.start()
        while points(telemetry, "postgresql.connections"):
            await asyncio.sleep(0.01)
    finally:
        await metrics.stop()
        postgres.start()


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("SELECT a1 FROM t WHERE b = $1 AND c > 12.5", "SELECT a1 FROM t WHERE b = $1 AND c > ?"),
        (f"SELECT 'it''s {CANARY}', $1", "SELECT ?, $1"),
        (f"SELECT $a${CANARY}$a$", "SELECT ?"),
        (f"SELECT 1 -- {CANARY}\n + /* {CANARY} */ $2", "SELECT ? + $2"),
        (f"SELECT '{CANARY}", "SELECT ?"),
        ("SELECT\n\n  $1", "SELECT $1"),
    ],
)
def test_a_statement_as_a_label(text: str, label: str) -> None:
    assert statement_label(text) == label


def test_a_label_is_bounded() -> None:
    assert len(statement_label("SELECT " + "a, " * 1_000)) <= LABEL_VALUE_CHARS_MAX
