"""The heart: a thread with a connection of its own that keeps leases alive.

It beats on while the event loop is blocked by honest work, and stops vouching for a loop or a job
that has shown no sign of life for too long.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from uuid import UUID

import asyncpg

from trunkline_server.db import CONNECT_TIMEOUT_S, RECONNECT, session_settings
from trunkline_server.jobs.lease import Beat, Lease, renew
from trunkline_server.jobs.queue import CHANNEL
from trunkline_server.jobs.timings import Timings

RECONNECT_DELAY_S = 0.5
JOIN_TIMEOUT_S = 10.0

_PING = "SELECT 1"

_log = logging.getLogger(__name__)


class Heart:
    def __init__(self, dsn: str, role: str, timings: Timings, on_hint: Callable[[], None]) -> None:
        self._dsn = dsn
        self._settings = session_settings(role, timings.heartbeat_s, "trunkline-heart")
        self._timings = timings
        self._on_hint = on_hint
        self._leases: dict[UUID, Lease] = {}
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="trunkline-heart", daemon=True)
        self._owner_loop = asyncio.get_running_loop()
        self._turned_at = time.monotonic()
        self._stalled = False
        self._stopping = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake: asyncio.Event | None = None
        self._ticker: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._turn()
        self._thread.start()

    async def stop(self) -> None:
        if self._ticker is not None:
            self._ticker.cancel()
        self._stopping.set()
        self._rouse()
        await asyncio.to_thread(self._thread.join, JOIN_TIMEOUT_S)

    def watch(self, lease: Lease) -> None:
        with self._lock:
            self._leases[lease.job_id] = lease

    def forget(self, lease: Lease) -> None:
        with self._lock:
            self._leases.pop(lease.job_id, None)

    def _turn(self) -> None:
        """Runs in the owner's loop; that it runs is the proof of life."""
        self._turned_at = time.monotonic()
        pause_s = min(1.0, self._timings.heartbeat_s / 2)
        self._ticker = self._owner_loop.call_later(pause_s, self._turn)

    def _rouse(self) -> None:
        if self._loop is None or self._wake is None:
            return
        try:
            self._loop.call_soon_threadsafe(self._wake.set)
        except RuntimeError:  # closed already
            return

    # ---- in the thread ----

    def _run(self) -> None:
        # Not the owner's policy: uvloop would do, but nothing here is worth two of them.
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
            runner.run(self._live())

    async def _live(self) -> None:
        self._wake = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        while not self._stopping.is_set():
            try:
                await self._connected()
            except RECONNECT as error:
                _log.warning("heartbeat failed", extra={"reason": type(error).__name__})
                self._drop_expired()
                await self._pause(RECONNECT_DELAY_S)

    async def _connected(self) -> None:
        connection: asyncpg.Connection = await asyncpg.connect(
            self._dsn, timeout=CONNECT_TIMEOUT_S, server_settings=self._settings
        )
        try:
            await connection.add_listener(CHANNEL, self._hint)
            while not self._stopping.is_set():
                held_up = await self._beat(connection)
                # A job that was locked is asked again soon, or its lease would run out.
                pause_s = self._timings.heartbeat_s
                await self._pause(pause_s / 10 if held_up else pause_s)
        finally:
            connection.terminate()

    async def _beat(self, connection: asyncpg.Connection) -> bool:
        alive = self._vouched()
        if not alive:
            # Also finds out that the connection, and with it LISTEN, is gone.
            await connection.execute(_PING, timeout=self._timings.heartbeat_s)
            return False
        asked_at = time.monotonic()
        lease_s, timeout_s = self._timings.lease_s, self._timings.heartbeat_s
        beats = await renew(connection, alive, lease_s, timeout_s)
        for lease in alive:
            self._apply(lease, beats[lease.job_id], asked_at)
        return any(beat.held and not beat.renewed for beat in beats.values())

    def _vouched(self) -> list[Lease]:
        self._drop_expired()
        with self._lock:
            leases = list(self._leases.values())
        stalled = time.monotonic() - self._turned_at > self._timings.loop_stall_s
        if stalled and leases and not self._stalled:
            _log.error("event loop stands still, leases are let go", extra={"count": len(leases)})
        self._stalled = stalled
        if stalled:
            return []
        for lease in leases:
            if lease.stuck:
                _log.error("job is stuck", extra={"kind": lease.kind, "job_id": lease.job_id})
                self._lose(lease)
        return [lease for lease in leases if not lease.stuck]

    def _drop_expired(self) -> None:
        with self._lock:
            expired = [lease for lease in self._leases.values() if lease.expired]
        for lease in expired:
            self._lose(lease)

    def _apply(self, lease: Lease, beat: Beat, asked_at: float) -> None:
        if beat.renewed:
            lease.renewed(asked_at)
        elif not beat.held:
            self._lose(lease)
            return
        lease.note(cancel_requested=beat.cancel_requested, others_wait=beat.others_wait)

    def _lose(self, lease: Lease) -> None:
        self.forget(lease)
        lease.lose()

    def _hint(self, *_: object) -> None:
        try:
            self._owner_loop.call_soon_threadsafe(self._on_hint)
        except RuntimeError:  # closed already
            return

    async def _pause(self, seconds: float) -> None:
        assert self._wake is not None
        if self._stopping.is_set():
            return
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return
