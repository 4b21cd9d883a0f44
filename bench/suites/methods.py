"""60 registered methods against 1, on bare grpc.aio: calls per server CPU-second."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack

from bench import contract
from bench.alternate import alternate, ratios
from bench.figures import Figure, figure
from bench.per_cpu import side
from bench.process import python_server
from bench.registry import Plan

NAME = "methods"
CALLS = 3_000
# Servers on another interpreter, to try another grpcio: BENCH_PYTHON=/elsewhere/bin/python.
PYTHON = os.environ.get("BENCH_PYTHON", sys.executable)
# How the methods get into the server: as generated code registers them, or all in one
# GenericRpcHandler with one dictionary.
SIDES = {
    "one": ("registered", "1"),
    "sixty": ("registered", "60"),
    "sixty_generic": ("generic", "60"),
}


def run(plan: Plan) -> Iterator[Figure]:
    with ExitStack() as servers:
        sides = {
            name: side(
                servers.enter_context(
                    python_server("bench.servers.bare", *args, name=name, python=PYTHON)
                ),
                contract.echo_call(),
                calls=CALLS,
            )
            for name, args in SIDES.items()
        }
        alternate(sides, rounds=1)
        values = alternate(sides, rounds=plan.pick(full=41, quick=15))
    yield figure(NAME, "sixty_to_one", ratios(values["sixty"], values["one"]))
    yield figure(
        NAME,
        "sixty_generic_to_one",
        ratios(values["sixty_generic"], values["one"]),
        unit="ratio",
    )
    for name in SIDES:
        yield figure(NAME, f"{name}_per_cpu_s", values[name], unit="calls/s")
