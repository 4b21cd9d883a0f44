"""Overviews and roll-ups over raw events of 90 days and 50 organisations."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta

import asyncpg
import grpc

from bench import openloop, product
from bench.figures import Figure, figure
from bench.process import running
from bench.product import Stack, Tenant
from bench.registry import CannotMeasure, Plan
from trunkline.api.stats.v1 import stats_service_pb2 as pb
from trunkline.api.stats.v1 import stats_service_pb2_grpc as stubs
from trunkline_server.db import Database
from trunkline_server.ids import uuid7
from trunkline_server.rpc.caller import Role
from trunkline_server.stats.worker import count_days, count_hours
from trunkline_server.upkeep import make_partitions

NAME = "rollup"
DAYS = 90
ORGS = 50
AGENTS = 200
HOURS_A_RUN = 100
OVERVIEWS_PER_S = 100
UNCACHED_PER_S = 10
LATE_TIMEOUT_S = 30

_MONTH = "SELECT ensure_month_partition('events', $1)"
# Spread over the organisations and the 90 days, as if they had come in time.
_FILL = """
INSERT INTO events (
    org_id, occurred_on, event_id, kind, occurred_at, agent_id, duration_us, outcome
)
SELECT ($1::uuid[])[1 + n % $2], (at AT TIME ZONE 'UTC')::date, gen_random_uuid(), 'CALL', at,
       ('00000000-0000-0000-0000-' || lpad((n / $2 % $3)::text, 12, '0'))::uuid,
       1000000 + n * 7919 % 600000000,
       (ARRAY['resolved', 'transferred', 'dropped', 'callback'])[1 + n % 4]
FROM generate_series($4::bigint, $5::bigint - 1) AS n,
     LATERAL (SELECT now() - interval '1 hour' - random() * interval '90 days' AS at) AS t
"""
_MARK_ALL = """
INSERT INTO stats_dirty (org_id, hour, kind, mark_id)
SELECT o, h, 'CALL', gen_random_uuid()
FROM unnest($1::uuid[]) AS o,
     generate_series(date_trunc('hour', now() - interval '91 days'), now(), '1 hour') AS h
