"""The worker's jobs: which handler does which kind, and what runs by the clock."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import partial

import asyncpg

from trunkline_server import audit, idempotency
from trunkline_server.db import Database
from trunkline_server.jobs import Done, Handler, Lease, Outcome, Schedule
from trunkline_server.link import Link
from trunkline_server.members import upkeep as members

SEAL_AUDIT = "audit.seal"
SWEEP_REQUESTS = "requests.sweep"
MAKE_PARTITIONS = "partitions.make"

SEAL_EVERY = timedelta(seconds=10)
SWEEP_EVERY = timedelta(minutes=10)
PARTITIONS_EVERY = timedelta(hours=6)
MONTHS_AHEAD = 3

# Tenant tables in monthly partitions.
PARTITIONED = ("audit_log", "member_history", "validation_log", "events")
# Events are taken for 35 days: what is recorded today may belong to the month before last.
EVENTS_MONTHS_BACK = 2

_ENSURE_PARTITION = "SELECT ensure_month_partition($1::text::regclass, $2)"


def schedules() -> Sequence[Schedule]:
    return (
        Schedule(SEAL_AUDIT, SEAL_EVERY),
        Schedule(SWEEP_REQUESTS, SWEEP_EVERY),
        Schedule(MAKE_PARTITIONS, PARTITIONS_EVERY),
        *members.SCHEDULES,
    )


def handlers(db: Database, link: Link) -> Mapping[str, Handler]:
    return {
        SEAL_AUDIT: partial(_seal, db),
        SWEEP_REQUESTS: partial(_sweep, db),
        MAKE_PARTITIONS: partial(_make_partitions, db),
        members.INDEX_MEMBERS: partial(members.index, db),
        members.PURGE_MEMBERS: partial(members.purge, db, link),
    }


async def _seal(db: Database, lease: Lease) -> Outcome:
    while await audit.seal(db):
        lease.touch()
    return Done()


async def _sweep(db: Database, lease: Lease) -> Outcome:
    while True:
        async with db.system_tx() as tx:
            swept = await idempotency.sweep(tx) + await audit.sweep_sessions(tx)
        if not swept:
            return Done()
        lease.touch()


async def _make_partitions(db: Database, lease: Lease) -> Outcome:
    for table, month in _wanted_partitions():
        async with db.system_tx() as tx:
            await tx.fetchval(_ENSURE_PARTITION, table, month)
        lease.touch()
    return Done()


async def make_partitions(dsn: str) -> None:
    """As the owner, right after migrating: before anybody writes, so that nobody has to wait."""
    connection = await asyncpg.connect(dsn)
    try:
        for table, month in _wanted_partitions():
            await connection.fetchval(_ENSURE_PARTITION, table, month)
    finally:
        await connection.close()


def _wanted_partitions() -> Iterator[tuple[str, date]]:
    """This month's and the next ones', and of events the last ones'."""
    first = month = datetime.now(UTC).date().replace(day=1)
    for _ in range(MONTHS_AHEAD + 1):
        yield from ((table, month) for table in PARTITIONED)
        month = (month + timedelta(days=32)).replace(day=1)
    for _ in range(EVENTS_MONTHS_BACK):
        first = (first - timedelta(days=1)).replace(day=1)
        yield "events", first
