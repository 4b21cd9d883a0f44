"""The queue as those see it who put work in, watch it, re-drive it and cancel it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg

from trunkline.api.errors.v1 import reason_pb2
from trunkline_server.db import Executor, Record
from trunkline_server.errors import Aborted, FailedPrecondition, NotFound
from trunkline_server.ids import uuid7

# Work of no organisation: sealing, retention, partitions. It queues like any other's.
SYSTEM_ORG = UUID(int=0)
CHANNEL = "trunkline_jobs"
MAX_ATTEMPTS = 8
PAGE_SIZE_MAX = 1_000
PURGE_BATCH = 1_000
KEEP_FINISHED = timedelta(days=7)
KEEP_FAILED = timedelta(days=90)
# A job that ends between the refused insert and the look at it makes room for another try.
DEDUP_ATTEMPTS = 5


class JobNotFound(NotFound):
    reason = reason_pb2.REASON_JOB_NOT_FOUND
    text = "The organisation has no such job."


class JobStateForbids(FailedPrecondition):
    reason = reason_pb2.REASON_JOB_STATE
    text = "The job's state does not allow this."


@dataclass(frozen=True, slots=True)
class Job:
    job_id: UUID
    kind: str
    subject_id: UUID | None
    priority: int
    state: str
    run_after: datetime
    attempts: int
    max_attempts: int
    cancel_requested: bool
    last_error: str
    created_at: datetime
    started_at: datetime | None
    updated_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a job stands in its organisation's queue."""

    position: int  # 1 is next; 0 does not wait any more
    run_after: datetime
    running: int
    concurrency: int


# NOTIFY is a hint: workers poll as well, so a lost one costs a second.
_ENQUEUE = """
WITH place AS (
    INSERT INTO job_queues (org_id) VALUES ($1) ON CONFLICT DO NOTHING
), queued AS (
    INSERT INTO jobs (
        org_id, job_id, kind, subject_id, payload, priority, run_after, dedup_key, max_attempts
    )
    VALUES ($1, $2, $3, $4, $5, $6, coalesce($7, now()), $8, $9)
    ON CONFLICT (org_id, kind, dedup_key)
        WHERE dedup_key IS NOT NULL AND state IN ('QUEUED', 'RUNNING')
        DO NOTHING
    RETURNING job_id, run_after
)
SELECT job_id, CASE WHEN run_after <= now() THEN pg_notify('trunkline_jobs', '') END FROM queued
"""
_LIVE = """
SELECT job_id FROM jobs
WHERE org_id = $1 AND kind = $2 AND dedup_key = $3 AND state IN ('QUEUED', 'RUNNING')
"""


async def enqueue(
    db: Executor,
    org_id: UUID,
    kind: str,
    *,
    subject_id: UUID | None = None,
    payload: Mapping[str, Any] | None = None,
    priority: int = 0,
    run_after: datetime | None = None,
    dedup_key: str | None = None,
    max_attempts: int = MAX_ATTEMPTS,
) -> UUID:
    """In the caller's transaction. With a dedup_key that a live job holds: that job's id."""
    body = json.dumps(payload or {})
    for _ in range(DEDUP_ATTEMPTS):
        row = await db.fetchrow(
            _ENQUEUE,
            *(org_id, uuid7(), kind, subject_id, body, priority, run_after, dedup_key),
            max_attempts,
        )
        job_id: UUID | None = row["job_id"] if row else None
        job_id = job_id or await db.fetchval(_LIVE, org_id, kind, dedup_key)
        if job_id is not None:
            return job_id
    raise Aborted


_GET = """
SELECT job_id, kind, subject_id, priority, state, run_after, attempts, max_attempts,
       cancel_requested_at IS NOT NULL AS cancel_requested, last_error, created_at, started_at,
       updated_at, finished_at
FROM jobs WHERE org_id = $1 AND job_id = $2
"""


async def get_job(db: Executor, org_id: UUID, job_id: UUID) -> Job:
    row = await db.fetchrow(_GET, org_id, job_id)
    if row is None:
        raise JobNotFound
    return _job(row)


_LIST = """
SELECT job_id, kind, subject_id, priority, state, run_after, attempts, max_attempts,
       cancel_requested_at IS NOT NULL AS cancel_requested, last_error, created_at, started_at,
       updated_at, finished_at
FROM jobs
WHERE org_id = $1
  AND ($2::text[] IS NULL OR state = ANY ($2))
  AND ($3::text[] IS NULL OR kind = ANY ($3))
  AND ($4::uuid IS NULL OR job_id < $4)
  AND ($6::uuid IS NULL OR subject_id = $6)
ORDER BY job_id DESC LIMIT $5
"""


async def list_jobs(
    db: Executor,
    org_id: UUID,
    *,
    states: Sequence[str] | None = None,
    kinds: Sequence[str] | None = None,
    subject_id: UUID | None = None,
    before: UUID | None = None,
    page_size: int = 100,
) -> list[Job]:
    """The newest first; the next page begins before the last one's job_id."""
    limit = min(page_size, PAGE_SIZE_MAX)
    rows = await db.fetch(_LIST, org_id, states, kinds, before, limit, subject_id)
    return [_job(row) for row in rows]


