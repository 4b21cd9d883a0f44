"""A lease: the right to work on a job, until a time by the database's clock, in one epoch.

An expired lease is dead for good: it cannot be renewed, and nothing is written in its name.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

import asyncpg

from trunkline_server.db import Connection, Executor, Record
from trunkline_server.jobs.timings import Timings

REASON_CHARS_MAX = 500
REAP_BATCH = 100


class LeaseLost(Exception):
    """Somebody else may have the job: whatever was about to be written must not be."""


class Lease:
    """Methods that take a transaction belong in the transaction of the effect they protect."""

    def __init__(self, row: Record, claimed_at: float, timings: Timings) -> None:
        self.org_id: UUID = row["org_id"]
        self.job_id: UUID = row["job_id"]
        self.epoch: int = row["lease_epoch"]
        self.kind: str = row["kind"]
        self.subject_id: UUID | None = row["subject_id"]
        self.payload: Mapping[str, Any] = json.loads(row["payload"])
        self.saved: Mapping[str, Any] = json.loads(row["checkpoint"])
        self.attempt: int = row["attempts"]
        self.max_attempts: int = row["max_attempts"]
        self.lost = asyncio.Event()
        self.completed = False
        self.cancel_requested = False
        self._draining = False
        self._others_wait = False
        self._timings = timings
        self._claimed_at = claimed_at
        self._good_until = claimed_at + timings.lease_s
        self._touched_at = claimed_at
        self._loop = asyncio.get_running_loop()
        self._work: asyncio.Task[Any] | None = None

    async def fence(self, tx: Connection) -> None:
        """Raises LeaseLost unless the job is ours until this transaction ends."""
        if await tx.fetchval(_FENCE, self.org_id, self.job_id, self.epoch) is None:
            raise LeaseLost
        self.touch()

    async def checkpoint(self, tx: Connection, saved: Mapping[str, Any]) -> None:
        """Fence, and keep `saved` for the next holder; a job that gets on starts its attempts over.

        Last in its transaction: until the commit the heartbeat has to pass this job by.
        """
        body = json.dumps(saved)
        if await tx.fetchval(_CHECKPOINT, self.org_id, self.job_id, self.epoch, body) is None:
            raise LeaseLost
        self.saved = dict(saved)
        self.touch()

    async def complete(self, tx: Connection) -> None:
        """Finish as SUCCEEDED together with the last effect; then return Done."""
        await finish(tx, self, "SUCCEEDED", "")
        self.completed = True

    def should_yield(self) -> bool:
        """Asked between batches: somebody else's turn, a cancellation, or the worker stops."""
        turn_over = time.monotonic() - self._claimed_at >= self._timings.turn_s
        return (
            self._draining
            or self.cancel_requested
            or self.lost.is_set()
            or (self._others_wait and turn_over)
        )

    def touch(self) -> None:
        """Sign of life of work that has nothing to write for long."""
        self._touched_at = time.monotonic()

    # ---- the runner's and the heart's side ----

    def bind(self, work: asyncio.Task[Any]) -> None:
        self._work = work

    def drain(self) -> None:
        self._draining = True

    def interrupt(self) -> None:
        if self._work is not None:
            self._work.cancel()

    @property
    def stuck(self) -> bool:
        return time.monotonic() - self._touched_at > self._timings.work_stall_s

    @property
    def expired(self) -> bool:
        """By our own clock, counted from before the database was asked: never too late."""
        return time.monotonic() > self._good_until

    def renewed(self, asked_at: float) -> None:
        self._good_until = asked_at + self._timings.lease_s

    def note(self, *, cancel_requested: bool, others_wait: bool) -> None:
        """Called from the heart's thread."""
        self._others_wait = others_wait
        if cancel_requested and not self.cancel_requested:
            self.cancel_requested = True
            self._from_thread(self._interrupt_later)

    def lose(self) -> None:
        """Called from the heart's thread."""
        self._from_thread(self._lose)

    def _from_thread(self, call: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(call)
        except RuntimeError:  # the loop is closed: there is no work left to tell
            return

    def _interrupt_later(self) -> None:
        self._loop.call_later(self._timings.grace_s, self.interrupt)

    def _lose(self) -> None:
        if not self.lost.is_set():
            self.lost.set()
            self.interrupt()


# KEY SHARE lets the heartbeat's update pass, and holds off whoever would take the job over.
_FENCE = """
SELECT lease_epoch FROM jobs
WHERE org_id = $1 AND job_id = $2 AND lease_epoch = $3 AND state = 'RUNNING'
  AND lease_until > clock_timestamp()
FOR KEY SHARE
"""
_CHECKPOINT = """
UPDATE jobs SET checkpoint = $4, attempts = 1, updated_at = now()
WHERE org_id = $1 AND job_id = $2 AND lease_epoch = $3 AND state = 'RUNNING'
  AND lease_until > clock_timestamp()
RETURNING job_id
"""

# The organisation whose turn it is. Its row stays locked until the claim commits.
_TURN = """
WITH RECURSIVE waiting AS (
    (SELECT j.org_id FROM jobs j WHERE j.state = 'QUEUED' ORDER BY j.org_id LIMIT 1)
    UNION ALL
    SELECT (
        SELECT j.org_id FROM jobs j WHERE j.state = 'QUEUED' AND j.org_id > w.org_id
        ORDER BY j.org_id LIMIT 1
    ) FROM waiting w WHERE w.org_id IS NOT NULL
)
SELECT q.org_id, q.concurrency
FROM job_queues q JOIN waiting w ON w.org_id = q.org_id
WHERE EXISTS (
        SELECT FROM jobs j WHERE j.org_id = q.org_id AND j.state = 'QUEUED'
          AND j.run_after <= clock_timestamp() AND j.kind = ANY ($1)
    )
  AND q.concurrency > (
        SELECT count(*) FROM jobs r WHERE r.org_id = q.org_id AND r.state = 'RUNNING'
    )
ORDER BY q.served_at, q.org_id LIMIT 1
FOR UPDATE OF q"""
_TURN_FREE = _TURN + " SKIP LOCKED"

# Counted again: the first count was made before the organisation's row was ours.
_TAKE = """
WITH taken AS (
    UPDATE jobs SET
        state = 'RUNNING', lease_epoch = lease_epoch + 1, lease_owner = $3,
        lease_until = clock_timestamp() + $4::interval, attempts = attempts + 1,
        started_at = coalesce(started_at, now()), updated_at = now()
    WHERE org_id = $1
      AND job_id = (
        SELECT j.job_id FROM jobs j
        WHERE j.org_id = $1 AND j.state = 'QUEUED' AND j.run_after <= clock_timestamp()
          AND j.kind = ANY ($2)
        ORDER BY j.priority DESC, j.run_after, j.job_id LIMIT 1
        FOR UPDATE SKIP LOCKED
      )
      AND $5::integer > (
        SELECT count(*) FROM jobs r WHERE r.org_id = $1 AND r.state = 'RUNNING'
      )
    RETURNING org_id, job_id, lease_epoch, kind, subject_id, payload, checkpoint, attempts,
              max_attempts
), served AS (
    UPDATE job_queues SET served_at = clock_timestamp()
    WHERE org_id = $1 AND EXISTS (SELECT FROM taken)
)
SELECT org_id, job_id, lease_epoch, kind, subject_id, payload, checkpoint, attempts, max_attempts
FROM taken
"""


async def claim(tx: Connection, kinds: Sequence[str], owner: str, timings: Timings) -> Lease | None:
    """In a transaction of its own, committed at once."""
    claimed_at = time.monotonic()
    turn = await tx.fetchrow(_TURN_FREE, kinds)
    if turn is None:
        # Nothing, or only organisations that others are claiming from: those are worth the wait.
        turn = await tx.fetchrow(_TURN, kinds)
    if turn is None:
        return None
    lease = timedelta(seconds=timings.lease_s)
    row = await tx.fetchrow(_TAKE, turn["org_id"], kinds, owner, lease, turn["concurrency"])
    return None if row is None else Lease(row, claimed_at, timings)


# SKIP LOCKED: a transaction that is finishing a job must not hold up the beats of the others.
_RENEW = """
WITH mine AS (
    SELECT org_id, job_id, epoch
    FROM unnest($1::uuid[], $2::uuid[], $3::bigint[]) AS m (org_id, job_id, epoch)
), free AS (
    SELECT j.org_id, j.job_id FROM jobs j
    JOIN mine m ON m.org_id = j.org_id AND m.job_id = j.job_id AND m.epoch = j.lease_epoch
    WHERE j.state = 'RUNNING' AND j.lease_until > clock_timestamp()
    FOR NO KEY UPDATE OF j SKIP LOCKED
), renewed AS (
    UPDATE jobs j SET lease_until = clock_timestamp() + $4::interval
    FROM free f WHERE j.org_id = f.org_id AND j.job_id = f.job_id
    RETURNING j.org_id, j.job_id
)
SELECT m.job_id, r.job_id IS NOT NULL AS renewed,
       coalesce(
           j.lease_epoch = m.epoch AND j.state = 'RUNNING' AND j.lease_until > clock_timestamp(),
           false
       ) AS held,
       j.cancel_requested_at IS NOT NULL AS cancel_requested,
       EXISTS (
           SELECT FROM jobs o WHERE o.state = 'QUEUED' AND o.org_id <> m.org_id
             AND o.run_after < clock_timestamp() - interval '1 second'
       ) AS others_wait
FROM mine m
LEFT JOIN jobs j ON j.org_id = m.org_id AND j.job_id = m.job_id
LEFT JOIN renewed r ON r.org_id = m.org_id AND r.job_id = m.job_id
"""


@dataclass(frozen=True, slots=True)
class Beat:
    job_id: UUID
    renewed: bool
    held: bool
    cancel_requested: bool
    others_wait: bool


async def renew(
    connection: asyncpg.Connection, leases: Sequence[Lease], lease_s: float, timeout_s: float
) -> dict[UUID, Beat]:
    rows = await connection.fetch(
        _RENEW,
        [lease.org_id for lease in leases],
        [lease.job_id for lease in leases],
        [lease.epoch for lease in leases],
        timedelta(seconds=lease_s),
        timeout=timeout_s,
    )
    return {row["job_id"]: Beat(**dict(row.items())) for row in rows}


_FINISH = """
UPDATE jobs SET state = $4, last_error = $5, lease_owner = NULL, lease_until = NULL,
                finished_at = now(), updated_at = now()
WHERE org_id = $1 AND job_id = $2 AND lease_epoch = $3 AND state = 'RUNNING'
  AND lease_until > clock_timestamp()
RETURNING job_id
"""


async def finish(tx: Executor, lease: Lease, state: str, reason: str) -> None:
    identity = (lease.org_id, lease.job_id, lease.epoch)
    if await tx.fetchval(_FINISH, *identity, state, reason[:REASON_CHARS_MAX]) is None:
        raise LeaseLost


_HAND_BACK = """
UPDATE jobs SET
    state = CASE WHEN cancel_requested_at IS NULL THEN 'QUEUED' ELSE 'CANCELLED' END,
    finished_at = CASE WHEN cancel_requested_at IS NULL THEN NULL ELSE now() END,
    attempts = greatest(attempts - 1, 0), run_after = now() + $4::interval,
    lease_owner = NULL, lease_until = NULL, updated_at = now()
WHERE org_id = $1 AND job_id = $2 AND lease_epoch = $3 AND state = 'RUNNING'
  AND lease_until > clock_timestamp()
RETURNING pg_notify('trunkline_jobs', ''), state
"""


async def hand_back(tx: Executor, lease: Lease, after_s: float = 0.0) -> str:
    """The attempt is not counted: nothing failed. Returns the job's state."""
    identity = (lease.org_id, lease.job_id, lease.epoch)
    row = await tx.fetchrow(_HAND_BACK, *identity, timedelta(seconds=after_s))
    if row is None:
        raise LeaseLost
    return str(row["state"])


_RETRY = """
WITH decided AS (
    SELECT org_id, job_id,
           CASE WHEN cancel_requested_at IS NOT NULL THEN 'CANCELLED'
                WHEN attempts >= max_attempts THEN 'DEAD' ELSE 'QUEUED' END AS next
    FROM jobs
    WHERE org_id = $1 AND job_id = $2 AND lease_epoch = $3 AND state = 'RUNNING'
      AND lease_until > clock_timestamp()
    FOR UPDATE
)
UPDATE jobs j SET
    state = d.next, last_error = $4, lease_owner = NULL, lease_until = NULL,
    run_after = now() + coalesce($5, job_backoff(j.attempts, $6, $7)),
    finished_at = CASE d.next WHEN 'QUEUED' THEN NULL ELSE now() END, updated_at = now()
FROM decided d WHERE j.org_id = d.org_id AND j.job_id = d.job_id
RETURNING j.state
"""


async def retry(
    tx: Executor, lease: Lease, reason: str, after_s: float | None, timings: Timings
) -> str:
    """Returns the job's state: QUEUED again, DEAD after the last attempt, or CANCELLED."""
    state = await tx.fetchval(
        _RETRY,
        *(lease.org_id, lease.job_id, lease.epoch, reason[:REASON_CHARS_MAX]),
        None if after_s is None else timedelta(seconds=after_s),
        timedelta(seconds=timings.backoff_s),
        timedelta(seconds=timings.backoff_s_max),
    )
    if state is None:
        raise LeaseLost
    return str(state)


# The first time at once: a worker that was killed says nothing about the job. SKIP LOCKED passes
# by a job whose holder is inside a fenced transaction: what that commits still counts.
_REAP = """
WITH decided AS (
    SELECT org_id, job_id,
           CASE WHEN cancel_requested_at IS NOT NULL THEN 'CANCELLED'
                WHEN attempts >= max_attempts THEN 'DEAD' ELSE 'QUEUED' END AS next
    FROM jobs WHERE state = 'RUNNING' AND lease_until <= clock_timestamp()
    ORDER BY lease_until LIMIT $1
    FOR UPDATE SKIP LOCKED
)
UPDATE jobs j SET
    state = d.next, lease_owner = NULL, lease_until = NULL,
    last_error = format('lease expired in attempt %s: the worker died or hung', j.attempts),
    run_after = CASE WHEN j.attempts <= 1 THEN now()
                     ELSE now() + job_backoff(j.attempts - 1, $2, $3) END,
    finished_at = CASE d.next WHEN 'QUEUED' THEN NULL ELSE now() END, updated_at = now()
FROM decided d WHERE j.org_id = d.org_id AND j.job_id = d.job_id
RETURNING j.org_id, j.job_id, j.kind, j.state
"""


async def reap(tx: Executor, timings: Timings) -> list[Record]:
    """Take expired leases away from their holders."""
    return await tx.fetch(
        _REAP,
        REAP_BATCH,
        timedelta(seconds=timings.backoff_s),
        timedelta(seconds=timings.backoff_s_max),
    )
