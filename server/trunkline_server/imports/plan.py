"""Plans: what an import would do, stored row by row, and published in one step or not at all.

A plan names for each member the version it was made on. Publishing compares them all in the
transaction that writes: if one has moved, nothing is written. Terminations of a SYNC are planned
the same way, also where its rows were merged batch by batch.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime

import asyncpg

from trunkline.api.imports.v1 import imports_service_pb2 as pb
from trunkline_server.db import Connection
from trunkline_server.failpoints import failpoint
from trunkline_server.imports import change_ids, present
from trunkline_server.imports.errors import PlanStale
from trunkline_server.imports.merge_sql import COLUMNS, IMAGE
from trunkline_server.imports.work import Work
from trunkline_server.members import queries as member_queries

# A plan of ten million rows is one statement: it must not be cut off like an ordinary one.
STEP_TIMEOUT_S = 3_600.0
_NO_TIMEOUT = "SET LOCAL statement_timeout = 0"

# Members the file does not name. One whose row was refused is named (import_seen).
_PLAN_TERMINATIONS = """
INSERT INTO import_plan (
    org_id, import_id, member_number, row_no, action, member_id, base_version
)
SELECT $1, $2, m.member_number, 0, 'TERMINATE', m.member_id, m.version
FROM members m
WHERE m.org_id = $1 AND m.deleted_at IS NULL AND m.status <> 'TERMINATED'
  AND m.change_id NOT BETWEEN $3 AND $4
  AND NOT EXISTS (
      SELECT FROM import_seen s
      WHERE s.org_id = $1 AND s.import_id = $2 AND s.member_number = m.member_number
  )
ON CONFLICT DO NOTHING
"""
_DROP_TERMINATIONS = """
DELETE FROM import_plan WHERE org_id = $1 AND import_id = $2 AND action = 'TERMINATE'
"""
_COUNT_LIVE = """
SELECT count(*) FROM members m
WHERE m.org_id = $1 AND m.deleted_at IS NULL
  AND (m.status <> 'TERMINATED' OR m.change_id BETWEEN $2 AND $3)
"""
# A sum of digests names the plan over the members it was made from, in any order of rows.
_SUMMARY = """
SELECT count(*) FILTER (WHERE action = 'CREATE') AS created,
       count(*) FILTER (WHERE action = 'UPDATE') AS updated,
       count(*) FILTER (WHERE action = 'UNCHANGED') AS unchanged,
       count(*) FILTER (WHERE action = 'TERMINATE') AS terminated,
       coalesce(sum(hashtextextended(
           concat_ws('|', member_number, action, row_no, base_version, member_id), 4004
       )), 0)::text AS digest
FROM import_plan WHERE org_id = $1 AND import_id = $2
"""
_SET_PLAN = """
UPDATE imports SET plan = $3, plan_etag = $4,
    created = greatest(created, $5), updated = greatest(updated, $6),
    unchanged = greatest(unchanged, $7)
