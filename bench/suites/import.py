"""A whole import, first byte to SUCCEEDED, beside a raw COPY and one connection's staging upsert.

All sides take the same bytes in one run, alternately, each into an empty table: COPY and upsert
straight into a copy of the members' table with all indexes, without row-level security; the import
through client, server, stored chunks, rules and two lanes into the real one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

from bench import product
from bench.alternate import alternate, ratios
from bench.figures import Figure, figure
from bench.importing import QUOTAS, Bare, File, Importer, roster
from bench.registry import Plan

NAME = "import"
BAD_SHARE = 0.2


class _Sides:
    """Rows a second, each side."""

    def __init__(self, importer: Importer, bare: Bare, clean: File, bad: File) -> None:
        self._importer = importer
        self._bare = bare
        self._clean = clean
        self._bad = bad
        self.unchanged: list[float] = []

    def copy(self) -> float:
        self._bare.clear()
        return self._clean.rows / self._bare.copy_seconds(self._clean)

    def upsert(self) -> float:
        self._bare.clear()
        return self._clean.rows / self._bare.upsert_seconds(self._clean)

    def first(self) -> float:
        """And the same file once more, straight after."""
        rows = self._clean.rows
        self._bare.clear()
        first = rows / self._importer.seconds(self._clean, created=rows)
        self.unchanged.append(rows / self._importer.seconds(self._clean, unchanged=rows))
        return first

    def bad(self) -> float:
        self._bare.clear()
        return self._bad.rows / self._importer.seconds(self._bad)


def run(plan: Plan) -> Iterator[Figure]:
    rows = plan.pick(full=1_000_000, quick=200_000)
    with ExitStack() as started:
        stack = started.enter_context(product.stack())
        tenant = product.seed(stack, quotas=QUOTAS)
        server = started.enter_context(product.watched(stack)).server
        started.enter_context(product.server(stack, "bench.servers.worker"))
        importer = Importer(server.address, tenant)
        started.callback(importer.close)
        sides = _Sides(importer, Bare(stack), roster(rows), roster(rows, BAD_SHARE))
        values = alternate(
            {"copy": sides.copy, "first": sides.first, "upsert": sides.upsert, "bad": sides.bad},
            rounds=plan.pick(full=5, quick=3),
        )
    yield figure(NAME, "to_raw_copy", ratios(values["first"], values["copy"]))
    yield figure(NAME, "to_staging_upsert", ratios(values["first"], values["upsert"]))
    yield figure(NAME, "unchanged_to_first", ratios(sides.unchanged, values["first"]))
    yield figure(NAME, "bad20_to_clean", ratios(values["bad"], values["first"]))
    for name, runs in {**values, "unchanged": sides.unchanged}.items():
        yield figure(NAME, f"{name}_per_s", runs, unit="rows/s")
