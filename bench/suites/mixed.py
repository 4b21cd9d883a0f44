"""2,000 validations a second while a large import runs: their p99 beside an idle machine's."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from bench import openloop, product
from bench.alternate import ratios
from bench.figures import Figure, figure
from bench.importing import QUOTAS, Bare, Importer, roster
from bench.product import Tenant
from bench.registry import CannotMeasure, Plan
from trunkline.api.members.v1 import members_service_pb2 as pb
from trunkline_server.rpc.caller import Role

NAME = "mixed"
PATH = "/trunkline.api.members.v1.MemberService/ValidateMember"
READS_PER_S = 2_000
MEMBERS = 20_000
NUMBERS = 5_000
IDLE_S = 6.0
SERVED_MIN = 0.999


def run(plan: Plan) -> Iterator[Figure]:
    rows = plan.pick(full=1_000_000, quick=300_000)
    read, large = roster(MEMBERS), roster(rows)
    idle, loaded, speed = [], [], []
    with ExitStack() as started:
        stack = started.enter_context(product.stack())
        reader = product.seed(stack, quotas=QUOTAS)
        sender = product.seed(stack, slug="bench-import", quotas=QUOTAS)
        server = started.enter_context(product.watched(stack)).server
        started.enter_context(product.server(stack, "bench.servers.worker"))
        importer = Importer(server.address, sender)
        started.callback(importer.close)
        bare = Bare(stack)
        for _ in range(plan.pick(full=5, quick=2)):
            bare.clear()
            first = Importer(server.address, reader)
            first.seconds(read)
            first.close()
            _reads(server.address, reader, 4.0, served_min=0.0)  # fills caches
            idle.append(_reads(server.address, reader, IDLE_S))
            with ThreadPoolExecutor(1) as thread:
                importing = thread.submit(importer.seconds, large)
                loaded.append(_reads_while(server.address, reader, importing.done))
                speed.append(rows / importing.result())
    yield figure(NAME, "read_p99_to_idle", ratios(loaded, idle))
    yield figure(NAME, "idle_p99_ms", idle, unit="ms", better="lower")
    yield figure(NAME, "loaded_p99_ms", loaded, unit="ms", better="lower")
    yield figure(NAME, "import_per_s", speed, unit="rows/s")


def _reads_while(address: str, tenant: Tenant, is_over: Callable[[], bool]) -> float:
    """The worst of the windows that lie within the import."""
    worst = 0.0
    while not is_over():
        found = _reads(address, tenant, 3.0)
        if not is_over() or not worst:
            worst = max(worst, found)
    return worst


def _reads(address: str, tenant: Tenant, seconds: float, served_min: float = SERVED_MIN) -> float:
    rng = random.Random(20)
    requests = [
        pb.ValidateMemberRequest(member_number=f"M{rng.randrange(MEMBERS):08}")
        .SerializeToString()
        .hex()
        for _ in range(NUMBERS)
    ]
    given = {
        "address": address,
        "path": PATH,
        "requests": requests,
        "metadata": tenant.bearer(Role.ADMIN),
        "channels": 4,
    }
    outcomes = openloop.run(
        "bench.targets:several", given, openloop.Arrivals(READS_PER_S, seconds, processes=2)
    )
    served = outcomes.counts["ok"] / outcomes.counts.total()
    if served < served_min or outcomes.unfinished:
        raise CannotMeasure(f"reads failed: {outcomes.counts}, {outcomes.unfinished} unanswered")
    return outcomes.of("ok").quantile(0.99) * 1000
