"""One small import behind another organisation's large one: how many batches it waits to begin."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import asyncpg

from bench import product
from bench.figures import Figure, figure
from bench.importing import QUOTAS, Bare, Importer, roster
from bench.product import Stack
from bench.registry import Plan

NAME = "fair"

_WAITED = """
SELECT extract(epoch FROM s.started_at - s.upload_ended_at)::float8 AS waited,
       extract(epoch FROM l.ended_at - l.started_at)::float8
           / (SELECT count(*) FROM import_batches b WHERE b.import_id = l.import_id) AS batch,
       s.started_at < l.ended_at AS is_beside
FROM imports s, imports l WHERE s.import_id = $1 AND l.import_id = $2
"""


def run(plan: Plan) -> Iterator[Figure]:
    large, small = roster(plan.pick(full=600_000, quick=300_000)), roster(1_000)
    waits, batches = [], []
    with ExitStack() as started:
        stack = started.enter_context(product.stack())
        tenants = [product.seed(stack, slug=f"bench-{n}", quotas=QUOTAS) for n in range(3)]
        server = started.enter_context(product.watched(stack)).server
        # One job at a time: nothing but fairness lets the small one begin.
        started.enter_context(product.server(stack, "bench.servers.worker", concurrency="1"))
        many, one = (Importer(server.address, tenant) for tenant in tenants[:2])
        started.callback(many.close)
        started.callback(one.close)
        bare = Bare(stack)
        for _ in range(plan.pick(full=5, quick=2)):
            bare.clear()
            with ThreadPoolExecutor(1) as thread:
                first = many.submit(large.content)
                behind = thread.submit(many.ended, first)
                time.sleep(0.5)
                second = one.submit(small.content)
                one.ended(second)
                behind.result()
            waited, batch = asyncio.run(_waited(stack, second, first))
            waits.append(waited / batch)
            batches.append(batch * 1000)
    yield figure(NAME, "start_in_batch_times", waits)
    yield figure(NAME, "batch_ms", batches, unit="ms", better="lower")


async def _waited(stack: Stack, small: str, large: str) -> tuple[float, float]:
    connection = await asyncpg.connect(stack.database_url)
    row = await connection.fetchrow(_WAITED, small, large)
    await connection.close()
    assert row is not None
    assert row["is_beside"]
    return row["waited"], row["batch"]
