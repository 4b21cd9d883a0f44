"""Calls per CPU-second of a server, the figure to compare servers by."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bench import load
from bench.process import Server
from bench.sampler import cpu_s


def side(server: Server, call: load.Call, *, calls: int) -> Callable[[], float]:
    """One side of an alternating run."""
    return lambda: calls_per_cpu_s(server.address, [server.pid], call, calls=calls)


def calls_per_cpu_s(address: str, pids: Sequence[int], call: load.Call, *, calls: int) -> float:
    before = cpu_s(pids)
    outcome = load.run(address, call, calls=calls)
    return outcome.calls / (cpu_s(pids) - before)
