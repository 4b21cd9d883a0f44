"""ValidateMember beside a bare typed echo, a miss beside a hit, and batches of 500."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack

from bench import contract, load, product, roster
from bench.alternate import alternate, ratios
from bench.figures import Figure, figure
from bench.per_cpu import side
from bench.process import ROOT, Server, python_server
from bench.registry import Plan
from bench.sampler import cpu_s
from trunkline.api.members.v1 import members_service_pb2 as pb
from trunkline_server.rpc.caller import Role

NAME = "validate"
SERVICE = "/trunkline.api.members.v1.MemberService"
CALLS = 3_000
BATCH_CALLS = 60
BATCH = 500
CLIENTS = 2
CONCURRENCY = 24
# A client of ours always sends its deadline; without one the wrapper sets a timer of its own.
DEADLINE = {"grpc-timeout": "5S"}
QUOTAS = {"cost_per_second": 100_000_000, "actor_cost_per_second": 100_000_000}


def run(plan: Plan) -> Iterator[Figure]:
    rounds = plan.pick(full=21, quick=7)
    with ExitStack() as started:
        stack = started.enter_context(product.stack())
        tenant = product.seed(stack, quotas=QUOTAS)
        calls = plan.pick(full=3_000, quick=2_000)
        roster.fill(stack.database_url, tenant.org_id, calls * (rounds + 3), indexed=False)
        collector = started.enter_context(python_server("bench.servers.collector"))
        server = started.enter_context(
            product.server(
                stack,
                "bench.servers.product",
                otlp_endpoint=f"http://{collector.address}",
                trace_ratio="0.01",
            )
        )
        bare = started.enter_context(python_server("bench.servers.bare", "registered", "1"))
        agent = {**tenant.bearer(), **DEADLINE}
        one = _one(agent)
        sides = {
            "bare": side(bare, contract.echo_call(agent), calls=CALLS),
            "warm": side(server, one, calls=CALLS),
        }
        alternate(sides, rounds=2)
        values = alternate(sides, rounds=rounds)
        # Not as an agent: the guard would take so many neighbours for a search.
        reads = _Reads(server, tenant.bearer(Role.ADMIN), calls)
        reads.warm()
        reading = alternate({"hit": reads.warm, "miss": reads.miss}, rounds=rounds)
        batch = _batch({**tenant.bearer(Role.SYSTEM), **DEADLINE})
        per_cpu_s = side(server, batch, calls=BATCH_CALLS)
        per_cpu_s()
        batches = [BATCH * per_cpu_s() for _ in range(rounds)]
    yield figure(NAME, "warm_to_bare_echo", ratios(values["warm"], values["bare"]))
    yield figure(NAME, "miss_to_warm", ratios(reading["miss"], reading["hit"]))
    yield figure(NAME, "batch_per_cpu_s", batches)
    for name, runs in (values | reading).items():
        yield figure(NAME, f"{name}_per_cpu_s", runs, unit="calls/s")


def _one(metadata: Mapping[str, str]) -> load.Call:
    asked = pb.ValidateMemberRequest(member_number="M-00000001")
    return load.Call(f"{SERVICE}/ValidateMember", asked.SerializeToString(), 100, metadata)


def _batch(metadata: Mapping[str, str]) -> load.Call:
    asked = pb.BatchValidateMembersRequest(
        queries=[pb.MemberQuery(member_number=f"M-{n:08d}") for n in range(1, BATCH + 1)]
    )
    return load.Call(
        f"{SERVICE}/BatchValidateMembers", asked.SerializeToString(), BATCH * 100, metadata
    )


class _Reads:
    """Both sides from the same clients: one asks for ten members again and again, one for all."""

    def __init__(self, server: Server, metadata: Mapping[str, str], calls: int) -> None:
        self._server = server
        self._metadata = metadata
        self._calls = calls
        self._next = 100  # the first ones are in memory

    def warm(self) -> float:
        return self._per_cpu_s(1, 10)

    def miss(self) -> float:
        first, self._next = self._next, self._next + self._calls
        return self._per_cpu_s(first, self._calls)

    def _per_cpu_s(self, first: int, count: int) -> float:
        before = cpu_s([self._server.pid])
        share = max(count // CLIENTS, 1)
        clients = [self._client(first + share * number, share) for number in range(CLIENTS)]
        for client in clients:
            if client.wait(timeout=120):
                raise load.LoadFailed("a client process failed")
        return self._calls / (cpu_s([self._server.pid]) - before)

    def _client(self, first: int, count: int) -> subprocess.Popen[str]:
        spec = {
            "address": self._server.address,
            "metadata": dict(self._metadata),
            "first": first,
            "count": count,
            "calls": self._calls // CLIENTS,
            "concurrency": CONCURRENCY,
        }
        return subprocess.Popen(
            [sys.executable, "-m", "bench.servers.validate_client", json.dumps(spec)],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            text=True,
        )
