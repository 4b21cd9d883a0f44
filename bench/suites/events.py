"""Events streamed to the product, beside raw COPY of such rows into the same partitioned table."""

from __future__ import annotations

import asyncio
import io
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg

from bench import product
from bench.alternate import alternate, ratios
from bench.figures import Figure, figure
from bench.process import ask, running
from bench.product import Stack, Tenant
from bench.registry import CannotMeasure, Plan
from bench.servers.events_client import OUTCOMES, SPAN_S
from trunkline_server.ids import uuid7
from trunkline_server.rpc.caller import Role
from trunkline_server.upkeep import make_partitions

NAME = "events"
# An organisation's limit would be measured otherwise.
QUOTA = {"events_per_second": 50_000_000}
_COLUMNS = (
    "org_id", "occurred_on", "event_id", "kind", "occurred_at", "agent_id", "duration_us",
    "outcome", "quantity",
)  # fmt: skip
_COUNT = "SELECT count(*) FROM events WHERE org_id = $1"


class _Streamed:
    """The product's side: every event judged, recorded once, and its hour marked."""

    def __init__(self, client: subprocess.Popen[str], count: int) -> None:
        self._client = client
        self._count = count
        self.retried: list[float] = []

    def per_s(self) -> float:
        ask(self._client, f"make {self._count}")
        first, recorded, _, refused = json.loads(ask(self._client, "send"))
        again, twice, duplicates, refused_again = json.loads(ask(self._client, "send"))
        if (recorded, twice, duplicates) != (self._count, 0, self._count) or refused:
            raise CannotMeasure(f"not every event was recorded once: {recorded}, then {twice}")
        assert not refused_again
        self.retried.append(again / first)
        return float(self._count / first)


class _Copied:
    """The other side: rows that are text already, no keys checked but by the table's own index."""

    def __init__(self, stack: Stack, tenant: Tenant, count: int) -> None:
        self._stack = stack
        self._org_id = tenant.org_id
        self._count = count
        self._agents = [uuid7() for _ in range(200)]

    def per_s(self) -> float:
        return self._count / asyncio.run(self._copy(self._rows()))

    def _rows(self) -> bytes:
        first = datetime.now(UTC) - timedelta(seconds=SPAN_S)
        step = timedelta(seconds=SPAN_S) / self._count
        lines = []
        for n in range(self._count):
            at = first + n * step
            agent: UUID = random.choice(self._agents)
            lines.append(
                f"{self._org_id}\t{at.date()}\t{uuid7()}\tCALL\t{at}\t{agent}"
                f"\t{1_000_000 + n * 7_919 % 600_000}\t{OUTCOMES[n % 4]}\t1\n"
            )
        return "".join(lines).encode()

    async def _copy(self, rows: bytes) -> float:
        connection = await asyncpg.connect(self._stack.database_url)
        try:
            started = time.perf_counter()
            await connection.copy_to_table(
                "events", source=io.BytesIO(rows), columns=_COLUMNS, timeout=120
            )
            return time.perf_counter() - started
        finally:
            await connection.close()


def run(plan: Plan) -> Iterator[Figure]:
    count = plan.pick(full=200_000, quick=40_000)
    rounds = plan.pick(full=5, quick=3)
    with ExitStack() as started:
        stack = started.enter_context(product.stack())
        asyncio.run(make_partitions(stack.database_url))
        tenant = product.seed(stack, quotas=QUOTA)
        other = product.seed(stack, slug="bench-copy")
        served = started.enter_context(product.watched(stack)).server
        bearer = tenant.bearer(Role.SYSTEM)["authorization"]
        client, _ = started.enter_context(
            running(
                [sys.executable, "-m", "bench.servers.events_client", served.address, bearer],
                "events client",
            )
        )
        streamed = _Streamed(client, count)
        ask(client, "make 1000")
        ask(client, "send")  # the quota is read after the first calls
        time.sleep(product.QUOTA_READ_S)
        copied = _Copied(stack, other, count)
        sides = {"copy": copied.per_s, "stream": streamed.per_s}
        values = alternate(sides, rounds=rounds)
        kept = asyncio.run(_count(stack, tenant.org_id))
    if kept != count * rounds + 1_000:
        raise CannotMeasure(f"{kept} events are there after {count * rounds + 1_000} were sent")
    yield figure(NAME, "to_raw_copy", ratios(values["stream"], values["copy"]))
    yield figure(NAME, "per_s", values["stream"])
    yield figure(NAME, "retried_to_first", streamed.retried, unit="ratio", better="lower")
    yield figure(NAME, "copy_per_s", values["copy"], unit="events/s")


async def _count(stack: Stack, org_id: UUID) -> int:
    connection = await asyncpg.connect(stack.database_url)
    try:
        return int(await connection.fetchval(_COUNT, org_id))
    finally:
        await connection.close()
