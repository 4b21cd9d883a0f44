"""CPU microseconds per call of each step of a wrapper, and of an interceptor instead of one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

from bench import contract
from bench.alternate import alternate
from bench.figures import Figure, figure
from bench.per_cpu import side
from bench.process import python_server
from bench.registry import Plan
from bench.servers.steps import INTERCEPTORS, PARSERS, WRAPPERS

NAME = "wrapper_steps"
TIMES = 8
CALLS = 4_000


def run(plan: Plan) -> Iterator[Figure]:
    rounds = plan.pick(full=15, quick=5)
    yield from _costs([*PARSERS], times=1, rounds=rounds)
    yield from _costs([*INTERCEPTORS, *WRAPPERS], times=TIMES, rounds=rounds)


def _costs(steps: list[str], *, times: int, rounds: int) -> Iterator[Figure]:
    """The steps one by one beside a bare handler, both idle while the other is measured."""
    with ExitStack() as servers:
        bare = servers.enter_context(python_server("bench.servers.steps", "bare", "1"))
        bare_side = side(bare, contract.echo_call(), calls=CALLS)
        for step in steps:
            with python_server("bench.servers.steps", step, str(times)) as server:
                sides = {"bare": bare_side, step: side(server, contract.echo_call(), calls=CALLS)}
                alternate(sides, rounds=1)
                values = alternate(sides, rounds=rounds)
            costs = [
                (1e6 / with_step - 1e6 / without) / times
                for with_step, without in zip(values[step], values["bare"], strict=True)
            ]
            yield figure(NAME, f"{step}_us", costs, unit="us", better="lower")
