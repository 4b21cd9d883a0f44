"""Open-loop load: arrivals on a schedule, latency counted from the scheduled time.

A closed loop waits for a slow server and so measures it when it is not slow; here the next call
leaves when it is due, in processes of the driver's own. What is called is named, because it must
be importable in those processes: `module:function`, an async context manager that takes a mapping
and gives `async def call(number) -> outcome`, `outcome` being a short label such as `ok`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import IO, Any

from bench.histogram import Histogram
from bench.process import ROOT, StartFailed, stop

LEAD_S = 0.2  # between the word to start and the first arrival
DRAIN_S = 30
LATE_MAX_S = 0.01


@dataclass(frozen=True, slots=True)
class Arrivals:
    per_s: float
    seconds: float
    processes: int = 1
    random: bool = True  # Poisson arrivals, as from many independent callers; else evenly spaced


@dataclass(slots=True)
class Outcomes:
    """Latency by outcome, and how late the driver itself was."""

    latency: dict[str, Histogram] = field(default_factory=dict)
    lateness: Histogram = field(default_factory=Histogram)
    unfinished: int = 0
    seconds: float = 0.0

    @property
    def counts(self) -> Counter[str]:
        return Counter({label: each.count for label, each in self.latency.items()})

    def of(self, label: str) -> Histogram:
        return self.latency.get(label, Histogram())

    @property
    def driver_kept_up(self) -> bool:
        """False: the figures tell more of the load generator than of the server."""
        return self.lateness.quantile(0.99) <= LATE_MAX_S

    def add(self, read: Mapping[str, Any]) -> None:
        for label, buckets in read["latency"].items():
            self.latency.setdefault(label, Histogram()).merge(_histogram(buckets))
        self.lateness.merge(_histogram(read["lateness"]))
        self.unfinished += read["unfinished"]
        self.seconds = max(self.seconds, read["seconds"])


def run(target: str, given: Mapping[str, Any], arrivals: Arrivals) -> Outcomes:
    """Drive the target until the schedule ends and what is under way has been answered."""
    clients = [_start(target, given, arrivals, number) for number in range(arrivals.processes)]
    try:
        for client in clients:
            if _out(client).readline().strip() != "ready":
                raise StartFailed(f"a load process for {target} did not start")
        start_at = time.monotonic() + LEAD_S
        for client in clients:
            assert client.stdin is not None
            print(start_at, file=client.stdin, flush=True)
        outcomes = Outcomes()
        for client in clients:
            outcomes.add(json.loads(_out(client).readline()))
        return outcomes
    finally:
        for client in clients:
            stop(client)


def _start(
    target: str, given: Mapping[str, Any], arrivals: Arrivals, number: int
) -> subprocess.Popen[str]:
    spec = {
        "target": target,
        "given": dict(given),
        "per_s": arrivals.per_s / arrivals.processes,
        "seconds": arrivals.seconds,
        "random": arrivals.random,
        "number": number,
        "processes": arrivals.processes,
    }
    return subprocess.Popen(
        [sys.executable, "-m", "bench.servers.open_loop_client", json.dumps(spec)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _out(client: subprocess.Popen[str]) -> IO[str]:
    assert client.stdout is not None
    return client.stdout


def _histogram(read: Mapping[str, int]) -> Histogram:
    return Histogram({int(bucket): count for bucket, count in read.items()})
