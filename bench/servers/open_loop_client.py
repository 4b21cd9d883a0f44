"""One process of the open-loop driver; see bench/openloop.py for what it is told and answers."""

from __future__ import annotations

import asyncio
import importlib
import json
import random
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import uvloop

from bench.histogram import Histogram
from bench.openloop import DRAIN_S

Call = Callable[[int], Awaitable[str]]


def _target(name: str) -> Callable[[dict[str, Any]], AbstractAsyncContextManager[Call]]:
    module, _, function = name.partition(":")
    found: Callable[[dict[str, Any]], AbstractAsyncContextManager[Call]]
    found = getattr(importlib.import_module(module), function)
    return found


def _schedule(spec: dict[str, Any]) -> Iterator[float]:
    """Seconds after the start, one per arrival."""
    gap_s = 1 / spec["per_s"]
    if not spec["random"]:
        # Processes share the load: their arrivals interleave instead of coinciding.
        first_s = gap_s * spec["number"] / spec["processes"]
        yield from (first_s + gap_s * n for n in range(round(spec["seconds"] * spec["per_s"])))
        return
    dice = random.Random(spec["number"])
    at = dice.expovariate(spec["per_s"])
    while at < spec["seconds"]:
        yield at
        at += dice.expovariate(spec["per_s"])


class _Driver:
    def __init__(self, call: Call) -> None:
        self._call = call
        self._running: set[asyncio.Task[None]] = set()
        self.latency: dict[str, Histogram] = {}
        self.lateness = Histogram()

    async def drive(self, spec: dict[str, Any], start_at: float) -> dict[str, Any]:
        step = spec["processes"]
        for index, after_s in enumerate(_schedule(spec)):
            due = start_at + after_s
            wait_s = due - time.monotonic()
            # Behind schedule: let answers in, too, or the driver starves them.
            await asyncio.sleep(max(wait_s, 0))
            self.lateness.add(max(time.monotonic() - due, 0))
            task = asyncio.create_task(self._one(spec["number"] + index * step, due))
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        unfinished = await self._drain()
        return {
            "latency": {label: dict(each.buckets) for label, each in self.latency.items()},
            "lateness": dict(self.lateness.buckets),
            "unfinished": unfinished,
            "seconds": time.monotonic() - start_at,
        }

    async def _one(self, number: int, due: float) -> None:
        label = await self._call(number)
        self.latency.setdefault(label, Histogram()).add(time.monotonic() - due)

    async def _drain(self) -> int:
        if not self._running:
            return 0
        done, late = await asyncio.wait(set(self._running), timeout=DRAIN_S)
        for task in late:
            task.cancel()
        for task in done:
            task.result()  # a failed call is a label; an exception is a defect of the bench
        return len(late)


async def _run(spec: dict[str, Any]) -> dict[str, Any]:
    async with _target(spec["target"])(spec["given"]) as call:
        print("ready", flush=True)
        start_at = float(await asyncio.to_thread(sys.stdin.readline))
        return await _Driver(call).drive(spec, start_at)


if __name__ == "__main__":
    print(json.dumps(uvloop.run(_run(json.loads(sys.argv[1])))), flush=True)
