"""Runs jobs: claims leases, hands them to their handlers, and settles how each turn ended."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import assert_never

import asyncpg

from trunkline_server.db import GONE, Connection, Database
from trunkline_server.errors import AppError
from trunkline_server.ids import uuid7
from trunkline_server.jobs.heart import Heart
from trunkline_server.jobs.lease import Lease, LeaseLost, claim, finish, hand_back, reap, retry
from trunkline_server.jobs.outcome import Dead, Done, Failed, Outcome, Retry, Yield
from trunkline_server.jobs.queue import purge
from trunkline_server.jobs.schedule import Schedule, fire
from trunkline_server.jobs.timings import Timings

SLOTS = 4
SETTLE_RETRY_S = 0.5

Handler = Callable[[Lease], Awaitable[Outcome]]

_TROUBLE: tuple[type[BaseException], ...] = (
    asyncpg.PostgresError,
    AppError,
    TimeoutError,
    *GONE,
)

_log = logging.getLogger(__name__)


class Runner:
    """`run()` until `stop()`; a stop hands every lease back, at a batch's end or after a grace."""

    def __init__(
        self,
        db: Database,
        dsn: str,
        handlers: Mapping[str, Handler],
        *,
        schedules: Sequence[Schedule] = (),
        slots: int = SLOTS,
        role: str = "trunkline_worker",
        timings: Timings | None = None,
    ) -> None:
        unknown = {s.task for s in schedules} - set(handlers)
        if unknown:
            raise ValueError(f"schedules without a handler: {sorted(unknown)}")
        self._db = db
        self._dsn = dsn
        self._handlers = dict(handlers)
        self._kinds = sorted(handlers)
        self._schedules = tuple(schedules)
        self._role = role
        self._timings = timings or Timings()
        self._slots = asyncio.Semaphore(slots)
        self._work: dict[asyncio.Task[None], Lease] = {}
        self._hint = asyncio.Event()
        self._stopping = asyncio.Event()
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{uuid7().hex[-8:]}"
        # (kind, how its turn ended) -> count, for metrics.
        self.ended: Counter[tuple[str, str]] = Counter()

    @property
    def running(self) -> int:
        return len(self._work)

    def stop(self) -> None:
        """Safe to call from a signal handler of the loop, and more than once."""
        self._stopping.set()
        self._hint.set()
        for lease in self._work.values():
            lease.drain()

    async def run(self) -> None:
        self._heart = Heart(self._dsn, self._role, self._timings, self._hint.set)
        self._heart.start()
        upkeep = asyncio.create_task(self._keep_up())
        try:
            await self._claim_until_stopped()
            await self._drain()
        finally:
            upkeep.cancel()
            await asyncio.gather(upkeep, return_exceptions=True)
            await self._heart.stop()

    async def _claim_until_stopped(self) -> None:
        while not self._stopping.is_set():
            await self._slots.acquire()
            if self._stopping.is_set():
                return
            self._hint.clear()
            lease = await self._claimed()
            if lease is None:
                self._slots.release()
                await self._idle()
            else:
                self._start(lease)

    async def _claimed(self) -> Lease | None:
        try:
            async with self._db.system_tx() as tx:
                return await claim(tx, self._kinds, self.owner, self._timings)
        except asyncpg.LockNotAvailableError:
            return None
        except _TROUBLE as error:
            _log.warning("cannot claim", extra={"reason": type(error).__name__})
            return None

    async def _idle(self) -> None:
        # Jitter, or the workers would all ask in the same instant.
        pause_s = self._timings.poll_s * random.uniform(0.5, 1.0)
        try:
            async with asyncio.timeout(pause_s):
                await self._hint.wait()
        except TimeoutError:
            return

    def _start(self, lease: Lease) -> None:
        self._heart.watch(lease)
        task = asyncio.create_task(self._turn(lease), name=f"job {lease.kind}")
        self._work[task] = lease
        task.add_done_callback(self._done)
        if self._stopping.is_set():
            lease.drain()

    def _done(self, task: asyncio.Task[None]) -> None:
        lease = self._work.pop(task)
        self._heart.forget(lease)
        self._slots.release()
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a turn ended badly", extra={"kind": lease.kind}, exc_info=error)

    async def _turn(self, lease: Lease) -> None:
        outcome = await self._outcome(lease)
        if outcome is None or lease.completed:
            ended = "LOST" if outcome is None else "SUCCEEDED"
        else:
            ended = await self._settled(lease, outcome)
        self.ended[lease.kind, ended] += 1

    async def _outcome(self, lease: Lease) -> Outcome | None:
        """None when the lease is lost: there is nothing left to say about the job."""
        work = asyncio.ensure_future(self._handlers[lease.kind](lease))
        lease.bind(work)
        await asyncio.wait({work})
        if lease.completed:
            return Done()
        if lease.lost.is_set():
            if not work.cancelled():
                work.exception()  # seen; another holder will meet it if it is the job's own
            return None
        if work.cancelled():
            return Yield()
        error = work.exception()
        if error is None:
            return work.result()
        return self._after_error(lease, error)

    def _after_error(self, lease: Lease, error: BaseException) -> Outcome | None:
        if isinstance(error, LeaseLost):
            return None
        _log.error(
            "a job failed",
            extra={"kind": lease.kind, "job_id": lease.job_id, "attempt": lease.attempt},
            exc_info=error,
        )
        # The class only: a text may hold what a row held. An outage costs one attempt a job, for
        # nothing is claimed while it lasts.
        return Retry(error.reason_name if isinstance(error, AppError) else type(error).__name__)

    async def _settled(self, lease: Lease, outcome: Outcome) -> str:
        while not lease.lost.is_set():
            try:
                async with self._db.system_tx() as tx:
                    return await self._settle(tx, lease, outcome)
            except LeaseLost:
                return "LOST"
            except _TROUBLE as error:
                _log.warning("cannot settle", extra={"reason": type(error).__name__})
                await asyncio.sleep(SETTLE_RETRY_S)
        return "LOST"

    async def _settle(self, tx: Connection, lease: Lease, outcome: Outcome) -> str:
        match outcome:
            case Done():
                await finish(tx, lease, "SUCCEEDED", "")
                return "SUCCEEDED"
            case Failed(reason):
                await finish(tx, lease, "FAILED", reason)
                return "FAILED"
            case Dead(reason):
                await finish(tx, lease, "DEAD", reason)
                return "DEAD"
            case Yield(after_s):
                return await hand_back(tx, lease, after_s)
            case Retry(reason, after_s):
                return await retry(tx, lease, reason, after_s, self._timings)
            case _:
                assert_never(outcome)

    async def _drain(self) -> None:
        if not self._work:
            return
        for lease in self._work.values():
            lease.drain()
        _, late = await asyncio.wait(set(self._work), timeout=self._timings.grace_s)
        for task in late:
            self._work[task].interrupt()
        if late:
            await asyncio.wait(late, timeout=self._timings.lease_s)

    async def _keep_up(self) -> None:
        """Ticks, expired leases, old jobs: every worker does it, the database lets one do each."""
        purge_at = time.monotonic() + self._timings.purge_every_s * random.random()
        while True:
            try:
                await self._upkeep()
                if time.monotonic() >= purge_at:
                    purge_at = time.monotonic() + self._timings.purge_every_s
                    async with self._db.system_tx() as tx:
                        await purge(tx)
            except _TROUBLE as error:
                _log.warning("cannot keep up", extra={"reason": type(error).__name__})
            await asyncio.sleep(self._timings.poll_s * random.uniform(0.5, 1.0))

    async def _upkeep(self) -> None:
        async with self._db.system_tx() as tx:
            reaped = await reap(tx, self._timings)
        for row in reaped:
            _log.warning(
                "a lease expired",
                extra={"kind": row["kind"], "job_id": row["job_id"], "state": row["state"]},
            )
        if reaped:
            self._hint.set()
        async with self._db.system_tx() as tx:
            await fire(tx, self._schedules)
