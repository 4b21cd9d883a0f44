"""grpc.health.v1: liveness under the empty name, readiness under each service's name.

Readiness follows PostgreSQL and the drain; liveness does neither, or a database that is away
would have every process restarted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import asyncpg
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

PROBE_INTERVAL_S = 0.5
PROBE_TIMEOUT_S = 1.0
WATCHES_MAX = 1_000  # open to everyone, so bounded

_PING = "SELECT 1"
_SERVING: Final = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING: Final = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN: Final = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
_LIVENESS: Final = ""

Context = grpc.aio.ServicerContext[Any, Any]
Probe = Callable[[], Awaitable[None]]

_log = logging.getLogger(__name__)


class BreakerState(Protocol):
    @property
    def retry_after_s(self) -> float: ...


class PostgresProbe:
    """SELECT 1 on a connection of its own: a busy pool is load, not a failure of readiness."""

    def __init__(self, url: str, settings: Mapping[str, str] | None = None) -> None:
        self._url = url
        self._settings = dict(settings or {})
        self._connection: asyncpg.Connection[asyncpg.Record] | None = None

    async def __call__(self) -> None:
        try:
            if self._connection is None or self._connection.is_closed():
                self._connection = await asyncpg.connect(
                    self._url, timeout=PROBE_TIMEOUT_S, server_settings=self._settings
                )
            await self._connection.fetchval(_PING)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # untyped package
    """The servicer, and the background check that moves it.

    The servicer of grpcio-health-checking holds a lock while it writes to a watcher, so one
    watcher that does not read would hold up the news for all; this one keeps no lock.
    """

    def __init__(
        self,
        services: Sequence[str],
        *,
        probe: Probe,
        breaker: BreakerState | None = None,
        interval_s: float = PROBE_INTERVAL_S,
        timeout_s: float = PROBE_TIMEOUT_S,
    ) -> None:
        self._services = frozenset(services)
        self._probe = probe
        self._breaker = breaker
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._draining = False
        self._watches_end = False
        self._watches = 0
        self._reachable = False
        self._ready = False
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        return self._ready

    def add_to(self, server: grpc.aio.Server) -> None:
        health_pb2_grpc.add_HealthServicer_to_server(self, server)

    async def start(self) -> None:
        """Check once, so that the first answer is true, then go on in the background."""
        await self._check()
        self._task = asyncio.create_task(self._check_for_ever(), name="health")

    async def stop(self) -> None:
        if self._task:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def drain(self) -> None:
        """NOT_SERVING from now on; whoever balances load should look elsewhere."""
        self._draining = True
        self._settle()

    def end_watches(self) -> None:
        """End the Watch streams, which would hold up the server's stop for its whole grace."""
        self._watches_end = True
        self._tell()

    async def Check(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> health_pb2.HealthCheckResponse:
        status = self._status(request.service)
        if status == _UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "There is no such service.")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> None:
        if self._watches >= WATCHES_MAX:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "Too many watches.")
        self._watches += 1
        try:
            await self._follow(request.service, context)
        finally:
            self._watches -= 1
        await context.abort(grpc.StatusCode.UNAVAILABLE, "The server is going away.")

    async def _follow(self, service: str, context: Context) -> None:
        told = None
        while True:
            changed, status = self._changed, self._status(service)
            if status != told:
                await context.write(health_pb2.HealthCheckResponse(status=status))
                told = status
            if self._watches_end:
                return
            await changed.wait()

    def _status(self, service: str) -> health_pb2.HealthCheckResponse.ServingStatus:
        if service == _LIVENESS:
            return _SERVING
        if service not in self._services:
            return _UNKNOWN
        return _SERVING if self._ready else _NOT_SERVING

    async def _check_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            await self._check()

    async def _check(self) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._probe()
        except Exception:  # whatever the driver raises, the answer is the same
            self._reachable = False
        else:
            self._reachable = True
        self._settle()

    def _settle(self) -> None:
        # A breaker whose trial is due does not count: without calls nobody would make the trial.
        rests = self._breaker is not None and self._breaker.retry_after_s > 0
        ready = self._reachable and not rests and not self._draining
        if ready != self._ready:
            self._ready = ready
            # Lost readiness is news only where nobody asked for it.
            level = logging.INFO if ready or self._draining else logging.WARNING
            _log.log(level, "readiness changed", extra={"state": "ready" if ready else "not ready"})
            self._tell()

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
