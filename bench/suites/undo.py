"""Undoing an import that created its members, beside one bare DELETE of as many."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack

from bench import product
from bench.alternate import alternate, ratios
from bench.figures import Figure, figure
from bench.importing import QUOTAS, Bare, File, Importer, roster
from bench.product import Tenant
from bench.registry import CannotMeasure, Plan
from trunkline.api.imports.v1 import imports_service_pb2 as pb

NAME = "undo"


def run(plan: Plan) -> Iterator[Figure]:
    file = roster(plan.pick(full=500_000, quick=100_000))
    with ExitStack() as started:
        stack = started.enter_context(product.stack())
        tenant = product.seed(stack, quotas=QUOTAS)
        server = started.enter_context(product.watched(stack)).server
        started.enter_context(product.server(stack, "bench.servers.worker"))
        importer = Importer(server.address, tenant)
        started.callback(importer.close)
        bare = Bare(stack)
        values = alternate(
            {
                "delete": lambda: _deleted(importer, bare, tenant, file),
                "undo": lambda: _undone(importer, bare, file),
            },
            rounds=plan.pick(full=5, quick=3),
        )
    yield figure(NAME, "to_bare_delete", ratios(values["undo"], values["delete"]))
    for name, runs in values.items():
        yield figure(NAME, f"{name}_per_s", runs, unit="rows/s")


def _deleted(importer: Importer, bare: Bare, tenant: Tenant, file: File) -> float:
    bare.clear()
    importer.seconds(file)
    return file.rows / bare.delete_seconds(tenant.org_id)


def _undone(importer: Importer, bare: Bare, file: File) -> float:
    bare.clear()
    import_id = importer.submit(file.content)
    importer.ended(import_id)
    begun = time.perf_counter()
    importer.undo(import_id)
    found = importer.ended(import_id)
    taken = time.perf_counter() - begun
    if found.state != pb.IMPORT_STATE_UNDONE or found.undo.reversed != file.rows:
        raise CannotMeasure(f"an undo ended {found.state}: {found.undo}")
    return file.rows / taken