"""
_MARK_SOME = """
INSERT INTO stats_dirty (org_id, hour, kind, mark_id)
SELECT $1, date_trunc('hour', now()) - n * interval '11 hours', 'CALL', gen_random_uuid()
FROM generate_series(1, $2::integer) AS n
"""


class _Table:
    """The raw events, growing from size to size, and how long a run takes at each."""

    def __init__(self, stack: Stack, tenants: list[Tenant]) -> None:
        self._stack = stack
        self._orgs = [tenant.org_id for tenant in tenants]
        self._events = 0
        self.counting_per_s: list[float] = []

    async def grow(self, events: int) -> None:
        connection = await asyncpg.connect(self._stack.database_url)
        try:
            if not self._events:
                for back in range(5):
                    day = datetime.now(UTC).date() - timedelta(days=30 * back)
                    await connection.fetchval(_MONTH, day)
            step = 250_000
            for first in range(self._events, events, step):
                last = min(first + step, events)
                await connection.execute(_FILL, self._orgs, ORGS, AGENTS, first, last, timeout=600)
            await connection.execute(_MARK_ALL, self._orgs, timeout=600)
            await connection.execute("VACUUM ANALYZE", timeout=600)
        finally:
            await connection.close()
        self._events = events
        await self._count_all()

    async def _count_all(self) -> None:
        started = time.perf_counter()
        db = await self._worker()
        try:
            for org_id in self._orgs:
                for step in (count_hours, count_days):
                    while True:
                        async with db.tenant_tx(org_id) as tx:
                            if not await step(tx, org_id):
                                break
        finally:
            await db.close()
        self.counting_per_s.append(self._events / (time.perf_counter() - started))

    async def run_ms(self, hours: int) -> float:
        """A roll-up of so many dirty hours, the median of five organisations."""
        db = await self._worker()
        took = []
        try:
            for org_id in self._orgs[:5]:
                async with db.tenant_tx(org_id) as tx:
                    await tx.execute(_MARK_SOME, org_id, hours)
                started = time.perf_counter()
                counted = 0
                while counted < hours:
                    async with db.tenant_tx(org_id) as tx:
                        counted += await count_hours(tx, org_id)
                took.append((time.perf_counter() - started) * 1000)
        finally:
            await db.close()
        return sorted(took)[len(took) // 2]

    async def _worker(self) -> Database:
        return await Database.open(
            self._stack.database_url,
            role="trunkline_worker",
            pool_size=2,
            readers=0,
            statement_timeout_s=120,
        )


def run(plan: Plan) -> Iterator[Figure]:
    sizes = plan.pick(full=(1_000_000, 3_000_000, 10_000_000), quick=(50_000, 150_000, 500_000))
    seconds = plan.pick(full=20.0, quick=5.0)
    with ExitStack() as started:
        stack = started.enter_context(product.stack())
        asyncio.run(make_partitions(stack.database_url))
        tenants = [product.seed(stack, slug=f"bench-{n}") for n in range(ORGS)]
        table = _Table(stack, tenants)
        for size in sizes:
            asyncio.run(table.grow(size))
            for hours in (HOURS_A_RUN // 10, HOURS_A_RUN):
                took = asyncio.run(table.run_ms(hours))
                name = f"run_of_{hours}_hours_at_{size // 1_000}k_ms"
                yield figure(NAME, name, [took], unit="ms", better="lower")
        yield figure(NAME, "counting_per_s", table.counting_per_s, unit="events/s")
        served = started.enter_context(product.watched(stack)).server
        started.enter_context(
            running(
                [sys.executable, "-m", "bench.servers.worker"],
                "worker",
                env=dict(stack.environment),
            )
        )
        tokens = [tenant.bearer(Role.ADMIN)["authorization"] for tenant in tenants]
        given = {"address": served.address, "tokens": tokens}
        _overviews({**given, "days": DAYS - 2}, UNCACHED_PER_S, 2.0)  # warm
        uncached = _overviews({**given, "days": DAYS - 2}, UNCACHED_PER_S, seconds)
        yield figure(NAME, "uncached_p99_ms", [uncached])
        _overviews(given, OVERVIEWS_PER_S, 2.0)  # each is made once
        yield figure(NAME, "cached_p99_ms", [_overviews(given, OVERVIEWS_PER_S, seconds)])
        late = [
            _late_visible_s(served.address, tenant)
            for tenant in tenants[: plan.pick(full=20, quick=5)]
        ]
        yield figure(NAME, "late_visible_s", late)
        yield figure(NAME, "late_visible_worst_s", [max(late)], unit="s", better="lower")


def _overviews(given: Mapping[str, object], per_s: float, seconds: float) -> float:
    outcomes = openloop.run(
        "bench.stats_targets:overviews", given, openloop.Arrivals(per_s, seconds)
    )
    if set(outcomes.counts) != {"ok"} or outcomes.unfinished:
        raise CannotMeasure(f"not every overview came: {dict(outcomes.counts)}")
    if not outcomes.driver_kept_up:
        raise CannotMeasure("the load generator was late: the machine is too busy")
    return outcomes.of("ok").quantile(0.99) * 1000


def _late_visible_s(address: str, tenant: Tenant) -> float:
    """From the reply to a late event until QueryStats has it."""
    with grpc.insecure_channel(address) as channel:
        stub = stubs.StatsServiceStub(channel)
        metadata = tuple(tenant.bearer(Role.ADMIN).items())
        at = datetime.now(UTC) - timedelta(days=3)
        query = pb.StatsQuery(metric="calls", values=["count"])
        query.from_time.FromDatetime(at - timedelta(days=1))
        query.to_time.FromDatetime(at + timedelta(days=1))

        def count() -> float:
            asked = pb.QueryStatsRequest(query=query)
            reply = stub.QueryStats(asked, metadata=metadata)
            return reply.series[0].points[0].values[0].value

        before = count()
        event = pb.Event(event_id=str(uuid7()), kind=pb.EVENT_KIND_CALL)
        event.occurred_at.FromDatetime(at)
        stub.RecordEvents(pb.RecordEventsRequest(events=[event]), metadata=metadata)
        started = time.perf_counter()
        while count() == before:
            if time.perf_counter() - started > LATE_TIMEOUT_S:
                raise CannotMeasure("a late event did not become visible")
            time.sleep(0.02)
        return time.perf_counter() - started