async def list_dead(
    db: Executor, org_id: UUID, *, before: UUID | None = None, page_size: int = 100
) -> list[Job]:
    return await list_jobs(db, org_id, states=["DEAD"], before=before, page_size=page_size)


def _job(row: Record) -> Job:
    return Job(**dict(row.items()))


_RETRY = """
UPDATE jobs SET state = 'QUEUED', attempts = 0, run_after = now(), finished_at = NULL,
                cancel_requested_at = NULL, updated_at = now()
WHERE org_id = $1 AND job_id = $2 AND state IN ('DEAD', 'FAILED')
RETURNING pg_notify('trunkline_jobs', '')
"""


async def retry_job(db: Executor, org_id: UUID, job_id: UUID) -> Job:
    """Re-drive: a dead or failed job starts over, at its checkpoint, with all its attempts."""
    try:
        row = await db.fetchrow(_RETRY, org_id, job_id)
    except asyncpg.UniqueViolationError:
        raise JobStateForbids("A newer job does the same work already.") from None
    job = await get_job(db, org_id, job_id)
    if row is None:
        raise JobStateForbids
    return job


# A running one is asked: only its lease holder knows where it can stop.
_CANCEL = """
UPDATE jobs SET
    state = CASE state WHEN 'QUEUED' THEN 'CANCELLED' ELSE state END,
    finished_at = CASE state WHEN 'QUEUED' THEN now() END,
    cancel_requested_at = coalesce(cancel_requested_at, now()),
    updated_at = now()
WHERE org_id = $1 AND job_id = $2 AND state IN ('QUEUED', 'RUNNING')
RETURNING job_id
"""


async def cancel_job(db: Executor, org_id: UUID, job_id: UUID) -> Job:
    row = await db.fetchrow(_CANCEL, org_id, job_id)
    job = await get_job(db, org_id, job_id)
    if row is None and job.state != "CANCELLED":
        raise JobStateForbids
    return job


_PLACE = """
SELECT CASE WHEN j.state = 'QUEUED' THEN 1 + (
           SELECT count(*) FROM jobs a
           WHERE a.org_id = j.org_id AND a.state = 'QUEUED' AND a.job_id <> j.job_id
             AND (-a.priority, a.run_after, a.job_id) < (-j.priority, j.run_after, j.job_id)
       ) ELSE 0 END AS position,
       j.run_after, q.concurrency,
       (SELECT count(*) FROM jobs r WHERE r.org_id = j.org_id AND r.state = 'RUNNING') AS running
FROM jobs j JOIN job_queues q ON q.org_id = j.org_id
WHERE j.org_id = $1 AND j.job_id = $2
"""


async def place(db: Executor, org_id: UUID, job_id: UUID) -> Place:
    row = await db.fetchrow(_PLACE, org_id, job_id)
    if row is None:
        raise JobNotFound
    return Place(row["position"], row["run_after"], row["running"], row["concurrency"])


_SET_CONCURRENCY = """
INSERT INTO job_queues (org_id, concurrency) VALUES ($1, $2)
ON CONFLICT (org_id) DO UPDATE SET concurrency = EXCLUDED.concurrency
"""


async def set_concurrency(db: Executor, org_id: UUID, concurrency: int) -> None:
    """How many of its jobs run at a time; 0 holds the organisation's queue."""
    await db.execute(_SET_CONCURRENCY, org_id, concurrency)


_DEPTH = """
SELECT state, count(*) AS jobs, coalesce(extract(epoch FROM now() - min(run_after)), 0)::float8
       AS oldest_s
FROM jobs WHERE state IN ('QUEUED', 'RUNNING', 'DEAD') GROUP BY state
"""


async def depth(db: Executor) -> dict[str, tuple[int, float]]:
    """For metrics, as the worker: per state the count and how long the oldest has been due."""
    return {r["state"]: (r["jobs"], max(0.0, r["oldest_s"])) for r in await db.fetch(_DEPTH)}


_PURGE = """
WITH old AS (
    SELECT j.org_id, j.job_id FROM job_queues q CROSS JOIN LATERAL (
        SELECT f.org_id, f.job_id FROM jobs f
        WHERE f.org_id = q.org_id AND f.finished_at < now() - $1::interval
          AND (f.state IN ('SUCCEEDED', 'CANCELLED') OR f.finished_at < now() - $2::interval)
        ORDER BY f.finished_at LIMIT $3
    ) j
    LIMIT $3
)
DELETE FROM jobs d USING old WHERE d.org_id = old.org_id AND d.job_id = old.job_id
"""
_PURGE_TICKS = "DELETE FROM schedules WHERE org_id = $1 AND tick < now() - $2::interval"


async def purge(db: Executor) -> None:
    """As the worker: what ended long ago, a bounded batch at a time."""
    await db.execute(_PURGE, KEEP_FINISHED, KEEP_FAILED, PURGE_BATCH)
    await db.execute(_PURGE_TICKS, SYSTEM_ORG, KEEP_FAILED)
