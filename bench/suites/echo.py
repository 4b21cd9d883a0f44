"""The wrapper with identity, policy, limits, metrics and 1 % tracing beside bare grpc.aio."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

from bench import contract, product
from bench.alternate import alternate, ratios
from bench.figures import Figure, figure
from bench.per_cpu import side
from bench.process import python_server
from bench.registry import Plan

NAME = "echo"
CALLS = 3_000
# A client of ours always sends its deadline; without one the wrapper sets a timer of its own.
DEADLINE = {"grpc-timeout": "5S"}


def run(plan: Plan) -> Iterator[Figure]:
    with ExitStack() as started:
        stack = started.enter_context(product.stack())
        credential = product.seed(stack).bearer()
        collector = started.enter_context(python_server("bench.servers.collector"))
        wrapped = started.enter_context(
            product.server(
                stack,
                "bench.servers.product",
                otlp_endpoint=f"http://{collector.address}",
                trace_ratio="0.01",
            )
        )
        bare = started.enter_context(python_server("bench.servers.bare", "registered", "1"))
        call = contract.echo_call({**credential, **DEADLINE})
        open_ended = contract.echo_call(credential)
        product.greet(wrapped, call)
        sides = {
            "bare": side(bare, call, calls=CALLS),
            "wrapper": side(wrapped, call, calls=CALLS),
            "bare_open_ended": side(bare, open_ended, calls=CALLS),
            "wrapper_open_ended": side(wrapped, open_ended, calls=CALLS),
        }
        alternate(sides, rounds=2)
        values = alternate(sides, rounds=plan.pick(full=31, quick=11))
    yield figure(NAME, "wrapper_to_bare", ratios(values["wrapper"], values["bare"]))
    yield figure(
        NAME,
        "wrapper_to_bare_without_deadline",
        ratios(values["wrapper_open_ended"], values["bare_open_ended"]),
        unit="ratio",
    )
    for name in ("bare", "wrapper"):
        yield figure(NAME, f"{name}_per_cpu_s", values[name], unit="calls/s")
