"""How late an event loop runs what is due, sampled every 5 ms inside the process measured."""

from __future__ import annotations

import asyncio
import time

from bench.histogram import Histogram

INTERVAL_S = 0.005


class LagProbe:
    """Runs in the loop it measures, between `start` and `stop`."""

    def __init__(self) -> None:
        self._lags = Histogram()
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self.stop()
        self._lags = Histogram()
        self._next()

    def stop(self) -> Histogram:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return self._lags

    def _next(self) -> None:
        # Not the loop's own clock, which uvloop advances only once a turn, in milliseconds.
        due = time.perf_counter() + INTERVAL_S
        self._timer = asyncio.get_running_loop().call_later(INTERVAL_S, self._tick, due)

    def _tick(self, due: float) -> None:
        self._lags.add(max(time.perf_counter() - due, 0.0))
        self._next()
