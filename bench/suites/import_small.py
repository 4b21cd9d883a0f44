"""Small imports: 1,000 rows from opening to SUCCEEDED, one at a time and fifty at once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from bench import product
from bench.figures import Figure, figure
from bench.importing import QUOTAS, File, Importer, roster
from bench.registry import Plan

NAME = "import_small"
ROWS = 1_000
AT_ONCE = 50


def run(plan: Plan) -> Iterator[Figure]:
    file = roster(ROWS)
    with ExitStack() as started:
        stack = started.enter_context(product.stack())
        tenants = [
            product.seed(stack, slug=f"bench-{number}", quotas=QUOTAS) for number in range(AT_ONCE)
        ]
        server = started.enter_context(product.watched(stack)).server
        started.enter_context(product.server(stack, "bench.servers.worker"))
        importers = [Importer(server.address, tenant) for tenant in tenants]
        for importer in importers:
            started.callback(importer.close)
        importers[0].seconds(file)
        alone = [importers[0].seconds(file) for _ in range(plan.pick(full=100, quick=20))]
        together = [_together(importers, file) for _ in range(plan.pick(full=5, quick=2))]
    alone.sort()
    yield figure(NAME, "p95_ms", [alone[int(len(alone) * 0.95)] * 1000])
    yield figure(NAME, "median_ms", [alone[len(alone) // 2] * 1000], unit="ms", better="lower")
    yield figure(NAME, "fifty_at_once_s", together)


def _together(importers: list[Importer], file: File) -> float:
    """Each organisation sends one; until the last has SUCCEEDED."""
    with ThreadPoolExecutor(len(importers)) as threads:
        begun = time.perf_counter()
        list(threads.map(lambda importer: importer.seconds(file), importers))
        return time.perf_counter() - begun
