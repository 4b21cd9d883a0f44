"""What imports keep in memory: growth with the file's size, and what a stalled upload holds.

Growth is the peak of server and worker during a large file less their peak during a small one.
Stalled uploads are measured in two states, and the worse counts: silent with all they sent stored,
and pushing as far as grants reach while the database stands still and nothing can be stored.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import grpc

from bench import product
from bench.figures import Figure, figure
from bench.process import ask, running
from bench.product import Stack
from bench.registry import CannotMeasure, Plan
from bench.sampler import Sampler, family, rss_mb
from trunkline.api.imports.v1 import imports_service_pb2 as pb
from trunkline.api.imports.v1.imports_service_pb2_grpc import ImportServiceStub
from trunkline_server.rpc.caller import Role

NAME = "import_memory"
STREAMS = 100
SETTLE_S = 1.0
SMALL_ROWS = 10_000
CHUNK_BYTES = 512 << 10
QUOTAS = {
    "user_uploads_per_5_minutes": 10_000,
    "imports_waiting": 10_000,
    "import_starts_per_minute": 1_000,
}
HEADER = b"member_number,given_name,family_name,email,plan\n"


def run(plan: Plan) -> Iterator[Figure]:
    yield figure(NAME, "stalled_mb_per_stream", stalled(plan))
    yield figure(NAME, "growth_mb", growth(plan))


# ---- Stalled uploads ----


def stalled(plan: Plan) -> list[float]:
    """MB a stream, worst of both states."""
    found = []
    for _ in range(plan.pick(full=3, quick=1)):
        with ExitStack() as started:
            stack = started.enter_context(product.stack())
            if stack.postgres_pid is None:
                raise CannotMeasure("PostgreSQL must be ours to stop it: unset DATABASE_URL")
            tenant = product.seed(stack, quotas=QUOTAS)
            # A stream that reached its age would be asked to go in the middle of it.
            watched = started.enter_context(product.watched(stack, upload_stream_age_s="59"))
            server = watched.server
            command = [sys.executable, "-m", "bench.servers.stalled_uploads", server.address]
            client, _ = started.enter_context(
                running([*command, tenant.api_keys[Role.ADMIN]], "stalled uploads")
            )
            ask(client, "open 2")  # pools, statements and the first streams are not the question
            ask(client, "close")
            before = rss_mb([server.pid])
            with Sampler(server.pid) as sampled:
                ask(client, f"open {STREAMS}")
                time.sleep(SETTLE_S)
                with _standing_still(stack):
                    ask(client, "push")
            found.append((sampled.peak_rss_mb - before) / STREAMS)
    return found


@contextmanager
def _standing_still(stack: Stack) -> Iterator[None]:
    assert stack.postgres_pid is not None
    stopped = family([stack.postgres_pid])
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)


# ---- Growth with the file ----


def growth(plan: Plan) -> list[float]:
    rows = plan.pick(full=3_000_000, quick=300_000)
    with ExitStack() as started:
        stack = started.enter_context(product.stack())
        tenant = product.seed(stack, quotas=QUOTAS)
        server = started.enter_context(product.watched(stack)).server
        worker = started.enter_context(product.server(stack, "bench.servers.worker"))
        channel = started.enter_context(grpc.insecure_channel(server.address))
        metadata = (("authorization", f"Bearer {tenant.api_keys[Role.ADMIN]}"),)
        imported = _Importer(ImportServiceStub(channel), metadata)
        pids = (server.pid, worker.pid)
        small = _peak_mb(pids, lambda: imported.file(SMALL_ROWS, "s"))
        large = _peak_mb(pids, lambda: imported.file(rows, "l"))
    return [large - small]


def _peak_mb(pids: tuple[int, int], work: Callable[[], None]) -> float:
    with Sampler(*pids) as sampled:
        work()
    return sampled.peak_rss_mb


class _Importer:
    """A plain caller of SubmitCsv that makes its rows as it goes."""

    def __init__(self, stub: ImportServiceStub, metadata: tuple[tuple[str, str], ...]) -> None:
        self._stub = stub
        self._metadata = metadata

    def file(self, rows: int, prefix: str) -> None:
        reply = self._stub.SubmitCsv(self._frames(rows, prefix), metadata=self._metadata)
        watched = pb.WatchImportRequest(import_id=getattr(reply, "import").import_id)
        is_going = True
        while is_going:
            for change in self._stub.WatchImport(watched, metadata=self._metadata):
                found, is_going = getattr(change, "import"), change.go_away
        if found.state != pb.IMPORT_STATE_SUCCEEDED or found.counters.created != rows:
            raise CannotMeasure(f"the import of {rows} rows ended {found.state}")

    def _frames(self, rows: int, prefix: str) -> Iterator[pb.SubmitCsvRequest]:
        yield pb.SubmitCsvRequest(open=pb.SubmitCsvOpen(spec=pb.ImportSpec()))
        waiting, size = [HEADER], 0
        for i in range(rows):
            row = b"%s-%08d,Given,Family,m%d@example.org,gold\n" % (prefix.encode(), i, i)
            waiting.append(row)
            size += len(row)
            if size >= CHUNK_BYTES:
                yield pb.SubmitCsvRequest(data=b"".join(waiting))
                waiting, size = [], 0
        if waiting:
            yield pb.SubmitCsvRequest(data=b"".join(waiting))
