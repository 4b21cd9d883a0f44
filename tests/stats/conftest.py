"""A served organisation, and a worker that counts when it is told to."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from tests.running import Metadata, Org, Running
from trunkline.api.stats.v1 import stats_service_pb2 as pb
from trunkline.api.stats.v1 import stats_service_pb2_grpc as stubs
from trunkline_server.db import Database
from trunkline_server.rpc.caller import Role
from trunkline_server.stats.worker import count_days, count_hours


def call(
    at: datetime, *, event_id: str = "", agent: str = "", seconds: float = 60.0, outcome: str = "ok"
) -> pb.Event:
    event = pb.Event(
        event_id=event_id or str(uuid4()), kind=pb.EVENT_KIND_CALL, agent_id=agent, outcome=outcome
    )
    event.occurred_at.FromDatetime(at)
    event.duration.FromTimedelta(timedelta(seconds=seconds))
    return event


@dataclass
class Stats:
    """StatsService as one organisation's callers see it."""

    stub: stubs.StatsServiceAsyncStub
    org: Org
    database_url: str = ""

    def as_(self, role: Role) -> Metadata:
        return self.org.as_(role)

    async def record(self, *events: pb.Event, role: Role = Role.SYSTEM) -> pb.RecordEventsResponse:
        request = pb.RecordEventsRequest(events=events)
        return await self.stub.RecordEvents(request, metadata=self.as_(role))

    def query(
        self,
        metric: str = "calls",
        start: datetime | None = None,
        end: datetime | None = None,
        **fields: Any,
    ) -> pb.StatsQuery:
        now = datetime.now(UTC)
        query = pb.StatsQuery(metric=metric, **fields)
        query.from_time.FromDatetime(start or now - timedelta(days=35))
        query.to_time.FromDatetime(end or now + timedelta(hours=1))
        return query

    async def ask(self, *args: Any, **kwargs: Any) -> pb.QueryStatsResponse:
        request = pb.QueryStatsRequest(query=self.query(*args, **kwargs))
        return await self.stub.QueryStats(request, metadata=self.as_(Role.ADMIN))

    async def value(self, name: str, *args: Any, **kwargs: Any) -> float | None:
        """One number over the whole range."""
        reply = await self.ask(*args, **{"values": [name], **kwargs})
        (series,) = reply.series
        (point,) = series.points
        found = point.values[0]
        return found.value if found.HasField("value") else None


@pytest.fixture
async def stats(server: Running) -> Stats:
    return Stats(
        stubs.StatsServiceStub(server.channel), await server.org("acme"), server.database_url
    )


@pytest.fixture
async def worker_db(database_url: str) -> AsyncIterator[Database]:
    db = await Database.open(
        database_url, role="trunkline_worker", pool_size=4, readers=1, statement_timeout_s=60
    )
    yield db
    await db.close()


async def count_everything(db: Database, org_id: UUID) -> None:
    """What a roll-up does, until nothing is left."""
    for step in (count_hours, count_days):
        while True:
            async with db.tenant_tx(org_id) as tx:
                if not await step(tx, org_id):
                    break


@pytest.fixture
async def admin(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    """The superuser's eyes: no policy hides anything."""
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()