WHERE org_id = $1 AND import_id = $2
"""


@dataclass(frozen=True, slots=True)
class Planned:
    message: pb.ImportPlan
    fuse_blown: bool


async def terminations(tx: Connection, work: Work) -> None:
    """Plans them anew: members may have come and gone since."""
    await tx.execute(_DROP_TERMINATIONS, work.org_id, work.import_id)
    await tx.execute(
        _PLAN_TERMINATIONS,
        *(work.org_id, work.import_id, work.first_change, work.last_change),
        timeout=STEP_TIMEOUT_S,
    )


async def summarise(tx: Connection, work: Work, rejected: int, created: int) -> Planned:
    """Counts what is planned, names it and stores it. `created` are there already."""
    await tx.execute(_NO_TIMEOUT)
    if work.syncs:
        await terminations(tx, work)
    ids = (work.org_id, work.import_id)
    row = await tx.fetchrow(_SUMMARY, *ids, timeout=STEP_TIMEOUT_S)
    assert row is not None
    live = await tx.fetchval(
        _COUNT_LIVE, work.org_id, work.first_change, work.last_change, timeout=STEP_TIMEOUT_S
    )
    before = live if work.plans else live - created
    message = pb.ImportPlan(
        etag=hashlib.sha256(f"{work.import_id} {row['digest']}".encode()).hexdigest()[:32],
        created=row["created"],
        updated=row["updated"],
        unchanged=row["unchanged"],
        rejected=rejected,
        terminated=row["terminated"],
        members_before=before,
    )
    message.plan_time.FromDatetime(datetime.now(UTC))
    counts = (row["created"], row["updated"], row["unchanged"])
    await tx.execute(_SET_PLAN, *ids, present.stored(message), message.etag, *counts)
    return Planned(message, row["terminated"] > work.fuse_ratio * before)


# ---- Publishing ----

_STALE = """
SELECT EXISTS (
    SELECT FROM import_plan p
    LEFT JOIN members m ON m.org_id = $1 AND m.member_number = p.member_number
    WHERE p.org_id = $1 AND p.import_id = $2
      AND (m.version IS DISTINCT FROM p.base_version
           OR (p.base_version IS NOT NULL AND m.member_id <> p.member_id))
)
"""
# With a SYNC, somebody new would have to be terminated as well.
_NEWCOMERS = """
SELECT EXISTS (
    SELECT FROM members m
    WHERE m.org_id = $1 AND m.deleted_at IS NULL AND m.status <> 'TERMINATED'
      AND m.change_id NOT BETWEEN $3 AND $4
      AND NOT EXISTS (
          SELECT FROM import_plan p
          WHERE p.org_id = $1 AND p.import_id = $2 AND p.member_number = m.member_number
      )
      AND NOT EXISTS (
          SELECT FROM import_seen s
          WHERE s.org_id = $1 AND s.import_id = $2 AND s.member_number = m.member_number
      )
)
"""
_CREATE = f"""
INSERT INTO members (org_id, member_id, change_id, row_no, member_number, {", ".join(COLUMNS)})
SELECT $1, p.member_id, $3, p.row_no, p.member_number, {", ".join(f"p.{c}" for c in COLUMNS)}
FROM import_plan p
WHERE p.org_id = $1 AND p.import_id = $2 AND p.action = 'CREATE' ORDER BY p.member_number
"""  # noqa: S608 - made of constants
_KEEP = f"""
INSERT INTO member_history (org_id, {IMAGE}, superseded_by)
SELECT $1, {", ".join(f"m.{c}" for c in IMAGE.split(", "))}, $3
FROM import_plan p
JOIN members m ON m.org_id = $1 AND m.member_id = p.member_id AND m.version = p.base_version
WHERE p.org_id = $1 AND p.import_id = $2 AND p.action = $4
"""  # noqa: S608
_UPDATE = f"""
UPDATE members m
SET {", ".join(f"{c} = p.{c}" for c in COLUMNS)}, change_id = $3, row_no = p.row_no,
    version = m.version + 1, updated_at = now()
FROM import_plan p
WHERE p.org_id = $1 AND p.import_id = $2 AND p.action = 'UPDATE'
  AND m.org_id = $1 AND m.member_id = p.member_id AND m.version = p.base_version
"""  # noqa: S608
_TERMINATE = """
UPDATE members m
SET status = 'TERMINATED', change_id = $3, row_no = 0, version = m.version + 1, updated_at = now()
FROM import_plan p
WHERE p.org_id = $1 AND p.import_id = $2 AND p.action = 'TERMINATE'
  AND m.org_id = $1 AND m.member_id = p.member_id AND m.version = p.base_version
"""
_APPLIED = """
UPDATE imports SET applied_at = now(), terminated = greatest(terminated, $3)
WHERE org_id = $1 AND import_id = $2
"""


async def publish(tx: Connection, work: Work, planned: pb.ImportPlan) -> bool:
    """Exactly the plan, or PlanStale. True: members were written. In a transaction of its own."""
    await tx.execute(_NO_TIMEOUT)
    await _check_fresh(tx, work)
    failpoint("publish.checked")
    ids = (work.org_id, work.import_id)
    change, sync = change_ids.of_publish(work.import_id), change_ids.of_sync(work.import_id)
    try:
        if planned.updated and work.plans:
            await _step(tx, _KEEP, planned.updated, *ids, change, "UPDATE")
            await _step(tx, _UPDATE, planned.updated, *ids, change)
        if planned.terminated:
            await _step(tx, _KEEP, planned.terminated, *ids, sync, "TERMINATE")
            await _step(tx, _TERMINATE, planned.terminated, *ids, sync)
        if planned.created and work.plans:
            await _step(tx, _CREATE, planned.created, *ids, change)
    except asyncpg.UniqueViolationError:
        raise PlanStale from None
    await tx.execute(_APPLIED, *ids, planned.terminated)
    failpoint("publish.written")
    written = work.plans and bool(planned.created + planned.updated)
    if written:
        await member_queries.record(tx, work.org_id, work.change(change))
    if planned.terminated:
        await member_queries.record(tx, work.org_id, work.change(sync, "SYNC_TERMINATED"))
    return written or bool(planned.terminated)


async def _check_fresh(tx: Connection, work: Work) -> None:
    ids = (work.org_id, work.import_id)
    if await tx.fetchval(_STALE, *ids, timeout=STEP_TIMEOUT_S):
        raise PlanStale
    if work.syncs and await tx.fetchval(
        _NEWCOMERS, *ids, work.first_change, work.last_change, timeout=STEP_TIMEOUT_S
    ):
        raise PlanStale


async def _step(tx: Connection, sql: str, wanted: int, *arguments: object) -> None:
    tag = await tx.execute(sql, *arguments, timeout=STEP_TIMEOUT_S)
    if int(tag.rpartition(" ")[2]) != wanted:
        raise PlanStale  # somebody changed a member a moment ago
