"""ghz and our own open-loop driver on one bare server: do they see the same latency?"""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf.descriptor_pb2 import FileDescriptorSet

from bench import contract, ghz, openloop
from bench.alternate import alternate, ratios
from bench.figures import Figure, figure
from bench.process import Server, python_server
from bench.registry import Plan

NAME = "ghz_check"
PER_S = 400
QUANTILE = 50
_TEMPLATE = ghz.Template(
    f"{contract.SERVICE}/Echo", {"number": "A-{{.RequestNumber}}", "product": "motor", "on": 20250}
)


def run(plan: Plan) -> Iterator[Figure]:
    seconds = plan.pick(full=5, quick=2)
    ghz.binary()  # built, if need be, before anything is measured
    with python_server("bench.servers.bare", "registered", "1") as server:
        sides = {
            "own": lambda: _own_ms(server, seconds),
            "ghz": lambda: _ghz_ms(server, seconds),
        }
        alternate(sides, rounds=1)
        values = alternate(sides, rounds=plan.pick(full=7, quick=3))
    yield figure(NAME, "own_to_ghz_p50", ratios(values["own"], values["ghz"]), unit="ratio")
    for name, runs in values.items():
        yield figure(NAME, f"{name}_p50_ms", runs, unit="ms", better="lower")


def _own_ms(server: Server, seconds: int) -> float:
    call = contract.echo_call()
    given = {"address": server.address, "path": call.path, "request": call.request.hex()}
    arrivals = openloop.Arrivals(PER_S, seconds, random=False)
    outcomes = openloop.run("bench.targets:unary", {**given, "channels": 4}, arrivals)
    return outcomes.of("ok").quantile(QUANTILE / 100) * 1000


def _ghz_ms(server: Server, seconds: int) -> float:
    protoset = FileDescriptorSet(file=[contract.file_descriptor()]).SerializeToString()
    load = ghz.Load(calls=PER_S * seconds, per_s=PER_S)
    return ghz.run(server.address, protoset, _TEMPLATE, load).latency_s[QUANTILE] * 1000
