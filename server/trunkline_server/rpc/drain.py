"""How a process ends without failing anyone: each step bounded, a hard exit behind them all."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import grpc

NOTICE_S = 5.0  # load balancers ask for health every few seconds
GRACE_S = 25.0
UNWIND_S = 2.0  # what cancelled handlers get for their `finally`
STEP_TIMEOUT_S = 3.0
HARD_EXIT_MARGIN_S = 2.0

Step = tuple[str, Callable[[], Awaitable[None]]]

_log = logging.getLogger(__name__)


class Health(Protocol):
    def drain(self) -> None: ...
    def end_watches(self) -> None: ...


class Inflight(Protocol):
    count: int

    async def wait_idle(self) -> None: ...


class Drain:
    """Long streams look at `draining`, or register to be told, and say GoAway in-band."""

    def __init__(
        self,
        *,
        notice_s: float = NOTICE_S,
        grace_s: float = GRACE_S,
        hard_exit: Callable[[int], None] = os._exit,
    ) -> None:
        self.draining = asyncio.Event()
        self._notice_s = notice_s
        self._grace_s = grace_s
        self._hard_exit = hard_exit
        self._told: dict[object, Callable[[], None]] = {}

    def on_goaway(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Have `callback` called once when streams should end; answers how to take it back."""
        if self.draining.is_set():
            callback()
            return lambda: None
        key = object()
        self._told[key] = callback
        return lambda: self._told.pop(key, None) and None

    async def serve_out(
        self,
        *,
        health: Health,
        server: grpc.aio.Server,
        inflight: Inflight,
        closers: Sequence[Step],
    ) -> bool:
        """Drain a server. True when every accepted call was answered."""
        timer = self._arm(len(closers))
        health.drain()
        await asyncio.sleep(self._notice_s)
        self._goaway()
        health.end_watches()
        _log.info("draining", extra={"in_flight": inflight.count})
        drained = await self._stop(server, inflight)
        await self._close(closers)
        timer.cancel()
        return drained

    async def work_out(self, closers: Sequence[Step]) -> None:
        """Drain a worker: its jobs see `draining` and yield, then the closers run."""
        timer = self._arm(len(closers))
        self._goaway()
        await self._close(closers)
        timer.cancel()

    def _goaway(self) -> None:
        self.draining.set()
        told, self._told = self._told, {}
        for callback in told.values():
            try:
                callback()
            except Exception:
                _log.exception("stream could not be told to end")

    async def _stop(self, server: grpc.aio.Server, inflight: Inflight) -> bool:
        deadline = asyncio.get_running_loop().time() + self._grace_s
        await server.stop(self._grace_s)
        # grpc takes a call for ended once its status is out or the client gave up, though the
        # handler may still be at work. Pools stay open until our own count is zero.
        now = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(max(deadline - now, UNWIND_S)):
                await inflight.wait_idle()
        except TimeoutError:
            _log.error("calls were cut off", extra={"in_flight": inflight.count})
            return False
        return True

    async def _close(self, closers: Sequence[Step]) -> None:
        for name, close in closers:
            try:
                async with asyncio.timeout(STEP_TIMEOUT_S):
                    await close()
            except Exception:
                _log.exception("could not be closed in order", extra={"step": name})

    def _arm(self, steps: int) -> threading.Timer:
        """A thread, because a loop that hangs cannot end itself."""
        longest_s = (
            self._notice_s + self._grace_s + UNWIND_S + steps * STEP_TIMEOUT_S + HARD_EXIT_MARGIN_S
        )
        timer = threading.Timer(longest_s, self._hard_exit, (1,))
        timer.daemon = True
        timer.start()
        return timer
